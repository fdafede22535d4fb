"""Fill the disk under running jobs, make room, start them again, and see what is lost.

Every job runs on a file system of its own, in memory (mounting it takes root), once with room: what it then holds is
the size of the job. In each trial a share of that size, drawn uniformly from 0 to 1.3, is left free, and the job is
run; if it stops, room is made and it is run again, to its end. Asked of each trial that stops: that the error is one
line that says so, that no temporary file is left, and that every file can be read. Asked of all: that the results are
those of the job that had room, bit for bit.

    python scripts/reliability/disk.py [--trials 20] [--only surface train] [--quick] [--out results/reliability]
"""

import argparse
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kill import minima_result, read_training, study_result, surface_result, train_result
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from landscape import Recorder, Trajectory, __version__, checkpoint, cli
from landscape.data import load
from landscape.models import build
from landscape.storage import open_hdf5, replacing

MOST = 1.3  # of a job's size, what is left free at most
_FULL = re.compile(r"no space left on \S+ while writing .+: make room and run the same command again")


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        run: Does it, or goes on with it, in the present folder; returns the error, None at its end.
        result: From the folder to what must be the same, by name.
        prepare: Writes what the job reads into the present folder, once.
    """

    run: Callable[[], str | None]
    result: Callable[[Path], dict[str, Any]]
    prepare: Callable[[], object] = lambda: None


@dataclass
class Trials:
    """What the trials of a job showed.

    Attributes:
        size: Bytes of the job's files at its end.
        stopped: Trials in which the disk was full before the end.
        wrong: What was not as it should be, in words.
    """

    size: int
    stopped: int = 0
    wrong: list[str] = field(default_factory=list)


@contextmanager
def small_disk(size: int = 2**23) -> Iterator[Path]:
    """Yield the folder of a file system in memory, of so many bytes; only root can make one.

    Raises:
        PermissionError: It could not be mounted.
    """
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(f"no small file system can be mounted: {done.stderr.strip()}; run this as root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, free: int) -> Path:
    """Take all room of a disk but so many bytes, by a file."""
    filler = folder / "filler"
    filler.write_bytes(b"")
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - free))
    return filler


def command(words: str) -> Callable[[], str | None]:
    """Return what runs `landscape WORDS` in this process, and returns its error."""

    def run() -> str | None:
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            code = cli.main(shlex.split(words))
        if not code:
            return None
        lines = [line for line in said.getvalue().splitlines() if line.startswith("landscape ")]
        return lines[0] if len(lines) == 1 else f"{len(lines)} lines: {said.getvalue()[-500:]}"

    return run


def own_loop() -> str | None:
    """Train by a plain loop that records every step, from the last recorded step on."""
    data, path = load("digits", limit=100), Path("run.h5")
    model = build("mlp", input_shape=data.inputs.shape[1:], classes=data.classes, widths=(32,), seed=0)
    step = 0
    with suppress(FileNotFoundError):  # nothing recorded yet
        run = Trajectory.load(path)
        torch.nn.utils.vector_to_parameters(run.theta(len(run) - 1), model.parameters())
        step = int(run.step[-1])
    if not step:  # nothing to go on from
        path.unlink(missing_ok=True)
        shutil.rmtree(f"{path}.parts", ignore_errors=True)
    try:
        with Recorder(path, model, step=step, interval=0.01) as recorder:
            for _ in range(step, 200):
                loss = cross_entropy(model(data.inputs), data.targets)
                model.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.1 * parameter.grad
                recorder.step(loss=loss)
    except OSError as error:
        return str(error)
    return None


def trajectory_result(folder: Path) -> dict[str, Any]:
    """Return all rows."""
    run = Trajectory.load(folder / "run.h5")
    return {"theta": np.stack([run.theta(i).numpy() for i in range(len(run))]), "step": run.step, **run.metrics}


def files_result(*names: str) -> Callable[[Path], dict[str, Any]]:
    """Return what reads the bytes of files."""
    return lambda folder: {name: (folder / name).read_bytes() for name in names}


_NETWORK = "--model lenet --data digits --limit 200"
_SURFACE = (
    "surface --checkpoint network/checkpoint.safetensors --data digits --limit 200 --test none --out surface.h5 "
    "--resolution 21x17 --chunk-size 200"  # the size is timed otherwise, and the last digits depend on it
)


def _network() -> None:
    assert command(f"train {_NETWORK} --epochs 1 --batch-size 50 --out network")() is None


def _stored_surface() -> None:
    _network()
    assert command(_SURFACE)() is None


def _study() -> None:
    words = "restarts --model mlp --set widths=[3] activation=tanh --data xor --seeds 100 --penalty 1e-3 --epochs 50"
    assert command(f"{words} --out study.h5")() is None


JOBS = {
    "train": Job(
        command("train --model mlp --set widths=[64] --data digits --limit 300 --epochs 20 --out run"), train_result
    ),
    "recorder": Job(own_loop, trajectory_result),
    "surface": Job(command(_SURFACE), surface_result, _network),
    "surface, 2 workers": Job(command(f"{_SURFACE} --workers 2"), surface_result, _network),
    "restarts": Job(
        command(
            "restarts --model mlp --data digits --limit 200 --seeds 8 --optimizers adam --epochs 10 --out study.h5"
        ),
        study_result,
    ),
    "minima": Job(command("minima study.h5 --out minima.h5"), minima_result, _study),
    "plot": Job(command("plot surface.h5 --formats html --out drawn"), lambda folder: {}, _stored_surface),
    "export": Job(command("export surface.h5 surface.stl"), files_result("surface.stl"), _stored_surface),
}


def try_job(job: Job, trials: int, seed: int = 0) -> Trials:
    """Run a job on a full disk, again and again."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as kept, small_disk(2**28) as disk:
        prepared, folder = Path(kept), disk / "job"
        with chdir(prepared):
            job.prepare()
        expected, size = _whole(job, prepared, folder)
        found = Trials(size)
        for share in MOST * rng.random(trials):
            shutil.rmtree(folder)
            shutil.copytree(prepared, folder)
            filler = fill(disk, int(share * size))
            with chdir(folder):
                error = job.run()
            if error is not None:
                found.stopped += 1
                found.wrong += [f"{share:.2f}: {problem}" for problem in problems(folder, error)]
            filler.unlink()
            if error is not None:
                with chdir(folder):
                    again = job.run()
                if again is not None:
                    found.wrong.append(f"{share:.2f}: with room again: {again}")
                    continue
            found.wrong += [f"{share:.2f}: {name} differs" for name in differing(job.result(folder), expected)]
        return found


def _whole(job: Job, prepared: Path, folder: Path) -> tuple[dict[str, Any], int]:
    """Run a job with room; return its result, and the room that it took."""
    shutil.copytree(prepared, folder)
    before = shutil.disk_usage(folder).free
    with chdir(folder):
        error = job.run()
    if error is not None:
        raise RuntimeError(f"the job fails with room, too: {error}")
    return job.result(folder), before - shutil.disk_usage(folder).free


def problems(folder: Path, error: str) -> list[str]:
    """Return what is wrong with a job that was stopped by a full disk."""
    found = [] if _FULL.search(error) and "\n" not in error else [f"error: {error}"]
    for path in sorted(folder.rglob("*")):
        if path.name.endswith((".tmp", ".lock", ".holder")):
            found.append(f"left: {path.name}")
        elif path.is_file():
            try:
                read(path)
            except Exception as failure:
                found.append(f"unreadable: {path.name}: {failure}")
    return found


def read(path: Path) -> None:
    """Read a stored file by the package."""
    if path.suffix in (".h5", ".progress"):
        open_hdf5(path).close()
    elif path.suffix == ".safetensors":
        checkpoint.read(path)
    elif path.suffix == ".pt":
        read_training(path)


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of what is not the same, bit for bit."""
    if found.keys() != expected.keys():
        return sorted(found.keys() ^ expected.keys())
    return [name for name in expected if np.asarray(found[name]).tobytes() != np.asarray(expected[name]).tobytes()]


def main() -> None:
    """Try the jobs, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="of each job")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS), metavar="JOB", help="these jobs")
    parser.add_argument("--quick", action="store_true", help="two trials: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("results/reliability"), help="folder for the results")
    chosen = parser.parse_args()
    trials = 2 if chosen.quick else chosen.trials
    jobs = {}
    for name in tqdm(chosen.only, unit="job"):
        jobs[name] = try_job(JOBS[name], trials)
    lines = ["| job | size, kB | trials | stopped by the full disk | wrong |", "| --- | --- | --- | --- | --- |"]
    for name, found in jobs.items():
        lines.append(f"| {name} | {found.size / 1000:.0f} | {trials} | {found.stopped} | {len(found.wrong)} |")
    lines += [f"\n- {name}, {wrong}" for name, found in jobs.items() for wrong in found.wrong]
    words, table = shlex.join(["python", *sys.argv]), "\n".join(lines)
    machine = {"python": platform.python_version(), "torch": torch.__version__, "landscape": __version__}
    content = {"command": words, "machine": machine, "trials": trials}
    content["jobs"] = {name: asdict(found) for name, found in jobs.items()}
    for suffix, text in (
        ("json", json.dumps(content, indent=1)),
        ("md", f"# Full disk\n\n`{words}`\n\n{table}\n\n## How\n\n{__doc__}"),
    ):
        with replacing(chosen.out / f"disk.{suffix}") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print(table, flush=True)
    if any(found.wrong for found in jobs.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

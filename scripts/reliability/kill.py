"""Kill long jobs at random moments, start them again, and see what is lost.

Each job is killed by SIGKILL after a time drawn uniformly from zero to its own duration, and started again, until it
ends; then it begins anew, until there were `--kills` kills of each kind. Every second kill is of the whole process
group, the others of the main process alone, whose workers must then end by themselves. After each kill all files are
opened with the package's readers. At each end the values are compared, bit for bit, with those of a job that was never
killed, and so are the names of the files that are left.

A kill loses the seconds from the moment at which the state was taken that the next start goes on from, to the kill.
The job itself notes these moments in memory that outlives it: whenever a file that it continues from is complete, the
time at which its writing began; of files that other processes of it wrote, the time at which it ended. Before the first
such file it is the start of the job: what is done twice then is to load, plan and start workers.

Jobs are forked from this process, which has imported everything: importing torch takes longer than they do. The
intervals at which states are written are shortened like the jobs, from seconds to tenths. The lecture's page is made
without PNG and SVG.

    python scripts/reliability/kill.py [--kills 100] [--only train surface] [--quick] [--out results/reliability]
"""

import argparse
import atexit
import json
import mmap
import os
import platform
import re
import runpy
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

import landscape.evaluation
import landscape.restarts
import landscape.training
from landscape import checkpoint, cli, storage
from landscape.catalog import Catalog
from landscape.evaluation import evaluate
from landscape.figures import image, save_figure
from landscape.figures.style import PALETTE, new_figure
from landscape.group import STATE
from landscape.session import read_state
from landscape.study import Study
from landscape.surface import Surface
from landscape.trajectory import Trajectory

SCRIPTS = Path(__file__).parents[1]
INTERVALS = {"train": 0.2, "surface": 0.2, "restarts": 0.2}  # seconds between two saved states
GONE = 10.0  # seconds that workers have to notice the end of the main process
_KEEPS_NOTHING = re.compile(r"\.holder$")  # says who writes; no job goes on from it


@dataclass(frozen=True)
class Kind:
    """A kind of job.

    Attributes:
        words: What is run, in a folder of its own.
        result: From the folder to what must be the same, as arrays and texts by name.
        continued: Names of the files that a killed job goes on from.
        prepare: Writes what the job reads into a folder, once; it is copied for each life of the job.
    """

    words: str
    result: Callable[[Path], dict[str, Any]]
    continued: str
    prepare: Callable[[Path], None] = lambda folder: None


@dataclass
class Found:
    """What the kills of one kind showed.

    Attributes:
        seconds: The job takes when nobody kills it.
        lost: Seconds of work lost by each kill.
        starting: Whether the job had stored nothing yet since it was started (again).
        lives: Jobs that were killed, and went on to their end.
        unreadable: Files that could not be read after a kill.
        differing: Values that differ at the end.
        left: Files and processes that should not be there.
        failed: Jobs that ended with an error.
        gone: Seconds from each kill until all processes were gone.
    """

    seconds: float
    lost: list[float] = field(default_factory=list)
    starting: list[bool] = field(default_factory=list)
    lives: int = 0
    unreadable: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    gone: list[float] = field(default_factory=list)


class Notes(list):
    """In the place of the storage module's list of files in work: notes when the last state to go on from was taken."""

    def __init__(self, memory: mmap.mmap, continued: str) -> None:
        super().__init__()
        self._memory, self._continued, self._begun = memory, re.compile(continued), {}

    def append(self, path: Path) -> None:
        """Note when the writing of a file begins."""
        self._begun[path] = time.monotonic()
        super().append(path)

    def remove(self, path: Path) -> None:
        """Note that a file is complete."""
        super().remove(path)
        name = re.sub(r"\.[\w-]+\.\d+\.tmp$", "", path.name.removeprefix("."))
        if self._continued.search(name) and not path.exists():
            struct.pack_into("d", self._memory, 0, self._begun.pop(path))


def train_result(folder: Path) -> dict[str, Any]:
    """Return network, history and trajectory."""
    stored, run = checkpoint.read(folder / "run/checkpoint.safetensors"), Trajectory.load(folder / "run/trajectory.h5")
    theta = np.stack([run.theta(i).numpy() for i in range(len(run))])
    history = {f"history {name}": np.array(values) for name, values in stored.info["history"].items()}
    network = {name: tensor.numpy() for name, tensor in stored.state.items()}
    return {**network, **history, "theta": theta, "step": run.step, **run.metrics}


def surface_result(folder: Path) -> dict[str, Any]:
    """Return values and mask."""
    surface = Surface.load(folder / "surface.h5")
    return {**surface.values, "done": surface.done}


def study_result(folder: Path) -> dict[str, Any]:
    """Return all columns, by setting and seed: parts come in the order in which workers end."""
    study = Study.load(folder / "study.h5")
    order = np.lexsort((study.seed, study.setting))
    columns = {"setting": study.setting, "seed": study.seed, "steps": study.steps, "diverged": study.diverged}
    columns |= {"travelled": study.travelled, "gradient norm": study.gradient_norm, **study.curves}
    columns |= {"theta": study.thetas(np.arange(len(study))), "buffers": study.buffers(np.arange(len(study)))}
    return {name: column[order] for name, column in columns.items()}


def minima_result(folder: Path) -> dict[str, Any]:
    """Return all columns by run, and which are the same minimum."""
    catalog = Catalog.load(folder / "minima.h5")
    columns = {name: value for name, value in vars(catalog).items() if isinstance(value, np.ndarray)}
    columns["theta"] = catalog.thetas()
    return columns


def lecture_result(folder: Path) -> dict[str, Any]:
    """Return captions, numbers and figures."""
    page = json.loads((folder / "lecture/lecture.json").read_text())["figures"]
    kept = {f"{key} {name}": json.dumps(entry[name]) for key, entry in page.items() for name in ("caption", "numbers")}
    drawn = sorted((folder / "lecture/_runs").glob("*/*.json"))
    return kept | {file.stem: json.dumps(json.loads(file.read_text())["figures"]) for file in drawn}


def prepare_surface(folder: Path) -> None:
    """Train the network of the surface."""
    in_folder(folder, f"train {NETWORK} --epochs 2 --batch-size 64 --out trained")
    shutil.copy(folder / "trained/checkpoint.safetensors", folder / "network.safetensors")
    shutil.rmtree(folder / "trained")


def prepare_minima(folder: Path) -> None:
    """Train the runs whose minima are looked for."""
    in_folder(
        folder,
        "restarts --model mlp --set widths=[3] activation=tanh --data xor --seeds 200 --penalty 1e-3 --epochs 50 "
        "--out study.h5",
    )


NETWORK = "--model lenet --data digits --limit 600"
SURFACE = (
    "surface --checkpoint network.safetensors --data digits --limit 600 --test none --chunk-size 200 "
    "--resolution 41x37 --out surface.h5"
)
KINDS = {
    "train": Kind(
        "train --model mlp --set widths=[64] --data digits --batch-size 32 --epochs 40 --record-unit step "
        "--record-every 5 --out run",
        result=train_result,
        continued=r"^state\.pt$|^checkpoint\.safetensors$",
    ),
    "surface": Kind(SURFACE, surface_result, r"^surface\.h5", prepare_surface),
    "surface, 2 workers": Kind(f"{SURFACE} --workers 2", surface_result, r"^surface\.h5", prepare_surface),
    "restarts": Kind(
        "restarts --model mlp --data digits --limit 300 --seeds 30 --optimizers adam momentum --batch-size 50 "
        "--epochs 30 --out study.h5",
        result=study_result,
        continued=r"\.pt$|\.h5$",
    ),
    "minima": Kind("minima study.h5 --out minima.h5", minima_result, r"\.h5$", prepare_minima),
    "lecture page": Kind(
        "lecture_figures.py --quick --data digits --only L5 L11 --out lecture",
        result=lecture_result,
        continued=r"\.json$|\.h5|\.pt$|\.safetensors$",  # figures, and what they are made of
    ),
}


def in_folder(folder: Path, words: str) -> None:
    """Run a command in a folder to its end."""
    process = start(folder, words, mmap.mmap(-1, 16), "$^")
    if code := wait(process, None):
        raise RuntimeError(f"{words} ended with {code}:\n{(folder.parent / 'log').read_text()[-2000:]}")


def start(folder: Path, words: str, memory: mmap.mmap, continued: str) -> int:
    """Fork a process group that runs a command in a folder; return its number."""
    sys.stdout.flush()
    struct.pack_into("dd", memory, 0, *2 * [time.monotonic()])
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        tempfile.tempdir = os.fspath(folder.parent / "temporary")
        storage._written = Notes(memory, continued)
        for function, name in (
            (landscape.training.train, "train"),
            (evaluate, "surface"),
            (landscape.restarts.run_restarts, "restarts"),
        ):
            function.__kwdefaults__["interval"] = INTERVALS[name]
        if words.partition(" ")[0].endswith(".py"):
            sys.argv = words.split()
            sys.path.insert(0, str(SCRIPTS))
            image.find_spec = lambda name: None  # no PNG and SVG: a browser would take most of the time
            runpy.run_path(str(SCRIPTS / sys.argv[0]), run_name="__main__")
            code = 0
        else:
            code = cli.main(words.split())
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:  # what the end of Python does
        threading._shutdown()
        atexit._run_exitfuncs()
        os._exit(code)


def wait(process: int, seconds: float | None) -> int | None:
    """Wait for the end of a process; return its exit status, None if it did not come in time."""
    due = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if due is not None and time.monotonic() > due:
            return None
        time.sleep(0.002)


def members(group: int) -> list[int]:
    """Return the processes of a session that are running."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def kill(process: int, whole: bool) -> float | None:
    """Kill a process, or its whole group; return after how many seconds all were gone, None if some stayed."""
    begin = time.monotonic()
    if whole:
        os.killpg(process, signal.SIGKILL)
        for other in members(process):  # of groups of their own
            os.kill(other, signal.SIGKILL)
    else:
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    while members(process):
        if time.monotonic() - begin > GONE:
            for other in members(process):
                os.kill(other, signal.SIGKILL)
            return None
        time.sleep(0.02)
    return time.monotonic() - begin


def unreadable(folder: Path) -> list[str]:
    """Open every file with the reader of its kind; return what went wrong."""
    wrong = []
    for path in sorted(folder.rglob("*")):
        try:
            if path.name.endswith(".parts"):
                whole = path.with_suffix("")
                if whole.name == "trajectory.h5" and not whole.exists():
                    list(Trajectory.load(whole).blocks())
            elif path.name.startswith(".") or not path.is_file():  # temporary, or a lock
                continue
            elif path.suffix == ".pt":
                read_training(path)
            elif path.suffix == ".safetensors":
                checkpoint.read(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix in (".h5", ".progress"):
                read_whole(path)
        except Exception as error:
            wrong.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return wrong


def read_training(path: Path) -> None:
    """Read the state of a training run, or of networks that are trained together."""
    if path.name == "state.pt":
        read_state(path)
    else:
        read_state(path, STATE)


def read_whole(path: Path) -> None:
    """Read an HDF5 file by what it says that it holds."""
    with storage.read_hdf5(path) as file:
        kind = file.attrs["landscape_kind"]
    if kind == "surface":
        Surface.load(path, vectors=True)
    elif kind == "trajectory":
        list(Trajectory.load(path).blocks())
    elif kind == "study" and not path.parent.name.endswith(".parts"):
        Study.load(path).thetas(np.array([0]))
    elif kind == Catalog.__name__.lower() and not path.parent.name.endswith(".parts"):
        Catalog.load(path).thetas()


def newest(folder: Path, continued: str) -> float:
    """Return when the last file to go on from was complete, also of those that other processes of the job wrote."""
    files = [path for path in folder.rglob("*") if re.search(continued, path.name) and not path.name.startswith(".")]
    return time.monotonic() - time.time() + max((path.stat().st_mtime for path in files), default=0.0)


def names(folder: Path) -> set[str]:
    """Return the names of all files and folders."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of values that differ in a bit."""
    return [key for key in {**one, **other} if not same(one.get(key), other.get(key))]


def same(one: Any, other: Any) -> bool:
    """Compare arrays or texts."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.dtype.kind in "fiub":
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return bool(np.array_equal(one, other))


def begin(kind: Kind, root: Path) -> Path:
    """Return a new folder with what a job reads."""
    for name in ("job", "temporary"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "log").unlink(missing_ok=True)
    shutil.copytree(root / "prepared", root / "job")
    (root / "temporary").mkdir()
    return root / "job"


def whole_again(folder: Path, root: Path, kind: Kind) -> dict[str, Any]:
    """Return what an uninterrupted job finds that uses the plan stored in a surface.

    Plans are tuned by timing; another one may change last digits.
    """
    again = root / "again"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(folder, again)
    with storage.read_hdf5(again / "surface.h5") as file:
        fingerprint = storage.read_json(file, "record/fingerprint")
    surface = Surface.load(again / "surface.h5", vectors=True)
    surface.done[:] = False
    for values in surface.values.values():
        values[:] = np.nan
    surface._write(again / "surface.h5", fingerprint)
    in_folder(again, kind.words)
    return kind.result(again)


def study(kind: Kind, n_kills: int, root: Path, seed: int) -> Found:
    """Kill jobs of one kind."""
    generator = np.random.default_rng(seed)
    (root / "prepared").mkdir(parents=True)
    (root / "temporary").mkdir()
    kind.prepare(root / "prepared")
    memory = mmap.mmap(-1, 16)  # when the last state was taken, when the job was started
    folder = begin(kind, root)
    since = time.monotonic()
    in_folder(folder, kind.words)
    found = Found(time.monotonic() - since)
    whole, whole_names = kind.result(folder), names(folder)
    is_surface = kind.result is surface_result
    while len(found.lost) < n_kills:
        folder, n_before = begin(kind, root), len(found.lost)
        while True:
            process = start(folder, kind.words, memory, kind.continued)
            code = wait(process, generator.uniform(0, found.seconds) if len(found.lost) < n_kills else None)
            if code is not None:
                break
            gone = kill(process, whole=len(found.lost) % 2 == 0)
            kept, started = struct.unpack_from("dd", memory)
            kept = max(kept, newest(folder, kind.continued))
            found.lost.append(max(0.0, time.monotonic() - kept - (gone or GONE)))  # workers may store something yet
            found.starting.append(kept == started)
            if gone is None:
                found.left.append(f"kill {len(found.lost)}: processes")
            else:
                found.gone.append(gone)
            found.unreadable += [f"kill {len(found.lost)}: {text}" for text in unreadable(folder)]
        if len(found.lost) == n_before:
            continue
        found.lives += 1
        life = f"life {found.lives}"
        if code:
            found.failed.append(f"{life}: {code}: {(root / 'log').read_text()[-1500:]}")
            continue
        differing = differences(kind.result(folder), whole)
        if differing and is_surface:
            differing = differences(kind.result(folder), whole_again(folder, root, kind))
        found.differing += [f"{life}: {name}" for name in differing]
        stray = names(folder) ^ whole_names | {f"temporary/{name}" for name in names(root / "temporary")}
        found.left += [f"{life}: {name}" for name in sorted(stray)]
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    head = ["job", "seconds", "kills", "jobs ended", "unreadable files", "differing values", "left behind", "failed"]
    head += ["seconds lost, median", "largest", "largest once something is stored", "seconds until workers are gone"]
    rows = [
        [name, f"{r['seconds']:.1f}", str(len(r["lost"])), str(r["lives"])]
        + [str(len(r[key])) for key in ("unreadable", "differing", "left", "failed")]
        + [f"{np.median(r['lost']):.2f}", f"{max(r['lost']):.2f}", f"{lost_later(r):.2f}", f"{max(r['gone']):.2f}"]
        for name, r in results.items()
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def lost_later(result: dict[str, Any]) -> float:
    """Return the most seconds lost by a kill after which the job had stored something since its start."""
    pairs = zip(result["lost"], result["starting"], strict=True)
    return max((lost for lost, starting in pairs if not starting), default=np.nan)


def draw(results: dict[str, dict[str, Any]]) -> go.Figure:
    """Draw the distributions of the seconds lost."""
    notes = [
        "open: the job had stored nothing yet since it was started, and starts anew; filled: it had",
        "dotted: the interval between two saved states, where there is one",
    ]
    figure = new_figure("Seconds of work that a kill loses", notes)
    for i, (name, r) in enumerate(results.items()):
        label = f"{name}<br>{r['seconds']:.1f} s, {len(r['lost'])} kills"
        for starting, symbol in ((False, "circle"), (True, "circle-open")):
            lost = [seconds for seconds, early in zip(r["lost"], r["starting"], strict=True) if early == starting]
            figure.add_box(
                x=[label] * len(lost), y=lost, boxpoints="all", jitter=0.6, pointpos=0, name=name, line={"width": 0},
                marker={"color": PALETTE[i % len(PALETTE)], "size": 5, "symbol": symbol}, fillcolor="rgba(0,0,0,0)",
            )  # fmt: skip
        interval = INTERVALS.get(name.partition(",")[0])
        if interval is not None:
            line = {"color": "black", "width": 1, "dash": "dot"}
            figure.add_shape(type="line", x0=i - 0.4, x1=i + 0.4, y0=interval, y1=interval, line=line)
    figure.update_yaxes(title="seconds lost", rangemode="tozero")
    figure.update_layout(showlegend=False)
    return figure


def main() -> None:
    """Kill the jobs that were asked for, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of each kind of job")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="these kinds alone; others keep their results")
    parser.add_argument("--quick", action="store_true", help="three kills of each: does everything run?")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("results/reliability"), help="folder for the results")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), "torchinductor"))
    out = chosen.out.absolute()
    file = out / "kill.json"
    kills = 3 if chosen.quick else chosen.kills
    results = json.loads(file.read_text())["results"] if chosen.only and file.exists() else {}
    for i, (name, kind) in enumerate(KINDS.items()):
        if chosen.only and name not in chosen.only:
            continue
        root, begun = Path(tempfile.mkdtemp(prefix="kill-")), time.monotonic()  # not removed by jobs, as they end
        try:
            results[name] = vars(study(kind, kills, root, chosen.seed + i))
        finally:
            shutil.rmtree(root, ignore_errors=True)
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
        for key in ("unreadable", "differing", "left", "failed"):
            for line in results[name][key]:
                print(f"  {key}: {line}", flush=True)
        results = {name: results[name] for name in KINDS if name in results}
        command = f"python scripts/reliability/kill.py --kills {kills} --seed {chosen.seed}"  # of all kinds
        machine = f"{os.cpu_count()} processors, Python {platform.python_version()}, torch {torch.__version__}"
        machine += f", {platform.system()}, 1 thread; load {os.getloadavg()[0]:.1f}"
        text = f"# Killed at any moment\n\n`{command}`\n\n{table(results)}\n\n## How\n\n{__doc__}\n{machine}\n"
        content = json.dumps({"command": command, "machine": machine, "results": results}, indent=1)
        for path, written in ((file, content), (out / "kill.md", text)):
            with storage.replacing(path) as temporary:
                temporary.write_text(written)
    save_figure(draw(results), out / "kill")
    print(table(results))


if __name__ == "__main__":
    main()

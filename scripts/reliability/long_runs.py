"""Measure what long jobs take as they go on: memory, open files, threads; and the time that the recorder adds.

Each job runs in a process of its own, which this one watches from outside through /proc (Linux), while it reads from
the job's files how far it has come:

- surface: 10,000 points of a plane through the lecture's network (10-10-10-10-10, tanh) on digits;
- recording: 100,000 steps of its training, each of them recorded;
- calls: 200 times `evaluate`, 441 points each, by the same two worker processes.

Memory is compared from 20 % of the work on, when everything that is made once has been made: with its end, and with
the highest value in between. That of `calls` includes the workers'.

overhead: the lecture's network (784-10-10-10-10-10) is trained on MNIST (50,000 images, batches of 200) by a plain
loop, without a recorder and with one that records every epoch, the epochs of both in turn. Counted is the whole time,
with opening and closing the file. On a busy machine two epochs differ by more than the recorder takes: so the time
spent in its methods is measured, too.

    python scripts/reliability/long_runs.py [--only surface recording calls overhead] [--rounds 10] [--quick]
                                            [--out results/reliability]
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch.nn.functional import cross_entropy

from landscape import Objective, Recorder, Surface, Trajectory, __version__, evaluate, random_directions
from landscape.data import Dataset, load
from landscape.figures import save_figure
from landscape.figures.style import new_figure
from landscape.models import build
from landscape.storage import replacing
from landscape.workers import LocalWorkers

FROM = 0.2  # of the work; from then on nothing may grow
_PAUSE = 0.1  # seconds between two looks, more where looking takes long, and between two writes of a surface
_BATCH = 200
_MB = 2**20


@dataclass(frozen=True)
class Look:
    """What a job held at a moment.

    Attributes:
        seconds: Since its start.
        done: Points, rows or calls that are on the disk.
        memory: Resident memory of the process and of those that it has started, bytes.
        files: Files, sockets and pipes that it has open.
        threads: Of the process.
    """

    seconds: float
    done: int
    memory: int
    files: int
    threads: int


@dataclass(frozen=True)
class Course:
    """What a job held from beginning to end.

    Attributes:
        total: Points, rows or calls of the whole job.
        looks: In the order of time.
    """

    total: int
    looks: tuple[Look, ...]

    def growth(self, what: str) -> tuple[int, int]:
        """Return by how much `memory`, `files` or `threads` was larger at the end, and at most, than after 20 %."""
        values = [getattr(look, what) for look in self.looks if look.done >= FROM * self.total]
        return values[-1] - values[0], max(values) - values[0]


Job = Callable[[Path, int, Callable[[], None]], None]
"""Does so much work in a folder, and calls the function at its end, before it lets go of what it holds."""


def watch(job: Job, count: Callable[[Path], int], total: int) -> Course:
    """Run a job in a process of its own, and look at it from outside until it ends.

    Args:
        job: The work; a function of a module.
        count: Returns how much of it is done, out of the files in the folder.
        total: Size of the job.

    Raises:
        RuntimeError: The job failed.
    """
    looks: list[Look] = []
    context = multiprocessing.get_context("spawn")
    ended, seen = context.Event(), context.Event()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = context.Process(target=_run, args=(job, folder, total, ended, seen))
        begin, pause = time.monotonic(), _PAUSE
        process.start()
        while process.is_alive() and not seen.is_set():
            last = ended.wait(pause)
            looked = time.monotonic()
            done = count(folder)
            pause = max(_PAUSE, 4 * (time.monotonic() - looked))
            with suppress(OSError, KeyError):  # it has failed since; then its memory is no longer told
                looks.append(Look(time.monotonic() - begin, done, *_held(str(process.pid))))
            if last:
                seen.set()
        process.join()
        if process.exitcode or count(folder) != total:
            raise RuntimeError(f"{job.__name__} did {count(folder)} of {total}, exit code {process.exitcode}")
    return Course(total, tuple(looks))


def _run(job: Job, folder: Path, total: int, ended: Event, seen: Event) -> None:
    """Do a job, which stays at its end until it has been looked at."""

    def stay() -> None:
        ended.set()
        seen.wait()

    job(folder, total, stay)


def _held(process: str) -> tuple[int, int, int]:
    """Return memory (with that of descendants), open files and threads of a process."""
    status = _status(process)
    memory = 1024 * int(status["VmRSS"].split()[0])
    return (
        memory + sum(map(_memory, _children(process))),
        len(os.listdir(f"/proc/{process}/fd")),
        int(status["Threads"]),
    )


def _status(process: str) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _children(process: str) -> list[str]:
    tasks = Path(f"/proc/{process}/task")
    return [child for task in os.listdir(tasks) for child in (tasks / task / "children").read_text().split()]


def _memory(process: str) -> int:
    """Return the memory of a process and its descendants; none if it has ended since."""
    try:
        own = int(_status(process)["VmRSS"].split()[0])
        return 1024 * own + sum(map(_memory, _children(process)))
    except (OSError, KeyError):
        return 0


def network(data: Dataset) -> torch.nn.Module:
    """Return the lecture's network for a data set."""
    return build("mlp", input_shape=data.inputs.shape[1:], classes=data.classes, widths=(10,) * 4, activation="tanh")


def fill_surface(folder: Path, total: int, stay: Callable[[], None]) -> None:
    """Evaluate a square of points."""
    data = load("digits")
    objective = Objective(network(data), data)
    n = round(total**0.5)
    path = folder / "surface.h5"
    evaluate(objective, random_directions(objective), resolution=n, path=path, interval=_PAUSE, progress=False)
    stay()


def count_points(folder: Path) -> int:
    """Count the points of `fill_surface`."""
    path = folder / "surface.h5"
    return int(Surface.load(path).done.sum()) if path.exists() else 0


def record_steps(folder: Path, total: int, stay: Callable[[], None]) -> None:
    """Train, and record every step."""
    data = load("digits", limit=100)
    model = network(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    interval = total / 100_000  # seconds: a long recording is written as often as a short one, or it would take hours
    with Recorder(folder / "run.h5", model, interval=interval) as recorder:
        for _ in range(total - 1):  # the first row is the network before the first step
            optimizer.zero_grad()
            loss = cross_entropy(model(data.inputs), data.targets)
            loss.backward()
            optimizer.step()
            recorder.step(loss=loss)
    stay()


def count_rows(folder: Path) -> int:
    """Count the rows of `record_steps`."""
    try:
        return len(Trajectory.load(folder / "run.h5"))
    except FileNotFoundError:  # not begun
        return 0


def call_often(folder: Path, total: int, stay: Callable[[], None]) -> None:
    """Evaluate small surfaces, one after another, by the same two workers."""
    data = load("digits", limit=100)
    objective = Objective(network(data), data)
    plane = random_directions(objective)
    with LocalWorkers(2) as workers:
        for i in range(total):
            evaluate(objective, plane, resolution=21, path=folder / f"{i}.h5", workers=workers, progress=False)
        stay()


def count_files(folder: Path) -> int:
    """Count the surfaces of `call_often`."""
    return len(list(folder.glob("*.h5")))


JOBS = {  # job, what counts its progress, size, size with --quick
    "surface": (fill_surface, count_points, 10_000, 1_600),
    "recording": (record_steps, count_rows, 100_000, 4_000),
    "calls": (call_often, count_files, 200, 10),
}


def train(data: Dataset, epochs: int, path: Path | None) -> Iterator[tuple[float, float]]:
    """Train by a plain loop; yield the seconds of each epoch, and those of them in the recorder's methods.

    Opening the file counts to the first epoch, closing it to the last.
    """
    model = network(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    clock, inside, recorder = time.perf_counter, 0.0, None
    for epoch in range(epochs):
        begin = clock()
        if path and recorder is None:
            recorder = Recorder(path, model, every=len(data) // _BATCH)
            inside += clock() - begin
        for batch in torch.randperm(len(data), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            loss = cross_entropy(model(data.inputs[batch]), data.targets[batch])
            loss.backward()
            optimizer.step()
            if recorder:
                before = clock()
                recorder.step(loss=loss)
                inside += clock() - before
        before = clock()
        if recorder and epoch == epochs - 1:
            recorder.close()
        end = clock()
        yield end - begin, inside + end - before
        inside = 0.0


def measure_overhead(rounds: int, quick: bool) -> dict[str, Any]:
    """Train with and without a recorder, epochs in turn; return seconds of each round and shares in percent."""
    data = load("mnist", limit=2_000 if quick else 50_000)
    epochs = 2 if quick else 20
    seconds = np.zeros((3, rounds))  # without, with, in the recorder
    with tempfile.TemporaryDirectory() as folder:
        list(train(data, 1, None))
        for i in range(rounds):
            plain, recorded = train(data, epochs, None), train(data, epochs, Path(folder) / f"{i}.h5")
            for epoch in range(epochs):
                for turn in (plain, recorded) if (i + epoch) % 2 else (recorded, plain):  # neither is always first
                    taken, inside = next(turn)
                    seconds[int(turn is recorded), i] += taken
                    seconds[2, i] += inside
    without, recorded_in, in_recorder = seconds
    ratio = 100 * (recorded_in / without - 1)
    share = 100 * in_recorder / (recorded_in - in_recorder)
    return {
        "epochs": epochs,
        "steps per epoch": len(data) // _BATCH,
        "seconds without": without.tolist(),
        "seconds with": recorded_in.tolist(),
        "seconds in the recorder": in_recorder.tolist(),
        "added, percent": {"min": ratio.min(), "median": np.median(ratio), "max": ratio.max()},
        "in the recorder, percent": {"min": share.min(), "median": np.median(share), "max": share.max()},
    }


def describe(course: Course) -> dict[str, Any]:
    """Return the numbers of a job, and some hundred looks at it."""
    late = [look for look in course.looks if look.done >= FROM * course.total]
    every = max(1, len(course.looks) // 200)
    return {
        "total": course.total,
        "seconds": course.looks[-1].seconds,
        "looks": len(course.looks),
        "memory after 20 %, MB": late[0].memory / _MB,
        "memory at the end, MB": late[-1].memory / _MB,
        "memory at most, MB": max(look.memory for look in late) / _MB,
        "open files": {"after 20 %": late[0].files, "end": late[-1].files, "most": max(look.files for look in late)},
        "threads": {"after 20 %": late[0].threads, "end": late[-1].threads, "most": max(look.threads for look in late)},
        "course": [asdict(look) for look in course.looks[::every]],
    }


def draw(jobs: dict[str, Any]) -> go.Figure:
    """Draw memory against the share of the work that is done."""
    figure = new_figure("Resident memory of long jobs", ["20 % of the work: from here on nothing may grow"])
    units = {"surface": "points", "recording": "steps recorded", "calls": "calls of evaluate, with two workers"}
    for name, job in jobs.items():
        figure.add_scatter(
            x=[100 * look["done"] / job["total"] for look in job["course"]],
            y=[look["memory"] / _MB for look in job["course"]],
            name=f"{job['total']:,} {units[name]}",
            mode="lines",
        )
    figure.add_vline(x=100 * FROM, line={"dash": "dot", "width": 1})
    figure.update_xaxes(title="work done, %", range=[0, 100])
    figure.update_yaxes(title="resident memory, MB", rangemode="tozero")
    return figure


def tables(results: dict[str, Any]) -> str:
    """Return the numbers as Markdown."""
    parts = []
    if results["jobs"]:
        head = ["job", "size", "seconds", "MB after 20 %", "MB at the end", "MB at most", "open files", "threads"]
        rows = [
            [
                name,
                f"{job['total']:,}",
                f"{job['seconds']:.0f}",
                *(f"{job[f'memory {when}, MB']:.1f}" for when in ("after 20 %", "at the end", "at most")),
                *(f"{job[what]['after 20 %']} to {job[what]['end']}" for what in ("open files", "threads")),
            ]
            for name, job in results["jobs"].items()
        ]
        parts.append(_table(head, rows))
    if overhead := results["overhead"]:
        rows = [
            [what, *(f"{overhead[key][number]:.2f} %" for number in ("median", "min", "max"))]
            for what, key in (
                ("whole time, with against without", "added, percent"),
                ("in the recorder's methods", "in the recorder, percent"),
            )
        ]
        seconds = np.median(overhead["seconds without"])
        parts.append(
            f"{overhead['epochs']} epochs of {overhead['steps per epoch']} steps, {seconds:.1f} s without a recorder; "
            f"{len(overhead['seconds with'])} rounds.\n\n" + _table(["the recorder adds", "median", "min", "max"], rows)
        )
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def main() -> None:
    """Measure, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*JOBS, "overhead"], help="these; others keep their results")
    parser.add_argument("--rounds", type=int, default=10, help="how often training takes its turn")
    parser.add_argument("--quick", action="store_true", help="small: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("results/reliability"), help="folder for the results")
    chosen = parser.parse_args()
    file = chosen.out / "long_runs.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if chosen.only and file.exists() else {}
    jobs, overhead = earlier.get("jobs", {}), earlier.get("overhead")
    only = chosen.only or [*JOBS, "overhead"]
    for name, (job, count, total, few) in JOBS.items():
        if name in only:
            jobs[name] = describe(watch(job, count, few if chosen.quick else total))
    rounds = 2 if chosen.quick else chosen.rounds
    if "overhead" in only:
        overhead = measure_overhead(rounds, chosen.quick)
    results = {"jobs": jobs, "overhead": overhead}
    machine = {
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "landscape": __version__,
    }
    command = f"python scripts/reliability/long_runs.py --rounds {rounds}"  # of all
    text = tables(results)
    facts = "".join(f"- {key}: {value}\n" for key, value in machine.items())
    for suffix, content in (
        ("json", json.dumps({"command": command, "machine": machine, **results}, indent=1, default=float)),
        ("md", f"# Long runs\n\n`{command}`\n\n{text}\n\n## How\n\n{__doc__}\n\n## Where\n\n{facts}"),
    ):
        with replacing(chosen.out / f"long_runs.{suffix}") as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    if jobs:
        save_figure(draw(jobs), chosen.out / "long_runs")
    print(text, flush=True)


if __name__ == "__main__":
    main()

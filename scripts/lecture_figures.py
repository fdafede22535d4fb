"""Make the lecture's figures L1 to L12 and the page that shows them.

    python scripts/lecture_figures.py [--only L7 L8] [--data found|digits|download] [--quick] [--workers 2]
        [--formats html png svg] [--out results/lecture]

Every figure is computed. What takes long is stored below `OUT/_runs` and continued after a stop. Written are
`index.html` with all figures that have been made, each figure as HTML, PNG and SVG, and `lecture.json` and
`lecture.md` with captions and numbers.
"""

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
import torch
from lecture.setting import CHOICES, Drawn, Setting
from tqdm import tqdm

from landscape import report
from landscape.figures import browser_missing, save_figures
from landscape.figures.image import FORMATS
from landscape.interruption import Stopped, ignore_ctrl_c, stoppable, without_ctrl_c
from landscape.storage import replacing

MODULES = {
    "L1": "activations",
    "L2": "step_cost",
    "L3": "vanishing_gradient",
    "L4": "computational_graph",
    "L5": "local_gradients",
    "L6": "differentiation",
    "L7": "two_landscapes",
    "L8": "convexity",
    "L9": "alike_minima",
    "L10": "optimizers",
    "L11": "regularization",
    "L12": "layer_families",
}


def main() -> None:
    """Make the figures that were asked for, then the page of all that there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(MODULES), metavar="L7", help="these figures alone")
    parser.add_argument(
        "--data", choices=CHOICES, default="found", help="found: digits where MNIST or CIFAR-10 are not there (default)"
    )
    parser.add_argument("--quick", action="store_true", help="small: does everything run?")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; default: one per processor"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, help="of single figures; default: all that can be drawn"
    )
    parser.add_argument("--out", type=Path, help="default: results/lecture, or results/lecture_quick")
    chosen = parser.parse_args()
    out = chosen.out or Path("results/lecture_quick" if chosen.quick else "results/lecture")
    keys = [key for key in MODULES if chosen.only is None or key in chosen.only]
    runs = out / "_runs" / store_name(chosen.data, chosen.quick)
    job = Job(runs, chosen.quick, chosen.data)
    if chosen.data == "found" and (absent := missing_data(chosen.data)):
        print(
            f"digits take the place of {' and '.join(absent)}: set LANDSCAPE_DATA to their folder, or --data download"
        )
    seconds = {key: import_module(f"lecture.{MODULES[key]}").SECONDS[chosen.quick] for key in keys}
    with tqdm(total=sum(seconds.values()), bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as bar:

        def show(shares: dict[str, float]) -> None:
            done = sum(seconds[key] * min(1.0, share) for key, share in shares.items())
            bar.update(max(0.0, done - bar.n))

        for key in in_processes(job, seconds, chosen.workers, show):
            bar.set_description(f"{key} made")
            save_figures(figures_of(load(runs, key)["figures"], key), out, chosen.formats)
    made = {key: entry for key in MODULES if (entry := load(runs, key))}
    absent = write_page(made, out, command_of(chosen))
    print(f"{out / 'index.html'}: {', '.join(made)}")
    if absent:
        print(f"not on the page: {', '.join(absent)}, made elsewhere; --only {' '.join(absent)} makes them here")
    if missing := browser_missing():
        print(missing)


@dataclass(frozen=True)
class Job:
    """How figures are made, and where they are stored."""

    runs: Path
    quick: bool
    data: str

    def make(self, key: str, report: Callable[[float], None]) -> None:
        """Draw a figure and store it, with the seconds that it took if nothing was stored before."""
        torch.set_num_threads(1)  # the digits are the same for any number of processes
        folder = self.runs / key
        folder.mkdir(parents=True, exist_ok=True)
        earlier, begin, is_new = load(self.runs, key) or {}, time.perf_counter(), not any(folder.iterdir())
        module = import_module(f"lecture.{MODULES[key]}")
        drawn: Drawn = module.draw(Setting(folder, self.quick, self.data, report))
        entry = {
            "title": module.TITLE,
            "caption": drawn.caption,
            "numbers": drawn.numbers,
            "seconds": time.perf_counter() - begin if is_new else earlier.get("seconds"),
            "figures": {name: json.loads(pio.to_json(figure)) for name, figure in drawn.figures.items()},
        }
        with replacing(self.runs / f"{key}.json") as temporary:
            temporary.write_text(json.dumps(entry), encoding="utf-8")


def in_processes(
    job: Job, seconds: dict[str, float], n_workers: int, show: Callable[[dict[str, float]], None]
) -> Iterator[str]:
    """Make figures in several processes, the longest first, and yield each that is done; with one process, in this one.

    Args:
        job: How.
        seconds: What each figure takes, by its key.
        n_workers: Processes.
        show: Called with the share of each figure that is done.
    """
    order = sorted(seconds, key=lambda key: -seconds[key])
    if n_workers == 1 or len(order) == 1:
        shares = dict.fromkeys(order, 0.0)
        for key in order:
            job.make(key, lambda share, key=key: show(shares | {key: share}))
            shares[key] = 1.0
            show(shares)
            yield key
        return
    context = multiprocessing.get_context("spawn")
    done = context.Array("d", len(order))
    with ProcessPoolExecutor(min(n_workers, len(order)), context, enter, (job, order, done, os.getpid())) as pool:
        with without_ctrl_c():
            waiting = {pool.submit(make_there, i): key for i, key in enumerate(order)}
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                show(dict(zip(order, done, strict=True)))
                for future in finished:
                    future.result()
                    yield waiting.pop(future)
        except BaseException:  # what runs is stopped; it goes on from what is stored
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def enter(job: Job, order: list[str], done: Any, parent: int) -> None:
    """Prepare a process that makes figures; it ends when its parent does, however that ends."""
    _there.update(job=job, order=order, done=done)
    ignore_ctrl_c()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_there(i: int) -> None:
    """Make a figure in a process of the pool; SIGTERM, by which the parent stops it, lets it store its state."""
    job, order, done, stopped_by = _there["job"], _there["order"], _there["done"], None
    try:
        with stoppable(lambda number: None):
            job.make(order[i], lambda share: done.__setitem__(i, share))
    except Stopped as stop:
        stopped_by = stop.number
    if stopped_by is not None:  # here, where nothing that was at work is referred to any more: files are closed
        os._exit(128 + stopped_by)  # the pool is told of it as of any process that died
    done[i] = 1.0


_there: dict[str, Any] = {}  # what `enter` was given


def missing_data(data: str) -> list[str]:
    """Return the data sets in whose place digits are taken."""
    setting = Setting(Path(), data=data)
    return [name for name in ("mnist", "cifar10") if setting.choose(name) != name]


def store_name(data: str, quick: bool) -> str:
    """Return the folder of what is stored: another one where other data or sizes are used."""
    return "_".join(["quick" if quick else "whole", *(f"without_{name}" for name in missing_data(data))])


def load(runs: Path, key: str) -> dict[str, Any] | None:
    """Return a figure that was made before."""
    path = runs / f"{key}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def figures_of(stored: dict[str, dict], key: str) -> dict[str, go.Figure]:
    """Return plotly figures by the name of their files."""
    return {f"{key}_{name}": pio.from_json(json.dumps(figure)) for name, figure in stored.items()}


def write_page(made: dict[str, dict[str, Any]], out: Path, command: str) -> list[str]:
    """Write the page, and captions and numbers as Markdown and JSON; returns the figures that the page has not.

    Those are figures that the same command made elsewhere, with their captions and numbers, but without what the page
    draws: of them, captions and numbers are kept.
    """
    sections = []
    for key, entry in made.items():
        figures = figures_of(entry["figures"], key)
        links = [(path.name, path.name) for name in figures for path in sorted(out.glob(f"{name}.*"))]
        table = [[name, words(value)] for name, value in rows(entry["numbers"])]
        first, *others = figures.values()
        title = f"{key}  {entry['title']}"
        sections.append(
            report.Section(title, entry["caption"], first, further=others, table=table, links=links, folded=True)
        )
    report.page("How networks are trained: the lecture's figures", sections, out / "index.html")
    said = ("title", "caption", "numbers", "seconds")
    facts = {
        key: {name: entry[name] for name in said} | {"figures": list(entry["figures"])} for key, entry in made.items()
    }
    written = out / "lecture.json"
    earlier = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {"command": None}
    kept = earlier["figures"] if earlier["command"] == command else {}
    facts = {key: facts.get(key) or kept[key] for key in MODULES if key in facts or key in kept}
    text = ["# The lecture's figures", "", f"`{command}`; the numbers are in lecture.json.", ""]
    for key, entry in facts.items():
        pictures = [f"![{key}_{name}]({key}_{name}.png)" for name in entry["figures"]]
        text += [f"## {key}  {entry['title']}", "", entry["caption"], "", *pictures, ""]
    contents = {
        "lecture.md": "\n".join(text),
        "lecture.json": json.dumps({"command": command, "figures": facts}, indent=1),
    }
    for name, content in contents.items():
        with replacing(out / name) as temporary:
            temporary.write_text(content.rstrip() + "\n", encoding="utf-8")
    return [key for key in facts if key not in made]


def rows(numbers: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield nested numbers one by one, each with all its names."""
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from rows(value, f"{prefix}{name}: ")
        else:
            yield prefix + name, value


def words(value: object) -> str:
    """Return a number, or a list of numbers, as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(words, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {words(part)}" for name, part in value.items())
    return str(value)


def command_of(chosen: argparse.Namespace) -> str:
    """Return what makes the same again."""
    data = f" --data {chosen.data}" if chosen.data != "found" else ""
    return f"python scripts/lecture_figures.py{data}{' --quick' * chosen.quick}"


def say_stopped(number: int) -> None:
    """Say how to go on."""
    print("stopped; what is done is stored: the same command goes on", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        with stoppable(say_stopped):
            main()
    except Stopped as stop:
        say_stopped(stop.number)
        sys.exit(128 + stop.number)
    except OSError as error:  # a full disk, a folder that may not be written: it says what to do
        sys.exit(f"{error}\nwhat is done is stored: the same command goes on")
    except BrokenProcessPool:
        sys.exit(
            "a process that made figures has died; out of memory? What is done is stored: the same command goes on, "
            "with --workers 1 it takes less"
        )

"""What the benchmarks share: rounds, the rates of this machine, memory, tables, bar charts, files."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from landscape import __version__
from landscape.figures import save_figure
from landscape.figures.style import PALETTE, new_figure
from landscape.storage import replacing

Seconds = Mapping[str, Sequence[float]]
"""Seconds of each contender, one entry per round."""


def options(doc: str, rounds: int) -> argparse.ArgumentParser:
    """Return the command line that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="how often all contenders take their turn")
    parser.add_argument("--quick", action="store_true", help="small and one round: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for the results")
    return parser


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int, *, warm: bool = True) -> dict[str, list[float]]:
    """Let contenders take turns, round after round.

    Args:
        runs: Functions that do the work and return the seconds it took, per unit of work.
        rounds: How many times.
        warm: Whether each runs once before, which does not count.
    """
    if warm:
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    return seconds


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return minimum, median and maximum."""
    return {"min": float(np.min(values)), "median": float(np.median(values)), "max": float(np.max(values))}


def speedup(seconds: Seconds, own: str, others: Sequence[str]) -> dict[str, float]:
    """Return how many times as long the best of the others took in the same round: minimum, median, maximum."""
    best = np.min([seconds[name] for name in others], axis=0)
    return spread(best / np.array(seconds[own]))


def best_of(n: int, work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of `n` runs."""
    best = float("inf")
    for _ in range(n):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


@dataclass(frozen=True)
class Rates:
    """What this machine reaches with all threads, the best of many tries.

    Attributes:
        products: flop/s of a float32 matrix product, 2048 x 2048.
        memory: bytes/s read and written by `y += x` on arrays of 128 MB.
        cache: The same, on arrays of 512 KB per thread, together less than a core's second-level cache usually has.
    """

    products: float
    memory: float
    cache: float


def measure_rates() -> Rates:
    """Measure products, memory and cache."""
    n = 2048
    a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    products = 2 * n**3 / best_of(10, lambda: torch.mm(a, b, out=c))
    rates = []
    for floats, repeats in ((2**25, 1), (2**17 * torch.get_num_threads(), 200)):
        x, y = torch.ones(floats), torch.ones(floats)

        def add(x: torch.Tensor = x, y: torch.Tensor = y, repeats: int = repeats) -> None:
            for _ in range(repeats):
                y.add_(x)

        rates.append(3 * 4 * floats * repeats / best_of(10, add))
    return Rates(products, *rates)


def machine_facts(*, rounds: int, **measured: float) -> dict[str, Any]:
    """Return what the numbers depend on: processor, threads, versions, and what was measured."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "landscape": __version__,
        "rounds": rounds,
        **{name: float(f"{value:.4g}") for name, value in measured.items()},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory(work: Callable[[], object]) -> float | None:
    """Return by how many bytes the resident memory of this process rises above what it is, at most, during some work.

    Meant for a process of its own, see `in_process`: what was freed before and is used again does not show. None where
    the system does not tell (anything but Linux).
    """
    try:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return None
    work()
    return float(_status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def in_process(*arguments: str) -> Any:
    """Run the script again with other arguments, in a process of its own, and return the JSON that it prints."""
    command = [sys.executable, sys.argv[0], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def silent():
    """Swallow what others print."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Return three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def span(values: Mapping[str, float], scale: float = 1.0) -> str:
    """Return `median (minimum to maximum)`, or the median where they are all one."""
    median, low, high = (number(scale * values[key]) for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


def bars(
    title: str,
    unit: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    scale: float = 1.0,
    log: bool = True,
    notes: Sequence[str] = (),
) -> go.Figure:
    """Draw medians as bars, with minimum and maximum, and the median in words above.

    Args:
        title: Of the figure.
        unit: What a bar is, in words.
        groups: Names of the groups of bars.
        series: By contender, what `spread` returned for each group.
        scale: Factor from the numbers to the unit.
        log: On a logarithmic axis, or from zero.
        notes: Shown below the title.
    """
    figure = new_figure(title, notes)
    for (name, spreads), color in zip(series.items(), cycle(PALETTE), strict=False):
        low, middle, high = (scale * np.array([s[key] for s in spreads]) for key in ("min", "median", "max"))
        figure.add_bar(
            name=name,
            x=list(groups),
            y=middle,
            offsetgroup=name,
            marker={"color": color},
            error_y={"array": high - middle, "arrayminus": middle - low, "thickness": 1, "width": 3},
        )
        figure.add_scatter(  # a bar's own text would lie on its error bar
            x=list(groups),
            y=high,
            mode="text",
            text=[f"{value:.2g}" if value < 10 else f"{value:,.0f}" for value in middle],
            textposition="top center",
            textfont={"size": 11},
            offsetgroup=name,
            hoverinfo="skip",
            showlegend=False,
        )
    ends = [scale * s[key] for spreads in series.values() for s in spreads for key in ("min", "max")]
    if log:
        least, most = np.log10(min(ends)), np.log10(max(ends))
        figure.update_yaxes(type="log", dtick=1, range=[least - 0.3, most + 0.05 * (most - least) + 0.15])
    else:
        figure.update_yaxes(range=[0, 1.1 * max(ends)])
    figure.update_yaxes(title=unit)
    figure.update_layout(barmode="group", scattermode="group", bargap=0.15, scattergap=0.15, showlegend=len(series) > 1)
    return figure


def write(
    out: Path, name: str, doc: str, machine: Mapping[str, Any], results: Any, tables: str, figure: go.Figure
) -> None:
    """Write `name.json`, `name.md`, and the bar chart as `name.html`, `.png`, `.svg`.

    Args:
        out: The folder.
        name: Of the benchmark.
        doc: What was measured and how, the script's docstring.
        machine: See `machine_facts`.
        results: The numbers (JSON-able).
        tables: Markdown.
        figure: The bar chart.
    """
    words = [*sys.argv, "--"]
    if "--only" in words:  # the others keep their results: what is written is of all
        first = words.index("--only")
        del words[first : next(i for i in range(first + 1, len(words)) if words[i].startswith("--"))]
    command = shlex.join(["python", *words[:-1]])
    facts = "".join(f"- {key}: {value}\n" for key, value in machine.items())
    content = {"command": command, "machine": machine, "results": results}
    for suffix, text in (
        ("json", json.dumps(content, indent=1, default=float)),
        ("md", f"# {name}\n\n`{command}`\n\n{tables}\n\n## How\n\n{doc}\n\n## Where\n\n{facts}"),
    ):
        with replacing(out / f"{name}.{suffix}") as temporary:
            temporary.write_text(text + "\n")
    save_figure(figure, out / name)
    print(tables, flush=True)


def rates_measured(rates: Rates) -> dict[str, float]:
    """Return the rates in the units that people use, by name."""
    units = {"products": "Gflop/s", "memory": "GB/s", "cache": "GB/s"}
    return {f"{name}, {units[name]}": value / 1e9 for name, value in asdict(rates).items()}

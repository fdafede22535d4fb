"""Count the minima of functions whose number is known, by restarts from random points of a box.

First, the whole chain (restarts, polish, certify, identify) on each function of the table of the tests: how many of the
known minima it finds, whether it takes one for two or two for one, and the interval for the number of all.

Second, the three-dimensional Schwefel function, 343 minima in the open box: many independent repetitions of a few
hundred descents each, and the share of them in which the interval for the number contains 343. Unlike
`unseen_minima.py`, which draws hits of basins, these are real descents, whose basins are those of a trust region.

Descents that leave the box are not counted. Runs are kept; a second call goes on where the first one stopped.

    python scripts/studies/known_minima.py [--quick] [--workers 2] [--out results/studies]
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscape.figures import save_figure
from landscape.figures.style import INK, PALETTE, new_figure
from landscape.minima.polish import polish_many
from landscape.minima.survey import survey_minima
from landscape.objective import Objective
from landscape.restarts import run_restarts
from landscape.statistics import unseen, write_csv
from landscape.statistics.hits import INTERVALS
from landscape.storage import replacing

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from problems import KNOWN_MINIMA, KnownMinima, one_sample

SIZES = (100, 200, 300, 500, 1000)
CHUNK = 5000
MATCH = 1e-4  # of the box: the table has 4 to 6 digits
LEVEL = 0.95


class Point(nn.Module):
    """Its output are its parameters, so that the loss can be any function of them."""

    def __init__(self, x: np.ndarray) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.from_numpy(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the parameters, once per sample."""
        return self.x.expand(len(x), -1)


class Start:
    """From a seed to a random point of the box."""

    def __init__(self, box: np.ndarray) -> None:
        self.box = box

    def __call__(self, seed: int) -> Point:
        """Return the point as a module."""
        return Point(np.random.default_rng(seed).uniform(self.box[:, 0], self.box[:, 1]))


class Function:
    """A function of the coordinates as a loss."""

    def __init__(self, problem: KnownMinima) -> None:
        self.problem = problem

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the value, the mean over samples."""
        return self.problem.function(*output.unbind(1)).mean()

    def __repr__(self) -> str:
        return self.problem.name


def nearest(problem: KnownMinima, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the known minimum at each point, -1 for none, and whether the point lies in the open box."""
    low, high = np.array(problem.box).T
    distances = np.abs(points[:, None] - problem.minima).max(axis=2)
    found = np.where(distances.min(axis=1) < MATCH * (high - low).max(), distances.argmin(axis=1), -1)
    return found, ((points > low) & (points < high)).all(axis=1)


def chain(problem: KnownMinima, runs: int, arguments: argparse.Namespace) -> dict:
    """Return what the whole chain finds."""
    stem = arguments.out / "known_minima_runs" / problem.name.replace(" ", "_").lower()
    make, loss = Start(np.array(problem.box, dtype=float)), Function(problem)
    settings = {"gd": {"learning_rate": 1e-9, "epochs": 1}}
    options = {"settings": settings, "seeds": runs, "batch": 500, "workers": arguments.workers}
    study = run_restarts(make, one_sample(), f"{stem}.h5", loss=loss, **options)
    options = {"batch": 100, "workers": arguments.workers}
    catalog = survey_minima(study, make(0), one_sample(), f"{stem}_minima.h5", loss=loss, **options)
    counted = catalog.labels >= 0
    known, inside = nearest(problem, catalog.thetas())
    chosen = counted & inside
    pairs = set(zip(catalog.labels[chosen].tolist(), known[chosen].tolist(), strict=True))
    labels, places = {label for label, _ in pairs}, {place for _, place in pairs}
    estimate = unseen(np.bincount(catalog.labels[chosen]))
    return {
        "function": problem.name,
        "runs": runs,
        "certified in the box": int(chosen.sum()),
        "known": len(problem.minima),
        "found": len(places - {-1}),
        "counted": len(labels),
        "taken for two": len(pairs) - len(places),
        "taken for one": len(pairs) - len(labels),
        "not in the table": int((known[chosen] < 0).sum()),
        "Chao1": estimate.number.value,
        "lower": estimate.number.lower,
        "upper": estimate.number.upper,
        "coverage": estimate.coverage.value,
    }


def pool(problem: KnownMinima, n: int, folder: Path) -> np.ndarray:
    """Descend from n random points of the box; return the number of the minimum of each, -1 for none in the box."""
    box = np.array(problem.box, dtype=float)
    objective = Objective(Start(box)(0), one_sample(), loss=Function(problem), metrics={})
    labels = []
    for i in tqdm(range(-(-n // CHUNK)), desc=f"{problem.name}, {n:,} descents", unit="chunk"):
        path = folder / f"{problem.name.lower()}_{i:03d}.npy"
        if not path.exists():
            starts = np.random.default_rng([1, i]).uniform(box[:, 0], box[:, 1], (CHUNK, len(box)))
            ends = polish_many(objective, torch.from_numpy(starts), max_steps=200, progress=False)
            found, inside = nearest(problem, np.stack([end.theta.numpy() for end in ends]))
            done = np.array([end.status == "converged" for end in ends])
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, np.where(inside & done, found, -1))
        labels.append(np.load(path))
    return np.concatenate(labels)[:n]


def coverage(labels: np.ndarray, n_minima: int, runs: int, most: int) -> dict:
    """Return how often the intervals contain the truth, in disjoint repetitions of so many runs."""
    repetitions = labels[: len(labels) // runs * runs].reshape(-1, runs)[:most]
    rows = []
    for ends in tqdm(repetitions, desc=f"{runs} runs", unit="repetition"):
        hits = np.bincount(ends[ends >= 0], minlength=n_minima)
        row = {"in the box": hits.sum(), "seen": (hits > 0).sum()}
        for interval in INTERVALS:
            number = unseen(hits, interval=interval, level=LEVEL, n_resamples=200).number
            row[interval] = number.lower <= n_minima <= number.upper
            if interval == "likelihood":
                row |= {"Chao1": number.value, "lower": number.lower, "upper": number.upper}
        rows.append(row)
    k, n = sum(bool(row["likelihood"]) for row in rows), len(rows)
    exact = stats.binomtest(k, n).proportion_ci(0.95)
    middle = {name: float(np.median([row[name] for row in rows])) for name in ("lower", "upper")}
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name not in middle}
    return {"runs": runs, "repetitions": n, **means, **middle, "share lower": exact.low, "share upper": exact.high}


def plot(rows: list[dict]) -> go.Figure:
    """Draw the share of repetitions in which each interval contains the truth."""
    figure = new_figure(
        "intervals for the number of minima: how often they are right",
        ["Schwefel function, 3-D, 343 minima, real descents", f"dashed: {100 * LEVEL:g} %, as claimed"],
    )
    for interval, color, symbol in zip(INTERVALS, PALETTE, ("circle", "square", "diamond"), strict=False):
        share = np.array([row[interval] for row in rows])
        error = None
        if interval == INTERVALS[0]:
            ends = [100 * (np.array([row[f"share {end}"] for row in rows]) - share) for end in ("upper", "lower")]
            error = {"array": ends[0], "arrayminus": -ends[1], "symmetric": False}
        figure.add_trace(
            go.Scatter(
                x=[str(row["runs"]) for row in rows],
                y=100 * share,
                error_y=error,
                mode="lines+markers",
                line={"color": color, "width": 2.5},
                marker={"symbol": symbol, "size": 10},
                name=interval + " (default)" * (interval == INTERVALS[0]),
            )
        )
    figure.add_hline(y=100 * LEVEL, line={"color": INK, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(title_text="descents per repetition", type="category")
    figure.update_yaxes(title_text="repetitions whose interval contains 343 (%)", range=[-3, 103])
    return figure


def text(arguments: argparse.Namespace, table: list[dict], rows: list[dict]) -> str:
    """Return the study as Markdown."""
    lines = [
        "# Functions whose minima are known",
        "",
        f"`python scripts/studies/known_minima.py{' --quick' * arguments.quick}`",
        "",
        "Restarts from uniform points of the box; each is polished, certified and identified like a network. Descents "
        "that leave the box are not counted. `twice`: known minima that were counted as two; `merged`: minima counted "
        "as one though they are two.",
        "",
        "| function | runs | in the box | known | found | counted | twice | merged | not in the table | Chao1 "
        "| coverage |",
        "|" + " --- |" * 11,
    ]
    for row in table:
        names = ("function", "runs", "certified in the box", "known", "found", "counted", "taken for two")
        cells = [*(row[name] for name in names), row["taken for one"], row["not in the table"]]
        cells += [f"{row['Chao1']:.1f} ({row['lower']:.1f} to {row['upper']:.1f})", f"{row['coverage']:.4f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "## Schwefel, three-dimensional: 343 minima",
        "",
        f"Disjoint repetitions of real descents. Shares of repetitions in which the interval contains 343, "
        f"{LEVEL:.0%} claimed; in brackets the exact binomial 95 % interval of that share. Ends of the default "
        "interval: medians.",
        "",
        "| descents | repetitions | end in the box | minima seen | Chao1 | interval | contains 343 | log-normal "
        "| bootstrap |",
        "|" + " --- |" * 9,
    ]
    for row in rows:
        cells = [row["runs"], row["repetitions"], f"{row['in the box']:.0f}", f"{row['seen']:.0f}"]
        cells += [f"{row['Chao1']:.0f}", f"{row['lower']:.0f} to {row['upper']:.0f}"]
        cells += [f"{row['likelihood']:.1%} ({row['share lower']:.1%} to {row['share upper']:.1%})"]
        cells += [f"{row['log-normal']:.1%}", f"{row['bootstrap']:.1%}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the study and write its tables and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40, help="of the chain, per known minimum")
    parser.add_argument("--descents", type=int, default=60_000, help="of the Schwefel function")
    parser.add_argument("--repetitions", type=int, default=200, help="at most, for each number of runs")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--quick", action="store_true", help="small: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("results/studies"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.descents, arguments.repetitions = 10, 5000, 10
    start = time.perf_counter()
    few = [p for p in KNOWN_MINIMA.values() if len(p.minima) <= (12 if arguments.quick else 121)]
    table = [chain(p, max(20, min(arguments.runs * len(p.minima), 2000)), arguments) for p in few]
    schwefel = KNOWN_MINIMA["Schwefel-3"]
    labels = pool(schwefel, arguments.descents, arguments.out / "known_minima_runs")
    rows = [coverage(labels, len(schwefel.minima), n, arguments.repetitions) for n in SIZES]
    seconds = time.perf_counter() - start
    write_csv(arguments.out / "known_minima.csv", table)
    write_csv(arguments.out / "known_minima_schwefel.csv", rows)
    settings = {name: getattr(arguments, name) for name in ("runs", "descents", "repetitions", "quick")}
    result = {"settings": settings, "seconds": seconds, "functions": table, "Schwefel-3": rows}
    for name, content in {
        "known_minima.md": text(arguments, table, rows),
        "known_minima.json": json.dumps(result, indent=1),
    }.items():
        with replacing(arguments.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    save_figure(plot(rows), arguments.out / "known_minima", ("html", "png"))


if __name__ == "__main__":
    main()

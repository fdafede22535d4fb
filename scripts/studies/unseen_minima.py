"""Measure how often the intervals for the number of minima contain it, for landscapes whose number is known.

Restarts are drawn as hits of basins with known volumes: the three-dimensional Schwefel function (343 minima in the
open box; basins lie between the maxima of each axis, so that volumes are products of three widths and span a factor
of 340), and 343 equal, broken-stick, log-normal and Zipf volumes, drawn anew in each repetition where they are random.
For each interval: the share of repetitions in which it contains the number, against 95 % claimed; and the same for the
share of the landscape that the minima found cover.

    python scripts/studies/unseen_minima.py [--repetitions 100] [--out results/statistics]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from landscape.statistics import unseen, write_csv
from landscape.statistics.hits import INTERVALS
from landscape.storage import replacing

N_MINIMA = 343
RUNS = (100, 200, 300, 500, 1000)
# the basins of the 1-D Schwefel function whose minimum lies inside (-500, 500), between its maxima
EDGES = [-420.9687, -203.8143, -65.5479, -5.2392, 25.8774, 124.8294, 302.5249, 500.0]


def schwefel(rng: np.random.Generator) -> np.ndarray:
    """Return the volumes of the 7^3 basins."""
    widths = np.diff(EDGES)
    return np.einsum("i,j,k->ijk", widths, widths, widths).ravel()


VOLUMES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "Schwefel, 3-D": schwefel,
    "equal": lambda rng: np.ones(N_MINIMA),
    "broken stick": lambda rng: rng.exponential(size=N_MINIMA),
    "log-normal, sigma 1": lambda rng: rng.lognormal(0, 1, N_MINIMA),
    "log-normal, sigma 2": lambda rng: rng.lognormal(0, 2, N_MINIMA),
    "Zipf": lambda rng: 1 / np.arange(1, N_MINIMA + 1),
}


def measure(volumes: Callable, n_runs: int, repetitions: int, seed: int) -> dict[str, float]:
    """Return the shares of repetitions in which the intervals contain the truth."""
    rng = np.random.default_rng([seed, n_runs])
    rows = []
    for _ in range(repetitions):
        p = volumes(rng)
        p = p / p.sum()
        hits = rng.multinomial(n_runs, p)
        row = {}
        for interval in INTERVALS:
            result = unseen(hits, interval=interval, n_resamples=200)
            row[interval] = result.number.lower <= N_MINIMA <= result.number.upper
            if interval == "likelihood":
                row |= {
                    "observed": result.observed,
                    "chao1": result.number.value,
                    "lower": result.number.lower,
                    "upper": result.number.upper,
                    "no upper limit": np.isinf(result.number.upper),
                    "coverage": result.coverage.lower <= p[hits > 0].sum() <= result.coverage.upper,
                }
        rows.append(row)
    kept = {"observed": np.mean, "chao1": np.mean, "lower": np.median, "upper": np.median}
    return {name: float(kept.get(name, np.mean)([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    """Run the study and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("results/statistics"))
    arguments = parser.parse_args()
    cells = [(name, n) for name in VOLUMES for n in RUNS]
    rows = []
    for name, n in tqdm(cells, unit="cell"):
        rows.append({"volumes": name, "runs": n, **measure(VOLUMES[name], n, arguments.repetitions, seed=0)})
    write_csv(arguments.out / "unseen_minima.csv", rows)
    with replacing(arguments.out / "unseen_minima.md") as temporary:
        temporary.write_text(table(rows, arguments.repetitions), encoding="utf-8")


def table(rows: list[dict], repetitions: int) -> str:
    """Return the study as Markdown."""
    head = ["volumes", "runs", "minima seen", "Chao1", "likelihood interval", "without upper limit"]
    head += ["contains 343: likelihood", "log-normal", "bootstrap", "coverage interval right"]
    lines = [
        f"`python scripts/studies/unseen_minima.py --repetitions {repetitions}`: 343 minima, 95 % claimed, means over "
        "repetitions, of the likelihood interval the median ends.",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---"] * len(head)) + " |",
    ]
    for row in rows:
        cells = [
            row["volumes"],
            str(row["runs"]),
            f"{row['observed']:.0f}",
            f"{row['chao1']:.0f}",
            f"{row['lower']:.0f} to {row['upper']:.0f}",
            *(f"{row[name]:.0%}" for name in ("no upper limit", *INTERVALS, "coverage")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

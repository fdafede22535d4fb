"""Time how the evaluation of surfaces scales: points x 1, 4, 16, samples x 1, 4, 16, one process and two.

Networks A, B and D of evaluation.py, not trained, on real data from the folder that LANDSCAPE_DATA names. Each time is
that of `evaluate` for a whole grid, loss and accuracy, with all that comes before the first point; two processes, which
share the threads, are kept from one surface to the next. Points grow at the middle number of samples, samples at the
middle number of points. Cases take turns in rounds.

    python scripts/benchmarks/scaling.py [--rounds 3] [--quick] [--out results/benchmarks]
"""

import time
from collections.abc import Callable

import numpy as np
from harness import bars, interleaved, machine_facts, options, span, spread, table, write
from torch import nn
from workloads import make

from landscape import evaluate, random_directions
from landscape.data import Dataset
from landscape.objective import Objective
from landscape.workers import LocalWorkers

FACTORS = (1, 4, 16)
SIZES = {"A": (3125, 8), "B": (625, 8), "D": (32, 2)}  # samples and points along an axis, of the smallest case


def timed(model: nn.Module, data: Dataset, side: int, workers: int | LocalWorkers) -> Callable[[], float]:
    """Return a function that evaluates a grid and returns the seconds that took."""
    objective = Objective(model, data)
    plane = random_directions(objective)

    def run() -> float:
        begin = time.perf_counter()
        evaluate(objective, plane, resolution=side, workers=workers, progress=False)
        return time.perf_counter() - begin

    return run


def measure(name: str, rounds: int, quick: bool, team: LocalWorkers) -> list[dict]:
    """Return the cases of one network with their seconds."""
    n_first, side_first = SIZES[name]
    n_first //= 8 if quick else 1
    middle = FACTORS[1]
    cases = {}
    for points, samples in dict.fromkeys([(f, middle) for f in FACTORS] + [(middle, f) for f in FACTORS]):
        side = side_first * round(np.sqrt(points))
        model, data = make(name, n_samples=n_first * samples, trained=False)
        for processes, workers in ((1, 1), (2, team)):
            cases[points, samples, processes] = (side, data, timed(model, data, side, workers))
    seconds = interleaved({key: case[2] for key, case in cases.items()}, rounds, warm=False)
    found = []
    for (points, samples, processes), (side, data, _) in cases.items():
        n_points, n_samples = side**2, len(data)
        per_point = np.array(seconds[points, samples, processes]) / n_points
        found.append(
            {
                "network": name,
                "points x": points,
                "samples x": samples,
                "points": n_points,
                "samples": n_samples,
                "processes": processes,
                "seconds per point": spread(per_point),
                "seconds per point and sample": spread(per_point / n_samples),
            }
        )
    return found


def tables(results: list[dict]) -> str:
    """Return the results as a Markdown table."""
    rows = [
        [case["network"], f"{case['points']:,}", f"{case['samples']:,}", str(case["processes"]),
         span(case["seconds per point"], 1e3), span(case["seconds per point and sample"], 1e6)]
        for case in results
    ]  # fmt: skip
    head = ["", "points", "samples", "processes", "ms per point", "µs per point and sample"]
    return "Median (minimum to maximum) over rounds.\n\n" + table(head, rows)


def main() -> None:
    """Measure and write `scaling.json`, `.md`, `.html` and pictures."""
    chosen = options(__doc__, rounds=3).parse_args()
    rounds = 1 if chosen.quick else chosen.rounds
    results = []
    with LocalWorkers(2) as team:
        timed(*make("F", quick=True, trained=False), 2, team)()  # starts the processes
        for name in SIZES:
            results += measure(name, rounds, chosen.quick, team)
            print(name, flush=True)
    cases = [case for case in results if case["processes"] == 1]
    series = {
        name: [case["seconds per point and sample"] for case in results if case["processes"] == n]
        for n, name in ((1, "1 process"), (2, "2 processes"))
    }
    figure = bars(
        "How the time of a surface grows", "microseconds per point and sample",
        [f"{case['network']}, {case['points']:,}<br>x {case['samples']:,}" for case in cases], series, scale=1e6,
        notes=["Points x samples; whole surfaces, setup included. Bars of one height: time grows like the work."],
    )  # fmt: skip
    write(chosen.out, "scaling", __doc__, machine_facts(rounds=rounds), results, tables(results), figure)


if __name__ == "__main__":
    main()

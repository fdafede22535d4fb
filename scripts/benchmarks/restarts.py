"""Time the training of 100 restarts with Adam, together and one after another.

Two networks: 64-32-10 tanh on scikit-learn's digits (1,437 samples, batches of 64), and the lecture's
784-10-10-10-10-10 tanh on MNIST (2,000 samples, batches of 50, from the folder that LANDSCAPE_DATA names).

- train_many: one batched computation, every network with its own order of the samples; also with one order for all.
- train_many, 2 processes: half of the networks in each, on one thread, as `run_restarts(workers=2)` does it; the
  processes are there before the clock starts, here and below.
- loop: each network by itself, a plain loop over torch.optim.Adam with the same initial parameters and batches; with
  all threads and with one, and the better of the two in each round counts.
- loop, 2 processes: the same loop in two processes of one thread, half of the networks each.

All evaluate the loss on the whole data before and after training. Seconds are divided by the number of steps of single
networks. Training amplifies rounding: where the learning rate is high, networks with the same samples end apart.
Contenders take turns in rounds, and ratios are taken within a round.

    python scripts/benchmarks/restarts.py [--rounds 4] [--quick] [--out results/benchmarks]
"""

import copy
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from harness import bars, interleaved, machine_facts, options, span, speedup, spread, table, write
from torch import nn
from torch.nn import functional as F

from landscape import train_many
from landscape.data import Dataset, load
from landscape.models import build

OWN, SHARED, HALVES = "train_many", "train_many, shared order", "train_many, 2 processes"
OURS = (OWN, HALVES, SHARED)
LOOPS = ("loop, all threads", "loop, 1 thread")
PROCESSES = "loop, 2 processes"


@dataclass(frozen=True)
class Study:
    """Networks, data and how they are trained."""

    title: str
    arguments: dict[str, Any]
    data: str
    n_samples: int
    batch: int
    epochs: int
    learning_rate: float

    def network(self, seed: int) -> nn.Module:
        """Return a fresh network."""
        return build("mlp", seed=seed, **self.arguments)

    def load(self) -> Dataset:
        """Return the data."""
        return load(self.data, limit=self.n_samples)


STUDIES = {
    "digits": Study(
        "64-32-10 tanh, digits", {"input_shape": [1, 8, 8], "classes": 10, "widths": [32]}, "digits", 1437, 64, 10, 0.01
    ),
    "lecture": Study(
        "784-10-10-10-10-10 tanh, MNIST", {"input_shape": [1, 28, 28], "classes": 10}, "mnist", 2000, 50, 4, 0.001
    ),
}


def batches_of(n: int, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the samples of each step of an epoch, in the order that `train` documents for a seed."""
    permutation = np.random.default_rng([seed, epoch, 0]).permutation(n)
    return np.split(permutation, range(size, n, size))


def loop(study: Study, data: Dataset, networks: Sequence[nn.Module], seeds: Sequence[int]) -> list[float]:
    """Train copies of the networks one after another; return their losses."""
    losses = []
    for original, seed in zip(networks, seeds, strict=True):
        network = copy.deepcopy(original)
        optimizer = torch.optim.Adam(network.parameters(), lr=study.learning_rate)
        evaluate(network, data)  # train_many does so, too
        for epoch in range(study.epochs):
            for rows in batches_of(len(data), study.batch, seed, epoch):
                index = torch.from_numpy(rows)
                optimizer.zero_grad()
                F.cross_entropy(network(data.inputs[index]), data.targets[index]).backward()
                optimizer.step()
        losses.append(evaluate(network, data))
    return losses


def evaluate(network: nn.Module, data: Dataset) -> float:
    """Return the loss on all data."""
    with torch.no_grad():
        return F.cross_entropy(network(data.inputs), data.targets).item()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def prepared(name: str, n: int) -> tuple[Study, Dataset, list[nn.Module]]:
    """Return a study, its data and its networks; they are kept, so that no clock runs while they are made."""
    study = STUDIES[name]
    return study, study.load(), [study.network(seed) for seed in range(n)]


def share(name: str, n: int, seeds: range) -> list[float]:
    """Train some of the networks in this process, on one thread; return their losses."""
    study, data, networks = prepared(name, n)
    with threads(1):
        return loop(study, data, networks[seeds.start : seeds.stop], seeds)


def together(name: str, n: int, batch_order: str, seeds: range) -> np.ndarray:
    """Train networks by `train_many`; return their losses."""
    study, data, networks = prepared(name, n)
    ensemble = train_many(
        networks[seeds.start : seeds.stop], data, seeds=seeds, metrics={}, optimizer="adam",
        learning_rate=study.learning_rate, batch_size=study.batch, epochs=study.epochs, evaluate_every=study.epochs,
        batch_order=batch_order, progress=False,
    )  # fmt: skip
    return ensemble.history["loss"][:, -1]


def half_together(name: str, n: int, seeds: range) -> np.ndarray:
    """Train half of the networks by `train_many` in this process, on one thread; return their losses."""
    with threads(1):
        return together(name, n, "own", seeds)


def measure(name: str, n: int, rounds: int, pool: Executor) -> dict:
    """Run one study: all contenders in turn, round after round."""
    study, data, networks = prepared(name, n)
    losses: dict[str, np.ndarray] = {}
    n_steps = n * study.epochs * len(batches_of(len(data), study.batch, 0, 0))

    def timed(key: str, train: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            losses[key] = np.array(train())
            return (time.perf_counter() - begin) / n_steps

        return run

    def in_processes(train: Callable[[str, int, range], Sequence[float]]) -> list[float]:
        halves = [pool.submit(train, name, n, seeds) for seeds in (range(n // 2), range(n // 2, n))]
        return [loss for half in halves for loss in half.result()]

    runs = {
        OWN: lambda: together(name, n, "own", range(n)),
        SHARED: lambda: together(name, n, "shared", range(n)),
        HALVES: lambda: in_processes(half_together),
        LOOPS[0]: lambda: loop(study, data, networks, range(n)),
        LOOPS[1]: lambda: share(name, n, range(n)),
        PROCESSES: lambda: in_processes(share),
    }
    seconds = interleaved({key: timed(key, run) for key, run in runs.items()}, rounds)
    alone = losses[LOOPS[1]]
    return {
        "study": f"{study.title}, {n} networks, {n_steps // n} steps",
        "seconds per network and step": {key: spread(values) for key, values in seconds.items()},
        "against the loop": {key: speedup(seconds, key, LOOPS) for key in OURS},
        "against two processes": {key: speedup(seconds, key, [PROCESSES]) for key in OURS},
        "relative difference of the final losses": {
            key: spread(np.abs(losses[key] / alone - 1)) for key in OURS if key != SHARED
        },
    }


def tables(results: dict) -> str:
    """Return the results as Markdown tables."""
    keys = (*OURS, *LOOPS, PROCESSES)
    rows = [
        [entry["study"], *(span(entry["seconds per network and step"][key], 1e6) for key in keys)]
        for entry in results.values()
    ]
    ratios = [
        [entry["study"], key, span(entry["against the loop"][key]), span(entry["against two processes"][key]),
         f"{entry['relative difference of the final losses'][key]['max']:.0e}" if key != SHARED else "another order"]
        for entry in results.values() for key in OURS
    ]  # fmt: skip
    return "\n\n".join(
        [
            "Microseconds per step of one network, median (minimum to maximum) over rounds.",
            table(["", *keys], rows),
            "How many times as fast, and the largest relative difference of a final loss from the loop's.",
            table(["", "", "than the loop", "than two processes", "difference"], ratios),
        ]
    )


def main() -> None:
    """Measure and write `restarts.json`, `.md`, `.html` and pictures."""
    chosen = options(__doc__, rounds=4).parse_args()
    rounds, n = (1, 6) if chosen.quick else (chosen.rounds, 100)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = {name: measure(name, n, rounds, pool) for name in STUDIES}
    entries = [entry["seconds per network and step"] for entry in results.values()]
    series = {key: [entry[key] for entry in entries] for key in (*OURS, *LOOPS, PROCESSES)}
    figure = bars(
        f"Training {n} networks with Adam", "microseconds per step of one network",
        [STUDIES[name].title for name in results], series, scale=1e6,
        notes=["Median over rounds, with minimum and maximum."],
    )  # fmt: skip
    write(chosen.out, "restarts", __doc__, machine_facts(rounds=rounds), results, tables(results), figure)


if __name__ == "__main__":
    main()

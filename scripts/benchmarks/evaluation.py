"""Time the evaluation of surfaces against the best peers and the floor of this machine.

Five workloads on real data (MNIST and CIFAR-10, from the folder that LANDSCAPE_DATA names). All contenders compute the
same loss; they take turns in rounds, and ratios are taken within a round, since the speed of a shared machine drifts.

- landscape: the plan that is chosen by itself. Matching, tuning and checking it is timed apart, once per surface.
- functional_call: torch's own call at one point after the other, with the best chunk size: our reference plan.
- loss-landscapes (PyPI): `random_plane` with the whole data as one tensor.
- losscape (PyPI): `_set_weights` and `compute_loss` on preloaded batches of 128.

The floor is the time that the multiplications left after the affine first layer would take at the rate of a large
float32 matrix product, measured here.

    python scripts/benchmarks/evaluation.py [--rounds 5] [--only A B] [--out results/benchmarks]
"""

import argparse
import copy
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import loss_landscapes
import numpy as np
import plotly.graph_objects as go
import torch
from loss_landscapes.metrics import Loss
from losscape.compute_loss import compute_loss
from losscape.create_directions import create_random_directions
from losscape.create_landscape import _set_weights
from torch import nn
from torch.nn import functional as F

from landscape.data import Dataset, load
from landscape.directions import random_directions
from landscape.evaluation import make_plan
from landscape.figures import save_figure
from landscape.figures.style import new_figure
from landscape.models import build
from landscape.objective import Objective
from landscape.storage import replacing

MNIST = {"input_shape": [1, 28, 28], "classes": 10}
WIDE = {"widths": [256, 256], "activation": "relu"}
WORKLOADS = {
    "A": ("784-10-10-10-10-10 tanh, 50,000 MNIST", "mlp", MNIST, "mnist", 50_000, 64),
    "B": ("784-256-256-10 ReLU, 10,000 MNIST", "mlp", {**MNIST, **WIDE}, "mnist", 10_000, 32),
    "C": ("LeNet-5 ReLU, 5,000 MNIST", "lenet", {**MNIST, "activation": "relu"}, "mnist", 5_000, 16),
    "D": ("ResNet-20, 1,000 CIFAR-10", "resnet", {"depth": 20}, "cifar10", 1_000, 3),
    "E": ("ResNet-56, 500 CIFAR-10", "resnet", {"depth": 56}, "cifar10", 500, 2),
}  # fmt: skip
FAR = np.array([0.7, -0.6])


def contenders(model: nn.Module, data: Dataset, n: int) -> tuple[dict[str, Callable[[], float]], dict]:
    """Return functions that evaluate some points and say how many seconds each took, and what was found on the way."""
    objective = Objective(model, data, metrics={})
    plane = random_directions(objective)
    start = time.perf_counter()
    plan = make_plan(objective, plane)
    setup = time.perf_counter() - start
    reference = make_plan(objective, plane, engine="reference")
    points = np.random.default_rng(0).uniform(-1, 1, (n, 2))
    few = points[: max(2, n // 8)]
    wide = Objective(model, data, metrics={}, dtype=torch.float64, chunk_size=objective.chunk_size)
    wide_plane = type(plane)(wide.origin, plane.directions.double(), plane.info, plane.extent)
    truth = make_plan(wide, wide_plane, engine="reference")
    errors = {
        place: abs(plan.values(at[None])["loss"][0] / truth.values(at[None])["loss"][0] - 1)
        for place, at in (("center", np.zeros(2)), ("far", FAR))
    }

    def timed(values: Callable, at: np.ndarray) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            values(at)
            return (time.perf_counter() - begin) / len(at)

        return run

    found = {
        "landscape": timed(plan.values, points),
        "functional_call": timed(reference.values, few),
        **peers(model, data),
    }
    facts = {"plan": plan.describe(), "setup_seconds": setup, "relative_error": errors, "points": n}
    return found, facts


def peers(model: nn.Module, data: Dataset) -> dict[str, Callable[[], float]]:
    """Return the peers, each with its best batch size."""
    own, other = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    metric = Loss(F.cross_entropy, data.inputs, data.targets)
    weights = [parameter.data for parameter in other.parameters()]
    directions = create_random_directions(other)
    batches = list(zip(data.inputs.split(128), data.targets.split(128), strict=True))

    def run_loss_landscapes() -> float:
        begin = time.perf_counter()
        with torch.no_grad():
            # its filter normalization divides by zero where biases are zero; the time is the same
            loss_landscapes.random_plane(own, metric, distance=1, steps=2, normalization="model")
        return (time.perf_counter() - begin) / 4

    def run_losscape() -> float:
        begin = time.perf_counter()
        for step in ((0.1, 0.2), (-0.3, 0.4)):
            _set_weights(other, weights, directions, np.array(step))
            compute_loss(other, batches, None, F.cross_entropy, len(batches))
        return (time.perf_counter() - begin) / 2

    return {"loss-landscapes": run_loss_landscapes, "losscape": run_losscape}


def floor_seconds(model: nn.Module, data: Dataset, rate: float) -> float:
    """Return the seconds per point that the products after an affine first layer take at a rate in flop/s."""
    flops: list[float] = []

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        fan = module.weight[0].numel()
        flops.append(2.0 * fan * output[0].numel() * len(data))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        model.eval()(data.inputs[:1])
    for hook in hooks:
        hook.remove()
    return sum(flops[1:]) / rate


def gemm_rate(n: int = 2048) -> float:
    """Return the flop/s of a large float32 matrix product, the best of ten."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


def measure(name: str, rounds: int, rate: float) -> dict:
    """Run one workload: all contenders in turn, round after round."""
    title, network, arguments, data_name, n_samples, n_points = WORKLOADS[name]
    data = load(data_name, limit=n_samples)
    model = build(network, seed=0, **arguments).eval()
    runs, facts = contenders(model, data, n_points)
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for run in runs.values():
        run()  # not counted
    for _ in range(rounds):
        for key, run in runs.items():
            seconds[key].append(run())
    own = np.array(seconds["landscape"])
    others = np.array([values for key, values in seconds.items() if key != "landscape"])
    ratio = others.min(axis=0) / own
    floor = floor_seconds(model, data, rate)
    return {
        "workload": title,
        "seconds_per_point": {
            key: {"min": min(v), "median": float(np.median(v)), "max": max(v)} for key, v in seconds.items()
        },
        "ratio_to_best_peer": {"min": ratio.min(), "median": float(np.median(ratio)), "max": ratio.max()},
        "floor_seconds": floor,
        "times_floor": float(np.median(own) / floor),
        **facts,
    }


def table(results: dict) -> str:
    """Return the results as a Markdown table."""
    keys = list(dict.fromkeys(key for entry in results.values() for key in entry["seconds_per_point"]))
    head = [
        "",
        "workload",
        *(f"{key}, ms" for key in keys),
        "ratio to the best peer",
        "times floor",
        "error center / far",
    ]
    rows = [head, ["---"] * len(head)]
    for name, entry in results.items():
        times = entry["seconds_per_point"]
        cells = [f"{1000 * times[key]['median']:.3g}" if key in times else "" for key in keys]
        ratio = entry["ratio_to_best_peer"]
        errors = entry["relative_error"]
        rows.append(
            [name, entry["workload"], *cells, f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
             f"{entry['times_floor']:.1f}", f"{errors['center']:.0e} / {errors['far']:.0e}"]
        )  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def figure(results: dict) -> go.Figure:
    """Draw milliseconds per point as bars."""
    drawn = new_figure("time per point of a surface")
    keys = list(dict.fromkeys(key for entry in results.values() for key in entry["seconds_per_point"]))
    for key in keys:
        times = [entry["seconds_per_point"].get(key, {}) for entry in results.values()]
        drawn.add_bar(
            name=key,
            x=[f"{name}<br>{entry['workload'].split(',')[0]}" for name, entry in results.items()],
            y=[1000 * t["median"] if t else None for t in times],
            error_y={
                "array": [1000 * (t["max"] - t["median"]) if t else 0 for t in times],
                "arrayminus": [1000 * (t["median"] - t["min"]) if t else 0 for t in times],
            },
        )
    drawn.update_yaxes(type="log", title="milliseconds per point")
    return drawn


def main() -> None:
    """Measure and write `evaluation.json`, `.md`, `.html` and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    rate = gemm_rate()
    results = {}
    for name in options.only:
        results[name] = measure(name, options.rounds, rate)
        print(results[name]["plan"], flush=True)
        print(table({name: results[name]}), flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gemm_gflops": rate / 1e9,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rounds": options.rounds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        ("json", json.dumps({"machine": machine, "results": results}, indent=1)),
        ("md", f"`python scripts/benchmarks/evaluation.py`, {json.dumps(machine)}\n\n{table(results)}\n"),
    ):
        with replacing(options.out / f"evaluation.{suffix}") as temporary:
            temporary.write_text(text)
    save_figure(figure(results), options.out / "evaluation")


if __name__ == "__main__":
    main()

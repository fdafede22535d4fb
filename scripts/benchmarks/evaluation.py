"""Time the evaluation of surfaces against the best peers and the floor of this machine.

Five networks of growing size on real data (MNIST and CIFAR-10, from the folder that LANDSCAPE_DATA names), and F, a
transformer, whose layers no rewrite matches. All contenders compute the same loss with the same batches, the fastest
for a plain pass over the data; how each is called is said in contenders.py. They take turns in rounds, and ratios are
taken within a round, since the speed of a shared machine drifts. The networks are trained a little, so that the loss at
the center is small.

The floor is that of a program that runs one layer after the other, in float32, without waiting for anything:

    floor = multiplications of all layers but the first / rate of a large matrix product
          + min(those of the first / that rate, its responses, kept for origin and two directions / memory bandwidth)
          + outputs of all layers, written once and read once / memory bandwidth

with kept responses read once per group of points that go together. What activation functions cost is not in it. Chunks
that stay in the cache can go below: the lower floor has the bandwidth of the cache in the last line. Only kernels that
fuse layers can go below that.

Memory is what a process of its own needs above code, network and data, to evaluate two points, or one group of points
where points go together. Errors are relative to float64, at the center and far from it.

    python scripts/benchmarks/evaluation.py [--rounds 4] [--only A B] [--quick] [--out results/benchmarks]
"""

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from contenders import CONTENDERS, MISSING, OWN, Problem, best_batch, job_of, ours, two_processes
from harness import (
    Rates,
    bars,
    in_process,
    interleaved,
    machine_facts,
    measure_rates,
    options,
    peak_memory,
    rates_measured,
    span,
    speedup,
    spread,
    table,
    write,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from workloads import WORKLOADS, make

from landscape import evaluate, random_directions
from landscape.data import Dataset
from landscape.evaluation.spread import divide_processors, plan_for
from landscape.objective import Objective
from landscape.parameters import layout
from landscape.workers import LocalWorkers, ThisProcess

TWO = "landscape, 2 processes"
FLOORS = ("memory", "cache")
PRESENT = [name for name in CONTENDERS if name not in MISSING]


def work_per_sample(model: nn.Module, data: Dataset) -> dict[str, float]:
    """Return what one sample takes: flop of the first layer and of all others, and numbers that layers put out."""
    outputs: list[int] = []
    first: list[float] = []

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        outputs.append(output[0].numel())
        if len(outputs) == 1:
            first.append(2.0 * module.weight[0].numel() * outputs[0])

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(data.inputs[:1])
    for hook in hooks:
        hook.remove()
    return {
        "first": first[0],
        "others": counter.get_total_flops() - first[0],
        "responses": outputs[0],
        "outputs": sum(outputs),
    }


def floor_seconds(work: dict[str, float], n_samples: int, group: int, rates: Rates) -> dict[str, float]:
    """Return both floors of a point in seconds, see above, and the parts they are made of.

    Args:
        work: Of one sample, see `work_per_sample`.
        n_samples: How many.
        group: Points that go together.
        rates: Of this machine.
    """
    kept = 3 * 4 * work["responses"] * n_samples / group / rates.memory
    products = work["others"] * n_samples / rates.products
    first = min(work["first"] * n_samples / rates.products, kept)
    memory, cache = (2 * 4 * work["outputs"] * n_samples / rate for rate in (rates.memory, rates.cache))
    return {
        "products": products,
        "first layer": first,
        "outputs, memory": memory,
        "outputs, cache": cache,
        "memory": products + first + memory,
        "cache": products + first + cache,
    }


def measure(name: str, rounds: int, rates: Rates, quick: bool) -> dict:
    """Run one workload: all contenders in turn, round after round."""
    workload = WORKLOADS[name]
    model, data = make(name, quick=quick)
    batch = best_batch(model, data)
    plane = random_directions(Objective(model, data, metrics={}, chunk_size=batch))
    problem = Problem(model, data, plane.directions, batch, 2 if quick else workload.n_points)
    truth = Objective(model, data, metrics={}, dtype=torch.float64, chunk_size=batch)
    with ExitStack() as stack:
        begin = time.perf_counter()
        job = job_of(problem)
        plan = plan_for(job, ThisProcess())
        team, do = divide_processors(job, plan, stack)
        setup = time.perf_counter() - begin
        found = {OWN: ours(problem, plan, team, do), TWO: stack.enter_context(two_processes(problem))}
        found |= {key: CONTENDERS[key](problem) for key in PRESENT if key != OWN}
        seconds = interleaved({key: contender.run for key, contender in found.items()}, rounds)
        errors = {
            key: {
                place: abs(loss / truth.evaluate(theta)["loss"] - 1)
                for place, (theta, loss) in zip(("center", "far"), contender.check(), strict=True)
            }
            for key, contender in found.items()
        }
    flags = ("--batch", str(batch), *(["--quick"] if quick else []))
    memory = {key: in_process("--memory", name, key, *flags) for key in PRESENT}
    floor = floor_seconds(work_per_sample(model, data), len(data), plan.group, rates)
    peers = [key for key in PRESENT if key != OWN]
    return {
        "workload": f"{workload.title}, {len(data):,} {workload.data}",
        "batch": batch,
        "loss at the center": truth.evaluate(truth.origin)["loss"],
        "seconds per point": {key: spread(values) for key, values in seconds.items()},
        "ratio": {key: speedup(seconds, key, peers) for key in (OWN, TWO)},
        "floor": floor,
        "times floor": {
            key: {kind: spread([value / floor[kind] for value in seconds[key]]) for kind in FLOORS}
            for key in (OWN, TWO)
        },
        "relative error": errors,
        "memory": memory,
        "plan": plan.describe(),
        "groups at a time": len(team.devices),
        "setup seconds": setup,
    }


def memory_of(name: str, contender: str, batch: int, quick: bool) -> float | None:
    """Return the bytes that a contender needs in this process, above network and data."""
    model, data = make(name, quick=quick, trained=False)
    p = layout(model).p
    directions = torch.randn(2, p, generator=torch.Generator().manual_seed(0)) / p**0.5
    few = replace(data, inputs=data.inputs[:8], targets=data.targets[:8])
    CONTENDERS[contender](Problem(model, few, directions, 8, 2)).run()  # loads code, which does not count
    problem = Problem(model, data, directions, batch, 2)
    return peak_memory(lambda: CONTENDERS[contender](problem).run())


def whole_surface(rounds: int, quick: bool) -> dict:
    """Time what a user does for A: the objective, the plan, 51 x 51 points with loss and accuracy, and the file."""
    model, data = make("A", quick=quick)
    resolution = 11 if quick else 51
    with tempfile.TemporaryDirectory() as folder, LocalWorkers(2) as team:

        def run(workers: int | LocalWorkers) -> float:
            path = Path(folder) / f"{time.monotonic_ns()}.h5"
            begin = time.perf_counter()
            objective = Objective(model, data)
            evaluate(
                objective, random_directions(objective), resolution=resolution, path=path, progress=False,
                workers=workers,
            )  # fmt: skip
            return time.perf_counter() - begin

        seconds = interleaved({"one process": lambda: run(1), "two processes, kept": lambda: run(team)}, rounds)
    return {"resolution": resolution, "seconds": {key: spread(values) for key, values in seconds.items()}}


def tables(results: dict, surface: dict | None) -> str:
    """Return the results as Markdown tables."""
    keys = [OWN, TWO, *(key for key in PRESENT if key != OWN)]
    times, others = [], []
    for name, entry in results.items():
        per_point, ratio = entry["seconds per point"], entry["ratio"]
        times.append(
            [name, entry["workload"], *(span(per_point[key], 1000) for key in keys), span(ratio[OWN]), span(ratio[TWO]),
             *(f"{1000 * entry['floor'][kind]:.3g}" for kind in ("products", *FLOORS)),
             *(f"{entry['times floor'][key][kind]['median']:.3g}" for key in (OWN, TWO) for kind in FLOORS)]
        )  # fmt: skip
        for key in keys:
            error, memory = entry["relative error"][key], entry["memory"].get(key)
            size = "" if memory is None else f"{memory / 2**20:.0f}"
            others.append([name, key, f"{error['center']:.0e}", f"{error['far']:.0e}", size])
    floors = ["floor", "floor in cache"]
    head = ["", "workload", *keys, f"{OWN}: best peer /", f"{TWO}: best peer /", "products alone", *floors]
    head += [f"{key} / {floor}" for key in (OWN, TWO) for floor in floors]
    parts = ["Milliseconds per point, median (minimum to maximum) over rounds.", table(head, times)]
    if surface:
        n, seconds = surface["resolution"], surface["seconds"]
        line = ", ".join(f"{key} {span(values)} s" for key, values in seconds.items())
        parts.append(f"Whole surface of A, {n} x {n} points, loss and accuracy, setup and file included: {line}.")
    if MISSING:
        parts.append(f"Not installed here, and so left out: {', '.join(MISSING)}.")
    parts.append(table(["", "contender", "error at center", "error far", "memory, MB"], others))
    return "\n\n".join(parts)


def main() -> None:
    """Measure and write `evaluation.json`, `.md`, `.html` and pictures."""
    parser = options(__doc__, rounds=4)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(WORKLOADS),
        help="measure these and keep what an earlier run wrote of the others",
    )
    parser.add_argument(
        "--memory", nargs=2, metavar=("WORKLOAD", "CONTENDER"), help="print the memory of one, in bytes"
    )
    parser.add_argument("--batch", type=int, default=100, help="with --memory: samples per forward pass")
    chosen = parser.parse_args()
    if chosen.memory:
        print(json.dumps(memory_of(*chosen.memory, chosen.batch, chosen.quick)))
        return
    rounds = 1 if chosen.quick else chosen.rounds
    rates = measure_rates()
    found, before = {}, {"workloads": {}, "whole surface": None}
    if chosen.only and (chosen.out / "evaluation.json").exists():
        before = json.loads((chosen.out / "evaluation.json").read_text())["results"]
    for name in chosen.only or WORKLOADS:
        found[name] = measure(name, rounds, rates, chosen.quick)
        print(f"{name}: {found[name]['plan']}", flush=True)
    surface = before["whole surface"] if "A" not in found else whole_surface(rounds, chosen.quick)
    results = {name: entry for name in WORKLOADS if (entry := found.get(name, before["workloads"].get(name)))}
    groups = [f"{name}<br>{entry['workload'].split(',')[0]}" for name, entry in results.items()]
    entries = [entry["seconds per point"] for entry in results.values()]
    series = {key: [entry[key] for entry in entries] for key in (OWN, TWO, *PRESENT[1:])}
    series["floor in cache"] = [spread([entry["floor"]["cache"]]) for entry in results.values()]
    figure = bars(
        "Time per point of a surface", "milliseconds per point", groups, series, scale=1000,
        notes=["Median over rounds, with minimum and maximum."],
    )  # fmt: skip
    write(
        chosen.out, "evaluation", __doc__, machine_facts(rounds=rounds, **rates_measured(rates)),
        {"workloads": results, "whole surface": surface}, tables(results, surface), figure,
    )  # fmt: skip


if __name__ == "__main__":
    main()

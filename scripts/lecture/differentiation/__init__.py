"""Three ways to differentiate: difference quotients, computer algebra, automatic differentiation.

The error of difference quotients against their step, with what theory says of it; how the smallest error grows with
the depth of a network; the seconds of a gradient against the number of parameters; the size of SymPy's derivative
against depth; and one network trained with gradients of each kind. The errors are Nocedal and Wright's (Numerical
Optimization, section 8.1), the cost of the reverse mode Baur and Strassen's (1983): at most a few evaluations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from landscape.differences import KINDS, GradientErrors
from lecture.differentiation.measurements import (
    RATE,
    count_operations,
    error_curves,
    exact_gradient,
    network,
    restored,
    time_gradients,
    train,
)
from lecture.differentiation.panels import plot_cost, plot_depth, plot_errors, plot_operations, plot_training
from lecture.setting import Drawn, Setting

TITLE = "Three ways to differentiate"
SECONDS = (160.0, 6.0)
SAMPLES = 100


class Plan(NamedTuple):
    """How much is computed."""

    widths: tuple[int, ...]  # of the network whose errors are measured, and which is trained
    exponents: tuple[float, float, int]  # of the steps: first, last, number per decade
    depths: tuple[int, ...]  # of the networks whose smallest errors are compared
    seeds: int  # networks of each depth
    timed: tuple[int, ...]  # widths of two layers, all methods
    timed_alone: tuple[int, ...]  # further widths, without those that need a pass per parameter
    rounds: int
    symbolic: int  # layers of the deepest formula
    steps: int  # of training
    trained: tuple[float, ...]  # steps h


WHOLE = Plan(
    widths=(6, 6),
    exponents=(-14, 0, 4),
    depths=(1, 2, 4, 8, 16),
    seeds=3,
    timed=(2, 6, 20, 50),
    timed_alone=(300, 1000),
    rounds=5,
    symbolic=9,
    steps=600,
    trained=(1.0, 0.3, 3e-3, 1e-6, 3e-7, 1e-7),
)
QUICK = Plan(
    widths=(3,),
    exponents=(-12, 0, 1),
    depths=(1, 4),
    seeds=1,
    timed=(1, 3),
    timed_alone=(20,),
    rounds=3,
    symbolic=4,
    steps=30,
    trained=(1.0, 3e-3, 1e-7),
)


def draw(setting: Setting) -> Drawn:
    """Compute and draw."""
    plan = QUICK if setting.quick else WHOLE
    data = setting.load("digits", limit=SAMPLES)
    x, y = F.adaptive_avg_pool2d(data.inputs, 4).flatten(1), data.targets
    common = {"data": data.name, "samples": len(y)}
    net = network(x, y, plan.widths)
    share = 0.0

    def keep(name: str, weight: float, settings: dict[str, Any], compute: Callable[[], Any]) -> Any:
        nonlocal share
        value = setting.keep(name, settings, compute)
        share = min(1.0, share + weight)
        setting.report(share)
        return value

    def measure_errors() -> dict[str, Any]:
        return error_curves(net, plan.exponents, reference=exact_gradient(net, x, y))

    def measure_depth(depth: int) -> list[dict[str, Any]]:
        networks = [network(x, y, [6] * depth, seed) for seed in range(plan.seeds)]
        return [error_curves(one, (-4, -1, 4), dtypes=[torch.float32]) for one in networks]

    asked = {**common, "widths": plan.widths, "exponents": plan.exponents}
    errors = restored(keep("errors", 0.1, asked, measure_errors))
    by_depth = {
        depth: [
            restored(found)
            for found in keep(
                f"depth_{depth}",
                0.2 * depth / sum(plan.depths),
                {**common, "depth": depth, "seeds": plan.seeds},
                lambda depth=depth: measure_depth(depth),
            )
        ]
        for depth in plan.depths
    }
    seconds = {}
    for width in (*plan.timed, *plan.timed_alone):
        sized = network(x, y, [width, width])
        seconds[len(sized.theta)] = keep(
            f"seconds_{width}",
            0.2 / len(plan.timed + plan.timed_alone),
            {**common, "width": width, "rounds": plan.rounds},
            lambda sized=sized, width=width: time_gradients(sized, plan.rounds, width in plan.timed),
        )
    operations = {
        depth: keep(f"operations_{depth}", 0.1 / plan.symbolic, {"depth": depth}, lambda n=depth: count_operations(n))
        for depth in range(1, plan.symbolic + 1)
    }
    runs = {
        h: keep(
            f"training_{h:g}",
            0.4 / len(plan.trained),
            {**common, "widths": plan.widths, "rate": RATE, "h": h, "steps": plan.steps},
            lambda h=h: train(net, h, plan.steps),
        )
        for h in (0.0, *plan.trained)
    }
    described = f"{len(y)} images of {data.name}, averaged to 4 x 4 pixels"
    several = f"{plan.seeds} networks each" if plan.seeds > 1 else "one network each"
    small = f"tanh network of {len(net.theta)} parameters, {described}"
    numbers = findings(errors, by_depth, seconds, operations, runs)
    figures = {
        "errors": plot_errors(errors, [small]),
        "depth": plot_depth(by_depth, [f"layers of 6 tanh units, float32, {described}; {several}"]),
        "cost": plot_cost(
            seconds, [f"tanh networks, float32, {described}; one thread, medians of {plan.rounds} rounds"]
        ),
        "symbolic": plot_operations(
            operations, ["layers of two tanh units, written out by SymPy and executed by torch"]
        ),
        "training": plot_training(runs, [f"{small}; float32, gradient descent, rate {RATE:g}"]),
    }
    return Drawn(figures, caption(numbers, small), numbers)


def findings(
    errors: GradientErrors,
    by_depth: dict[int, list[GradientErrors]],
    seconds: dict[int, dict[str, float]],
    operations: dict[int, dict[str, int]],
    runs: dict[float, list[float]],
) -> dict[str, Any]:
    """Return all numbers, and which statements of the lecture they bear out."""
    quotients = {
        f"{kind}, {dtype}": {
            **dict(zip(("best step", "smallest error"), errors.best(kind, dtype), strict=True)),
            **dict(zip(("predicted step", "predicted error"), errors.optimum(kind, dtype), strict=True)),
        }
        for kind in KINDS
        for dtype in errors.dtypes
    }
    autograd = dict(zip(errors.dtypes, errors.autograd.tolist(), strict=True))
    depth = {n: float(np.median([one.best("forward", "float32")[1] for one in found])) for n, found in by_depth.items()}
    growth = {
        name: slope({p: found[name] for p, found in seconds.items() if name in found})
        for name in ("differences", "forward mode", "reverse mode")
    }
    in_evaluations = {
        p: {name: value / found["cost"] for name, value in found.items() if name != "cost"}
        for p, found in seconds.items()
    }
    last, before = max(operations), max(operations) - 1
    factor = {name: operations[last][name] / operations[before][name] for name in operations[last]}
    exact = runs[0.0]
    quotient_runs = {h: costs for h, costs in runs.items() if h}
    rising = [h for h, costs in quotient_runs.items() if costs[-1] > 1.2 * min(costs)]
    stuck = [h for h, costs in quotient_runs.items() if costs[-1] > 0.5 * costs[0]]
    closest = min(quotient_runs, key=lambda h: abs(quotient_runs[h][-1] - exact[-1]))
    most = max(p for p, found in seconds.items() if "differences" in found)
    return {
        "difference quotients": quotients,
        "error of automatic differentiation": autograd,
        "median smallest error of forward quotients in float32, by depth": depth,
        "processor seconds, by number of parameters": seconds,
        "evaluations that a gradient takes as long as, by number of parameters": in_evaluations,
        "exponent of the seconds in the number of parameters": growth,
        "operations, by depth": operations,
        "factor of the operations from one more layer": factor,
        "first cost of training": exact[0],
        "final cost of training with autograd": exact[-1],
        "final cost of training, by step": {f"{h:g}": costs[-1] for h, costs in quotient_runs.items()},
        "lowest cost of training, by step": {f"{h:g}": min(costs) for h, costs in quotient_runs.items()},
        "share of the updates that raise the cost, by step": {
            f"{h:g}" if h else "autograd": float(np.mean(np.diff(costs) > 0)) for h, costs in runs.items()
        },
        "steps with which the cost rises again": rising,
        "steps with which training stalls": stuck,
        "step that trains most like autograd": closest,
        "claims": {
            "quotients have truncation errors at large steps and rounding errors at small ones": all(
                curve[0] > 10 * curve.min() and curve[-1] > 10 * curve.min()
                for curve in errors.errors.reshape(-1, len(errors.steps))
            ),
            "no step makes a quotient as exact as automatic differentiation": all(
                quotients[f"{kind}, {dtype}"]["smallest error"] > autograd[dtype]
                for kind in KINDS
                for dtype in errors.dtypes
            ),
            "the errors add up through a composition": depth[max(depth)] > depth[min(depth)],
            "quotients need a run per parameter": in_evaluations[most]["differences"] > most / 2,
            "computer algebra: the derivative grows faster with depth than the function": (
                factor["derivative by one weight"] > factor["formula"]
            ),
            "reverse mode costs at most five evaluations": max(v["reverse mode"] for v in in_evaluations.values()) <= 5,
            "training with quotients can be unstable": bool(rising),
            "training with quotients can stall": bool(stuck),
        },
    }


def slope(values: dict[int, float]) -> float:
    """Return the exponent of a power law through the values, by least squares of logarithms."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def caption(numbers: dict[str, Any], network: str) -> str:
    """Say what is to be seen."""
    quotients, autograd = numbers["difference quotients"], numbers["error of automatic differentiation"]
    errors = "; ".join(
        f"in {dtype} {quotients[f'forward, {dtype}']['smallest error']:.1e}, "
        f"{quotients[f'central, {dtype}']['smallest error']:.1e} and {exact:.1e}"
        for dtype, exact in autograd.items()
    )
    evaluations = numbers["evaluations that a gradient takes as long as, by number of parameters"]
    most = max(n for n, found in evaluations.items() if "differences" in found)
    takes = ", ".join(f"{value:,.{0 if value > 100 else 1}f} by {name}" for name, value in evaluations[most].items())
    factor = numbers["factor of the operations from one more layer"]
    ends = numbers["final cost of training, by step"]
    costs = ", ".join(f"{ends[f'{h:g}']:.3g} (h = {h:g})" for h in sorted(map(float, ends)))
    return (
        f"Relative error of the gradient of a {network}, by forward and central quotients with their best step h and "
        f"by autograd: {errors}. A gradient by {most:,} parameters takes as long as so many evaluations of the cost: "
        f"{takes}; SymPy's derivative becomes {factor['derivative by one weight']:.1f} times as long with one more "
        f"layer, the function written out {factor['formula']:.1f} times. Gradient descent ends at a cost of "
        f"{numbers['final cost of training with autograd']:.3g} with autograd, with forward quotients at {costs}."
    )

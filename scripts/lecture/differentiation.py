"""Three ways to differentiate: difference quotients, computer algebra, automatic differentiation.

The error of difference quotients against their step, with what theory says of it; how the smallest error grows with
the depth of a network; the seconds of a gradient against the number of parameters; the size of SymPy's derivative
against depth; and one network trained with gradients of each kind. The errors are Nocedal and Wright's (Numerical
Optimization, section 8.1), the cost of the reverse mode Baur and Strassen's (1983): at most a few evaluations.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mpmath
import numpy as np
import plotly.graph_objects as go
import sympy
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.differences import KINDS, GradientErrors, compare_gradients, difference_gradient
from landscape.figures.style import INK, PALETTE, log_axis, new_figure
from landscape.models import build
from landscape.parameters import layout
from lecture.setting import Drawn, Setting

TITLE = "Three ways to differentiate"
SECONDS = (160.0, 6.0)
SAMPLES, PIXELS, CLASSES = 100, 16, 10
RATE = 0.4  # with exact gradients the cost falls at every step
LEAST_SECONDS = 0.05  # of one timing: some clocks advance in steps of 16 ms


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


class Curve(NamedTuple):
    """A line of a figure."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    color: str
    dash: str = "solid"
    markers: bool = True
    in_legend: bool = True


class Network(NamedTuple):
    """A dense tanh network on fixed data.

    Attributes:
        cost: `[p]` to the cross-entropy, in the precision of `theta`, in plain torch: nothing else is timed.
        theta: `[p]` float32 initial parameters.
        shapes: Of weights and biases in turn.
    """

    cost: Callable[[Tensor], Tensor]
    theta: Tensor
    shapes: tuple[tuple[int, ...], ...]


class Operations(TorchDispatchMode):
    """Counts the operations that torch executes, in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Execute and count, unless nothing is computed."""
        self.count += function not in (torch.ops.aten.detach.default, torch.ops.aten.ones_like.default)
        return function(*args, **(kwargs or {}))


def network(x: Tensor, y: Tensor, widths: Sequence[int], seed: int = 0) -> Network:
    """Return an untrained network and its cost on images `[b, 16]` with classes `[b]`."""
    model = build("mlp", seed=seed, input_shape=[PIXELS], classes=CLASSES, widths=widths)
    order = layout(model)

    def cost(theta: Tensor) -> Tensor:
        parts = theta.split(order.sizes)
        hidden = x.to(theta.dtype)
        for i in range(0, len(parts), 2):
            hidden = F.linear(hidden.tanh() if i else hidden, parts[i].view(order.shapes[i]), parts[i + 1])
        return F.cross_entropy(hidden, y)

    return Network(cost, order.flatten(dict(model.named_parameters())).detach(), order.shapes)


def exact_gradient(net: Network, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of a network's cost, computed with 40 decimal digits by the chain rule as one writes it."""
    number, tanh, exp = (np.frompyfunc(f, 1, 1) for f in (mpmath.mpf, mpmath.tanh, mpmath.exp))
    with mpmath.workdps(40):
        sizes = [torch.Size(shape).numel() for shape in net.shapes]
        parts = [
            number(part.view(shape).double().numpy())
            for part, shape in zip(net.theta.split(sizes), net.shapes, strict=True)
        ]
        layers = list(zip(parts[::2], parts[1::2], strict=True))
        hidden = [number(x.double().numpy())]
        for weight, bias in layers[:-1]:
            hidden.append(tanh(hidden[-1] @ weight.T + bias))
        logits = exp(hidden[-1] @ layers[-1][0].T + layers[-1][1])
        delta = (logits / logits.sum(1)[:, None] - np.eye(CLASSES)[y]) / len(y)
        gradient: list[np.ndarray] = []
        for (weight, _), below in zip(reversed(layers), reversed(hidden), strict=True):
            gradient = [(delta.T @ below).ravel(), delta.sum(0), *gradient]
            delta = (delta @ weight) * (1 - below**2)
        return torch.tensor(np.concatenate(gradient).astype(np.float64))


def reverse_mode(cost: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Return the gradient by backpropagation: one pass forward, one back."""
    point = theta.clone().requires_grad_()
    return torch.autograd.grad(cost(point), point)[0]


def forward_mode(cost: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Return the gradient by dual numbers, one pass for each parameter."""
    gradient, tangent = torch.empty_like(theta), torch.zeros_like(theta)
    for i in range(len(theta)):
        tangent[i] = 1
        with forward_ad.dual_level(), torch.no_grad():
            gradient[i] = forward_ad.unpack_dual(cost(forward_ad.make_dual(theta, tangent))).tangent
        tangent[i] = 0
    return gradient


def time_gradients(net: Network, rounds: int, with_passes: bool) -> dict[str, float]:
    """Return the median processor seconds of one evaluation and of one gradient by each method, which take turns.

    On one thread. Processor time, because other processes would lengthen slow methods more than fast ones.
    """

    def evaluate() -> Tensor:
        with torch.no_grad():
            return net.cost(net.theta)

    runs: dict[str, Callable[[], Tensor]] = {
        "cost": evaluate,
        "reverse mode": lambda: reverse_mode(net.cost, net.theta),
    }
    if with_passes:
        runs["differences"] = lambda: difference_gradient(net.cost, net.theta, 1e-3)
        runs["forward mode"] = lambda: forward_mode(net.cost, net.theta)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        repeats = {name: 1 + int(LEAST_SECONDS / max(processor_seconds(run, 3), 1e-5)) for name, run in runs.items()}
        turns = [{name: processor_seconds(run, repeats[name]) for name, run in runs.items()} for _ in range(rounds)]
    finally:
        torch.set_num_threads(threads)
    return {name: float(np.median([turn[name] for turn in turns])) for name in runs}


def processor_seconds(run: Callable[[], Any], n: int) -> float:
    """Return the processor time of one of `n` calls in a row."""
    start = time.process_time()
    for _ in range(n):
        run()
    return (time.process_time() - start) / n


def formula(inputs: Sequence[Any], weights: Sequence[Sequence[Any]], tanh: Callable[[Any], Any]) -> Any:
    """Return the output of layers of two tanh units, of SymPy's symbols or of torch's numbers."""
    a, b = inputs
    for w in weights:
        a, b = tanh(w[0] * a + w[1] * b + w[2]), tanh(w[3] * a + w[4] * b + w[5])
    return a + b


def count_operations(depth: int) -> dict[str, int]:
    """Return the operations in the formula, in SymPy's derivative by one weight, and in torch's by all weights."""
    symbols = [sympy.symbols(f"w{layer}_:6") for layer in range(depth)]
    written = formula(sympy.symbols("x:2"), symbols, sympy.tanh)
    weights = torch.linspace(-1, 1, 6 * depth, dtype=torch.float64).requires_grad_()
    entries = [row.unbind() for row in weights.view(depth, 6)]
    inputs = torch.tensor([0.5, -0.5], dtype=torch.float64).unbind()
    leaves = [entry for row in entries for entry in row]
    with Operations() as executed:
        torch.autograd.grad(formula(inputs, entries, torch.tanh), leaves)
    return {
        "formula": int(sympy.count_ops(written)),
        "derivative by one weight": int(sympy.count_ops(sympy.diff(written, symbols[0][0]))),
        "automatic, all weights": executed.count,
    }


def train(net: Network, h: float, steps: int) -> list[float]:
    """Return the costs along gradient descent in float32, by forward quotients, or by backpropagation for `h = 0`."""
    theta, costs = net.theta, []
    for step in range(steps + 1):
        with torch.no_grad():
            costs.append(net.cost(theta).item())
        if step < steps:
            gradient = difference_gradient(net.cost, theta, h) if h else reverse_mode(net.cost, theta)
            theta = (theta.double() - RATE * gradient).float()
    return costs


def error_curves(net: Network, exponents: tuple[float, float, int], **options: Any) -> dict[str, Any]:
    """Return what `compare_gradients` measures, as lists; powers of ten from first to last, so many per decade."""
    first, last, per_decade = exponents
    steps = 10.0 ** np.linspace(first, last, round((last - first) * per_decade) + 1)
    found = compare_gradients(net.cost, net.theta, steps, **options)
    return {name: np.asarray(value).tolist() for name, value in vars(found).items()}


def restored(lists: dict[str, Any]) -> GradientErrors:
    """Return the errors as `compare_gradients` gave them."""
    arrays = {name: np.array(value) for name, value in lists.items()}
    return GradientErrors(**{**arrays, "dtypes": tuple(lists["dtypes"])})


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
    small = f"tanh network of {len(net.theta)} parameters, {described}"
    numbers = findings(errors, by_depth, seconds, operations, runs)
    figures = {
        "errors": plot_errors(errors, [small]),
        "depth": plot_depth(by_depth, [f"layers of 6 tanh units, float32, {described}; {plan.seeds} network(s) each"]),
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
    stuck = [h for h, costs in quotient_runs.items() if costs[-1] > 0.95 * costs[0]]
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
            "computer algebra does not scale": factor["derivative by one weight"] > 2,
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
    factor = numbers["factor of the operations from one more layer"]["derivative by one weight"]
    ends = numbers["final cost of training, by step"]
    failing = [*numbers["steps with which training stalls"], *numbers["steps with which the cost rises again"]]
    failed = [f"{float(h):g}" for h in sorted(map(float, ends)) if h in failing]
    return (
        f"Relative error of the gradient of a {network}, by forward and central quotients with their best step h and "
        f"by autograd: {errors}. A gradient by {most:,} parameters takes as long as so many evaluations of the cost: "
        f"{takes}; SymPy's derivative becomes {factor:.1f} times as long with one more layer. Gradient descent ends at "
        f"a cost of {numbers['final cost of training with autograd']:.3g} with autograd; with forward quotients it "
        f"stalls or rises again at h = {', '.join(failed)}."
    )


def lines(title: str, notes: Sequence[str], x_title: str, y_title: str, curves: Sequence[Curve]) -> go.Figure:
    """Draw curves on two logarithmic axes."""
    figure = new_figure(title, notes)
    for curve in curves:
        figure.add_scatter(
            name=curve.name,
            x=curve.x,
            y=curve.y,
            mode="lines+markers" if curve.markers else "lines",
            line={"color": curve.color, "dash": curve.dash, "width": 1.5 if curve.dash == "dot" else 2.5},
            marker={"size": 5},
            showlegend=curve.in_legend,
        )
    figure.update_xaxes(title_text=x_title, type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title_text=y_title, type="log", dtick=1, exponentformat="power")
    return figure


def plot_errors(errors: GradientErrors, notes: Sequence[str]) -> go.Figure:
    """Draw the error of the gradient against the step, with the prediction, and autograd's error."""
    colors = {"float32": (PALETTE[1], PALETTE[4]), "float64": (PALETTE[0], PALETTE[5])}
    curves, ends = [], errors.steps[[0, -1]]
    for d, dtype in enumerate(errors.dtypes):
        for k, kind in enumerate(KINDS):
            color = colors[dtype][k]
            curves.append(Curve(f"{kind}, {dtype}", errors.steps, errors.errors[k, d], color))
            curves.append(
                Curve(
                    f"theory, {kind}, {dtype}", errors.steps, errors.predicted(kind, dtype), color, "dot", False, False
                )
            )
        floor = [errors.autograd[d]] * 2
        curves.append(Curve(f"autograd, {dtype}", ends, floor, colors[dtype][0], "dash", False))
    curves.append(Curve("theory", [None], [None], INK, "dot", False))
    figure = lines("Error of the gradient", notes, "step h", "relative error of the gradient", curves)
    low = np.log10(min(errors.autograd.min(), errors.errors.min()))
    figure.update_yaxes(range=[low - 0.7, 1.5], dtick=2)
    figure.update_xaxes(dtick=4)
    return figure


def plot_depth(by_depth: dict[int, list[GradientErrors]], notes: Sequence[str]) -> go.Figure:
    """Draw the smallest errors against the number of layers."""
    depths, curves = list(by_depth), []
    for kind, color in zip(KINDS, (PALETTE[1], PALETTE[4]), strict=True):
        best = np.array([[one.best(kind, "float32")[1] for one in found] for found in by_depth.values()])
        curves.append(Curve(f"{kind}, best h", depths, np.median(best, axis=1), color))
    exact = np.array([[one.autograd[0] for one in found] for found in by_depth.values()])
    curves.append(Curve("autograd", depths, np.median(exact, axis=1), PALETTE[0], "dash"))
    figure = lines("Errors add up through layers", notes, "hidden layers", "relative error of the gradient", curves)
    figure.update_xaxes(tickvals=depths)
    return figure


def plot_cost(seconds: dict[int, dict[str, float]], notes: Sequence[str]) -> go.Figure:
    """Draw the time of a gradient against the number of parameters."""
    looks = {
        "differences": ("forward differences", PALETTE[1], "solid"),
        "forward mode": ("forward mode", PALETTE[2], "solid"),
        "reverse mode": ("reverse mode", PALETTE[0], "solid"),
        "cost": ("the cost itself, once", INK, "dash"),
    }
    curves = []
    for key, (name, color, dash) in looks.items():
        own = {p: found[key] for p, found in seconds.items() if key in found}
        curves.append(Curve(name, list(own), list(own.values()), color, dash))
    return lines("Time of one gradient", notes, "parameters", "processor time (s)", curves)


def plot_operations(operations: dict[int, dict[str, int]], notes: Sequence[str]) -> go.Figure:
    """Draw the operations of formula, symbolic and automatic derivative against depth."""
    looks = {
        "derivative by one weight": ("SymPy: by one weight", PALETTE[1], "solid"),
        "formula": ("SymPy: the function", PALETTE[4], "dash"),
        "automatic, all weights": ("autograd: by all weights", PALETTE[0], "solid"),
    }
    depths = list(operations)
    curves = [
        Curve(name, depths, [found[key] for found in operations.values()], color, dash)
        for key, (name, color, dash) in looks.items()
    ]
    figure = lines("Size of the derivative", notes, "layers", "operations", curves)
    figure.update_xaxes(type="linear", dtick=1)
    return figure


def plot_training(runs: dict[float, list[float]], notes: Sequence[str]) -> go.Figure:
    """Draw the cost against the step of gradient descent."""
    curves = [
        Curve(f"h = {h:g}" if h else "autograd", np.arange(len(costs)), costs, color, "solid" if h else "dash", False)
        for (h, costs), color in zip(runs.items(), (INK, *PALETTE[:6]), strict=False)
    ]
    # autograd last, so that it is seen on the quotients that follow it
    curves = [*curves[1:], curves[0]]
    figure = lines("Training with difference quotients", notes, "step", "cost (nats)", curves)
    figure.update_xaxes(type="linear", dtick=None)
    figure.update_yaxes(log_axis([curve.y for curve in curves]))
    return figure

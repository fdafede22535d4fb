"""What each way to differentiate computes, how exactly, and in what time."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mpmath
import numpy as np
import sympy
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.differences import GradientErrors, compare_gradients, difference_gradient
from landscape.models import build
from landscape.parameters import layout

PIXELS, CLASSES = 16, 10
RATE = 0.4  # with exact gradients the cost falls at every step
LEAST_SECONDS = 0.05  # of one timing: some clocks advance in steps of 16 ms


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

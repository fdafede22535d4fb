"""Computational graphs: the lecture's blackboard, and a small network's cost.

The blackboard is `f(x, y, z) = (x + y) z` at `(-2, 5, -4)` with `q = x + y`; the network has two inputs, two tanh units
and two classes, its cost is the cross-entropy of one sample of XOR. Both graphs are recorded while the function runs,
and their gradients are autograd's. Recipe: Rumelhart, Hinton and Williams 1986, doi:10.1038/323533a0.
"""

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor
from torch.nn import functional as F

from landscape.backpropagation import computational_graph
from landscape.computation import ComputationalGraph
from landscape.data import load
from landscape.figures import plot_computational_graph
from landscape.models import build
from lecture.setting import Drawn, Setting

TITLE = "Computational graph"
SECONDS = (2.1, 1.7)
POINT = (-2.0, 5.0, -4.0)
STEP = 1e-5  # of the central differences
SAMPLE = 3  # of XOR: (1, 1), the only corner that all weights contribute to


def blackboard() -> ComputationalGraph:
    """Return the graph of the lecture's expression."""

    def f(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        q = x + y
        return q * z

    return computational_graph(f, *POINT)


def network() -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the parameters of the network, as a list of tensors in float64, and the sample: inputs and class."""
    data = load("xor")
    # weights twice as large as usual: nearer 0, tanh is a straight line
    model = build("mlp", input_shape=(2,), classes=2, widths=[2], init_scale=2.0, seed=1).double()
    return [p.detach() for p in model.parameters()], data.inputs[SAMPLE].double(), data.targets[SAMPLE]


def draw(setting: Setting) -> Drawn:
    """Draw both graphs."""
    board = blackboard()
    parameters, x, y = network()

    def L(W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Tensor:  # noqa: N802, N803
        a = F.linear(x, W1, b1)
        h = torch.tanh(a)
        s = F.linear(h, W2, b2)
        return F.cross_entropy(s, y)

    cost = computational_graph(L, *parameters)
    error = _difference(cost, L)
    numbers = _numbers(board, cost, error)
    setting.report(1.0)
    return Drawn(
        {
            "blackboard": _titled(board, "f(x, y, z) = (x + y) z"),
            "network": _titled(cost, "Cost L of a network with 2 tanh units"),
        },
        f"Values flow forward (blue), gradients back (vermilion). The blackboard: q = {_value(board, 'q'):g}, "
        f"f = {_value(board, 'f'):g}; ∂f/∂z = {_gradient(board, 'z'):g}, ∂f/∂q = {_gradient(board, 'q'):g}, and by the "
        f"chain rule ∂f/∂x = {_gradient(board, 'x'):g}, ∂f/∂y = {_gradient(board, 'y'):g}. The network: its cross-"
        f"entropy for the sample (1, 1) of XOR is {float(cost.output.value):.3f}; the gradient of its "
        f"{numbers['parameters']} parameters agrees with central differences (step {STEP:g}) to {error:.1g} of it.",
        numbers,
    )


def _numbers(board: ComputationalGraph, cost: ComputationalGraph, error: float) -> dict[str, object]:
    found = {node.name: (float(node.value), float(node.gradient)) for node in board.nodes if node.gradient is not None}
    expected = {"x": (-2, -4), "y": (5, -4), "z": (-4, 3), "q": (3, -4), "f": (-12, 1)}
    return {
        "value and gradient of each node of the blackboard": found,
        "the blackboard is reproduced exactly": found == expected,
        "cost of the network": float(cost.output.value),
        "gradient norm of each tensor": {
            node.name: float(np.linalg.norm(node.gradient)) for node in cost.nodes if node.gradient is not None
        },
        "parameters": sum(node.value.size for node in cost.nodes if not node.operation and node.gradient is not None),
        "relative difference from central differences": error,
        "the gradient agrees with central differences": error < 1e-8,
    }


def _difference(cost: ComputationalGraph, function: Callable[..., Tensor]) -> float:
    """Return how far the gradient is from central differences, in units of its norm."""
    inputs = [node for node in cost.nodes if not node.operation and node.gradient is not None]
    values = [torch.from_numpy(node.value) for node in inputs]
    differences = []
    for i, value in enumerate(values):
        for k in range(value.numel()):
            step = torch.zeros(value.numel(), dtype=torch.float64)
            step[k] = STEP
            ends = [
                function(*(v + sign * step.view_as(v) if j == i else v for j, v in enumerate(values)))
                for sign in (1, -1)
            ]
            differences.append(float(ends[0] - ends[1]) / (2 * STEP))
    gradient = np.concatenate([np.ravel(node.gradient) for node in inputs])
    return float(np.linalg.norm(gradient - differences) / np.linalg.norm(gradient))


def _titled(graph: ComputationalGraph, title: str) -> go.Figure:
    return plot_computational_graph(graph).update_layout(title_text=title)


def _value(graph: ComputationalGraph, name: str) -> float:
    return float(graph.nodes[graph.find(name)].value)


def _gradient(graph: ComputationalGraph, name: str) -> float:
    return float(graph.nodes[graph.find(name)].gradient)

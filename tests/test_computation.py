"""Computational graphs: values, gradients, local derivatives and their sums, against autograd and differences."""

# ruff: noqa: RUF001

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from landscape import computational_graph
from landscape.backpropagation import MOST_ENTRIES
from landscape.computation import ComputationalGraph
from landscape.figures import plot_computational_graph, plot_local_gradients
from landscape.figures.computational_graph import MOST_EDGES, MOST_NODES, _graph_info, _layers, _local_info

UNARY = {
    "tanh": torch.tanh,
    "exp": lambda a: torch.exp(-a * a),
    "sin": torch.sin,
    "twice": lambda a: 2 * a,
    "softplus": F.softplus,
    "shift": lambda a: 1 - a,
}
BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / (b * b + 1),
    "max": torch.maximum,
}


def gradient(graph: ComputationalGraph, name) -> np.ndarray:
    return graph.nodes[graph.find(name)].gradient


def value(graph: ComputationalGraph, name) -> np.ndarray:
    return graph.nodes[graph.find(name)].value


def check_chain_rule(graph: ComputationalGraph) -> None:
    """Each product is upstream times local, and those that leave a node add up to its gradient."""
    assert graph.output.gradient.item() == 1
    for i, node in enumerate(graph.nodes):
        assert all(edge.source < i for edge in graph.into(i))
        if node.gradient is None:
            assert all(edge.local is None and edge.product is None for edge in graph.out_of(i))
            continue
        assert node.gradient.shape == node.value.shape
        total = np.zeros(node.value.shape)
        for edge in graph.out_of(i):
            upstream = graph.nodes[edge.target].gradient
            assert edge.local.shape == upstream.shape + node.value.shape
            np.testing.assert_allclose(np.tensordot(upstream, edge.local, upstream.ndim), edge.product, atol=1e-12)
            total = total + edge.product
        if i < len(graph.nodes) - 1:
            np.testing.assert_allclose(total, node.gradient, rtol=1e-10, atol=1e-12)


def f(x, y, z):
    q = x + y
    return q * z


def test_the_blackboard_is_reproduced():
    graph = computational_graph(f, -2, 5, -4)
    found = [(node.name, node.operation, float(node.value), float(node.gradient)) for node in graph.nodes]
    assert found == [
        ("x", "", -2.0, -4.0),
        ("y", "", 5.0, -4.0),
        ("z", "", -4.0, 3.0),
        ("q", "+", 3.0, -4.0),
        ("f", "*", -12.0, 1.0),
    ]
    edges = {(edge.source, edge.target): (float(edge.local), float(edge.product)) for edge in graph.edges}
    assert edges == {(0, 3): (1, -4), (1, 3): (1, -4), (3, 4): (-4, -4), (2, 4): (3, 3)}


@st.composite
def programs(draw):
    """Lists of steps on a growing list of values, so that values are used several times, or never."""
    n = draw(st.integers(1, 3))
    steps = []
    for k in range(draw(st.integers(1, 7))):
        at = st.integers(0, n + k - 1)
        if draw(st.booleans()):
            steps.append((draw(st.sampled_from(sorted(UNARY))), draw(at)))
        else:
            steps.append((draw(st.sampled_from(sorted(BINARY))), draw(at), draw(at)))
    shape = draw(st.sampled_from([(), (2,), (2, 3)]))
    size = int(np.prod(shape))
    numbers = st.lists(st.floats(-2, 2, width=16), min_size=size, max_size=size)
    return [np.reshape(draw(numbers), shape) for _ in range(n)], steps


def run(steps, inputs):
    values = list(inputs)
    for name, *places in steps:
        operands = [values[i] for i in places]
        values.append(UNARY[name](*operands) if len(operands) == 1 else BINARY[name](*operands))
    return values[-1].sum()


@given(programs())
def test_gradients_are_autograds_and_obey_the_chain_rule(program):
    inputs, steps = program
    graph = computational_graph(lambda *x: run(steps, x), *inputs)
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
    loss = run(steps, leaves)
    expected = torch.autograd.grad(loss, leaves, materialize_grads=True)
    assert graph.output.value == loss.item()
    for i, leaf in enumerate(expected):
        np.testing.assert_allclose(gradient(graph, f"x{i}"), leaf.detach(), rtol=1e-12, atol=1e-12)
    check_chain_rule(graph)


@given(programs())
def test_gradients_agree_with_differences(program):
    inputs, steps = program
    if any(step[0] == "max" for step in steps):  # has kinks
        steps = [("+", *step[1:]) if step[0] == "max" else step for step in steps]
    graph = computational_graph(lambda *x: run(steps, x), *inputs)
    direction = [np.cos(1.0 + i + np.arange(x.size)).reshape(x.shape) for i, x in enumerate(inputs)]
    h = 1e-6
    high, low = (
        float(run(steps, [torch.tensor(x + s * h * d) for x, d in zip(inputs, direction, strict=True)]))
        for s in (1, -1)
    )
    slope = sum(float((gradient(graph, f"x{i}") * d).sum()) for i, d in enumerate(direction))
    curvature = max(abs(high), 1.0) * max(abs(slope), 1.0)
    assert abs((high - low) / (2 * h) - slope) < 1e-6 * curvature**2


def test_two_uses_of_one_value_have_edges_of_their_own():
    graph = computational_graph(lambda x: x * x, 3)
    assert [(edge.source, edge.target, float(edge.product)) for edge in graph.edges] == [(0, 1, 3.0), (0, 1, 3.0)]
    assert gradient(graph, "x") == 6
    assert gradient(computational_graph(lambda x: x + x, 3), "x") == 2
    residual = computational_graph(lambda x: x + torch.tanh(x), 0.5)
    products = [float(edge.product) for edge in residual.out_of("x")]
    assert sorted(products) == pytest.approx(sorted([1, 1 - np.tanh(0.5) ** 2]))
    # what goes into tanh is not counted again in the sum's local derivative
    assert [float(edge.local) for edge in residual.into("f")] == [1.0, 1.0]


def test_parameters_and_constants_from_outside_take_part_under_their_names():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.tensor([[0.5, -1.0]], dtype=torch.float64), torch.tensor([1])

    def cost():
        logits = model(x)
        return F.cross_entropy(logits, y)

    graph = computational_graph(cost)
    assert [(node.name, node.operation) for node in graph.nodes if node.operation] == [
        *(("", "linear"), ("", "tanh"), ("logits", "linear"), ("cost", "cross_entropy"))
    ]
    assert all(p.grad is None for p in model.parameters())
    expected = torch.autograd.grad(cost(), list(model.parameters()))
    for (name, _), grad in zip(model.named_parameters(), expected, strict=True):
        np.testing.assert_allclose(gradient(graph, name), grad, rtol=1e-12)
    assert gradient(graph, "x") is None
    assert value(graph, "y") == [1]
    check_chain_rule(graph)


def test_a_recurrent_layer_with_lists_of_parameters_and_several_outputs():
    rnn = nn.GRU(2, 3).double()
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = computational_graph(lambda: rnn(x)[0].sum())
    names = [name for name, _ in rnn.named_parameters()]
    expected = torch.autograd.grad(rnn(x)[0].sum(), list(rnn.parameters()))
    for name, grad in zip(names, expected, strict=True):
        np.testing.assert_allclose(gradient(graph, name), grad, rtol=1e-10)
    check_chain_rule(graph)


def test_each_of_several_outputs_is_a_node():
    graph = computational_graph(lambda x: torch.mul(*torch.sort(x)[0].split(1)).sum(), [3, 2])
    assert [node.operation for node in graph.nodes] == ["", "sort", "split", "split", "*", "sum"]
    assert gradient(graph, "x").tolist() == [2, 3]
    check_chain_rule(graph)


@pytest.mark.parametrize(
    ("function", "sign", "slope"),
    [
        (lambda x: 2 * x, "* 2", 2),
        (lambda x: x - 0.5, "- 0.5", 1),
        (lambda x: 1 - x, "1 -", -1),
        (lambda x: 1 / x, "1 /", -0.25),
        (lambda x: x**3, "** 3", 12),
        (lambda x: torch.add(x, x, alpha=2), "add", 3),
        (lambda x: x.abs(), "abs", 1),
        (lambda x: x.real, "", 1),  # of a real number is itself: no operation
    ],
)
def test_signs_show_numbers(function, sign, slope):
    graph = computational_graph(function, 2)
    assert graph.output.operation == sign
    assert gradient(graph, "x") == slope


def test_what_does_not_contribute_is_left_out_and_unused_inputs_have_gradient_zero():
    def g(x, unused):
        _ = torch.exp(x)
        y = x.detach() * x
        return y + torch.ones((), dtype=torch.float64)

    graph = computational_graph(g, 3, [1, 2])
    assert [node.label for node in graph.nodes] == ["x", "unused", "constant", "y", "constant", "g"]
    assert gradient(graph, "unused").tolist() == [0, 0]
    assert gradient(graph, "x") == 3


def test_the_users_tensors_stay_as_they_are():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    graph = computational_graph(lambda a: (a * a).sum(), x)
    assert x.dtype == torch.float32
    assert x.grad is None
    assert value(graph, "a").dtype == np.float64
    with torch.no_grad():
        assert gradient(computational_graph(lambda a: a * a, 3), "a") == 6


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(context, upstream):
        return upstream * 2 * context.saved_tensors[0]


def changing(x):
    y = x * 2
    y += 1
    return y


def filling(x):
    y = torch.zeros(2, dtype=torch.float64)
    y[0] = x
    return y.sum()


OUTSIDE = 2 * torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("function", "inputs", "error", "message"),
    [
        (torch.sin, [1], TypeError, "expected a Python function"),
        (lambda x: x, [1, 2], TypeError, r"takes \(x\), got 2 inputs"),
        (lambda x: 3.0, [1], TypeError, "must return a tensor, it returned float"),
        (lambda x: x, [[1, 2]], ValueError, r"one entry, it has shape \(2,\)"),
        (lambda x: x.detach(), [1], ValueError, "does not depend differentiably"),
        (changing, [1], ValueError, "add changes a tensor in place"),
        (filling, [1], ValueError, "setitem changes a tensor in place"),
        (lambda x: Squared.apply(x) + 1, [1], ValueError, r"add gets a tensor of shape \(\).*out of sight"),
        (lambda: OUTSIDE.sum(), [], ValueError, r"sum gets a tensor of shape \(2,\).*out of sight"),
    ],
)
def test_errors_say_what_to_do(function, inputs, error, message):
    with pytest.raises(error, match=message):
        computational_graph(function, *inputs)


def test_a_jacobian_too_large_to_look_at_is_left_out():
    n = 1 + int(MOST_ENTRIES**0.5)
    graph = computational_graph(lambda x: x.exp().sum(), np.zeros(n))
    first, second = graph.edges
    assert first.local is None
    assert second.local.shape == (n,)
    assert first.product.tolist() == [1] * n
    assert f">{n} × {n}<" in texts(plot_local_gradients(graph, "x"))[-1]


def test_nodes_are_found_by_name_then_operation_then_number():
    graph = computational_graph(lambda x: torch.tanh(x) * torch.tanh(2 * x), 1)
    assert graph.find("x") == 0
    assert graph.find("f") == graph.find(-1) == len(graph.nodes) - 1
    assert graph.nodes[graph.find("* 2")].value == 2
    with pytest.raises(ValueError, match=r"several nodes are called 'tanh'.*\[1, 3\]"):
        graph.find("tanh")
    with pytest.raises(ValueError, match=r"no node is called 'q'; there are x, tanh"):
        graph.find("q")
    with pytest.raises(ValueError, match="there is no node 5"):
        graph.find(5)


def texts(figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations if annotation.text]


def test_the_figure_shows_values_gradients_and_local_derivatives():
    graph = computational_graph(f, -2, 5, -4)
    info = _graph_info(graph)
    assert info.gradient_names == [f"∂f/∂{name} = " for name in "xyzqf"]
    shown = " ".join(texts(plot_computational_graph(graph)))
    for text in ("q = 3", "f = −12", "∂f/∂z = 3", "∂f/∂q = −4", "∂f/∂x = −4", "∂f/∂y = −4", "∂f/∂f = 1", "× −4"):
        assert f">{text}<" in shown


def test_edges_lead_from_left_to_right_and_two_between_the_same_nodes_apart():
    graph = computational_graph(lambda x, y: x * x * torch.tanh(y) + x, 2, 1)
    layers = _layers(graph)
    info = _graph_info(graph)
    assert [x for x, _ in info.places] == layers
    assert len(set(info.places)) == len(graph.nodes)
    for edge, path in zip(graph.edges, info.paths, strict=True):
        assert (path[0], path[-1]) == (info.places[edge.source], info.places[edge.target])
        assert all(a[0] < b[0] for a, b in pairwise(path))
    middles = [path[1] for path in info.paths]
    assert len(set(middles)) == len(middles)
    assert layers[graph.find("y")] == layers[graph.find("tanh")] - 1  # not at the far left without need


def test_nodes_have_room_and_the_frame_holds_all_edges():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.ones(2, 3, dtype=torch.float64)
    graph = computational_graph(lambda: model(x).exp().sum() + sum((p * p).sum() for p in model.parameters()))
    info = _graph_info(graph)
    for column in {x for x, _ in info.places}:
        rows = sorted(y for x, y in info.places if x == column)
        assert all(b - a >= 1 for a, b in pairwise(rows))
    layout = plot_computational_graph(graph).layout
    points = [point for path in info.paths for point in path]
    for axis, values in zip((layout.xaxis, layout.yaxis), zip(*points, strict=True), strict=True):
        assert axis.range[0] < min(values) < max(values) < axis.range[1]


def test_a_node_with_what_it_gets_and_sends_back():
    graph = computational_graph(lambda x, y: x * x + 3 * x - x * y, 2, 5)
    info = _local_info(graph, "x")
    assert [float(edge.product) for edge, _ in info.edges] == [2, 2, 3, -5]
    assert info.notes == ("∂f/∂x = 2 + 2 + 3 − 5 = 2",)
    assert all(place[0] > 0 for _, place in info.edges)
    board = computational_graph(f, -2, 5, -4)
    shown = texts(plot_local_gradients(board))
    for lines in (("−4", "× 1", "= −4"), ("3", "× 1", "= 3")):
        assert any(all(f">{line}<" in text for line in lines) for text in shown)
    info = _local_info(board, "q")
    assert [place[0] for _, place in info.edges] == [-1, -1, 1]


def test_tensors_are_shown_by_shape_and_norm():
    graph = computational_graph(lambda w, x: torch.tanh(w @ x).sum(), [[3, 0, 0], [0, 4, 0]], [1, 0, 0])
    shown = " ".join(texts(plot_computational_graph(graph)))
    assert "w (2×3)<br>‖5‖" in shown
    local = plot_local_gradients(graph, "tanh")
    assert "tensors by norm" in local.layout.title.subtitle.text
    assert not any(f">{sign} ‖" in text for text in texts(local) for sign in "×=")  # norms do not multiply


def test_names_from_outside_are_no_markup():
    graph = computational_graph(lambda x: x.exp(), 1)
    object.__setattr__(graph.nodes[0], "name", "<b>")
    assert any("&lt;b&gt;" in text for text in texts(plot_computational_graph(graph)))
    assert not any("<b> =" in text for text in texts(plot_computational_graph(graph)))


def test_what_is_too_large_to_draw_is_refused():
    def deep(x):
        for _ in range(MOST_NODES):
            x = torch.tanh(x)
        return x

    graph = computational_graph(deep, 1)
    with pytest.raises(ValueError, match=f"{MOST_NODES + 1} nodes, at most {MOST_NODES}"):
        plot_computational_graph(graph)
    plot_local_gradients(graph, 7)
    wide = computational_graph(lambda *x: torch.stack(x).sum(), *range(MOST_EDGES + 1))
    with pytest.raises(ValueError, match=f"{MOST_EDGES + 1} edges on one side"):
        plot_local_gradients(wide, "stack")
    constant = computational_graph(lambda x: x * torch.ones(1, dtype=torch.float64), 2)
    with pytest.raises(ValueError, match="is a constant"):
        plot_local_gradients(constant, 1)


def test_without_igraph_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(ImportError, match=r"landscape\[graph\]"):
        plot_computational_graph(computational_graph(f, 1, 2, 3))

"""The lecture's blackboard and the small network: what the figures say, against what is known."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def drawn(scripts, tmp_path_factory):
    from lecture import computational_graph, local_gradients
    from lecture.setting import Setting

    shares = []
    setting = Setting(tmp_path_factory.mktemp("graph"), quick=True, data="digits", report=shares.append)
    results = computational_graph.draw(setting), local_gradients.draw(setting)
    assert shares == [1.0, 1.0]
    return results


def test_the_blackboard_is_the_lectures(drawn):
    graph, _ = drawn
    assert graph.numbers["the blackboard is reproduced exactly"] is True
    assert graph.numbers["value and gradient of each node of the blackboard"]["q"] == (3, -4)
    assert "q = 3, f = -12; ∂f/∂z = 3, ∂f/∂q = -4" in graph.caption
    assert list(graph.figures) == ["blackboard", "network"]
    titles = [figure.layout.title.text for result in drawn for figure in result.figures.values()]
    assert len(set(titles)) == 4


def test_the_networks_gradient_is_that_of_its_tensors(drawn):
    from lecture.computational_graph import network

    graph, _ = drawn
    parameters, x, y = network()
    leaves = [p.clone().requires_grad_() for p in parameters]
    cost = F.cross_entropy(F.linear(torch.tanh(F.linear(x, *leaves[:2])), *leaves[2:]), y)
    norms = graph.numbers["gradient norm of each tensor"]
    for name, gradient in zip(("W1", "b1", "W2", "b2"), torch.autograd.grad(cost, leaves), strict=True):
        assert norms[name] == pytest.approx(gradient.norm().item(), rel=1e-12)
    assert graph.numbers["cost of the network"] == pytest.approx(cost.item(), rel=1e-12)
    assert graph.numbers["relative difference from central differences"] < 1e-8
    assert graph.numbers["parameters"] == 12


def test_the_network_in_numbers_is_the_same_network(drawn):
    from lecture.local_gradients import network_in_numbers

    graph, _ = drawn
    cost = network_in_numbers()
    assert float(cost.output.value) == pytest.approx(graph.numbers["cost of the network"], rel=1e-12)
    names = ("u11", "u12", "u21", "u22")
    norm = np.linalg.norm([cost.nodes[cost.find(name)].gradient for name in names])
    assert norm == pytest.approx(graph.numbers["gradient norm of each tensor"]["W1"], rel=1e-12)


def test_the_three_numbers_of_each_edge(drawn):
    _, local = drawn
    edges = {edge["from"]: (edge["local"], edge["upstream"], edge["product"]) for edge in local.numbers["product node"]}
    assert edges == {"q": (-4, 1, -4), "z": (3, 1, 3)}
    into, *out = local.numbers["hidden unit"]
    assert into["upstream"] == pytest.approx(sum(edge["product"] for edge in out))
    assert len(out) == 2
    assert all(value for value in local.numbers.values() if isinstance(value, bool))
    assert sum(isinstance(value, bool) for value in local.numbers.values()) == 3

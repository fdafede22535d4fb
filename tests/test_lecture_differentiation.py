"""The lecture's three ways to differentiate: each against another way to the same number, and no second computation."""

import json

import numpy as np
import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

from landscape.data import load
from landscape.models import build

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def module(scripts):
    from lecture import differentiation

    return differentiation


@pytest.fixture(scope="module")
def measurements(scripts):
    from lecture.differentiation import measurements

    return measurements


@pytest.fixture(scope="module")
def setting(scripts, lecture_folder):
    from lecture.setting import Setting

    shares = []
    return Setting(lecture_folder("L6"), quick=True, data="digits", report=shares.append), shares


@pytest.fixture(scope="module")
def drawn(module, setting):
    return module.draw(setting[0])


@pytest.fixture(scope="module")
def images():
    data = load("digits", limit=100)
    return F.avg_pool2d(data.inputs, 2).flatten(1), data.targets


@pytest.fixture(scope="module")
def net(measurements, images):
    return measurements.network(*images, [3])


def test_the_three_modes_give_the_exact_gradient(measurements, net, images):
    exact = measurements.exact_gradient(net, *images)
    wide = net.theta.double()
    for method in (measurements.reverse_mode, measurements.forward_mode):
        assert float((method(net.cost, wide) - exact).norm() / exact.norm()) < 1e-14
        assert 1e-9 < float((method(net.cost, net.theta) - exact).norm() / exact.norm()) < 1e-6
    model = build("mlp", seed=0, input_shape=[16], classes=10, widths=[3])
    x, y = images
    nn.CrossEntropyLoss()(model(x), y).backward()
    assert torch.cat([p.grad.ravel() for p in model.parameters()]).double() == pytest.approx(exact, abs=1e-6)


def test_operations_are_counted(measurements):
    counts = [measurements.count_operations(depth) for depth in (1, 2, 3, 4)]
    # per unit two products, two sums, one tanh; and the sum of the two units; a layer contains the one before twice
    assert [c["formula"] for c in counts] == [11, 31, 71, 151]
    # 1 - tanh^2, times the input: tanh is counted with its 2 products and 2 sums
    assert counts[0]["derivative by one weight"] == 2 + 4 + 2
    steps = np.diff([c["automatic, all weights"] for c in counts])
    assert len(set(steps.tolist())) == 1
    assert steps[0] < 3 * 10  # ten operations forward, and no more than two for each on the way back


def test_sympy_and_torch_differentiate_the_same_formula(measurements):
    symbols = [sympy.symbols(f"w{layer}_:6") for layer in range(2)]
    weights = torch.linspace(-0.9, 1.1, 12, dtype=torch.float64).requires_grad_()
    inputs = torch.tensor([0.4, -0.3], dtype=torch.float64)
    value = measurements.formula(inputs.unbind(), [row.unbind() for row in weights.view(2, 6)], torch.tanh)
    gradient = torch.autograd.grad(value, weights)[0]
    a, b = sympy.symbols("a b")
    written = measurements.formula((a, b), symbols, sympy.tanh)
    numbers = dict(zip([s for row in symbols for s in row], weights.tolist(), strict=True)) | {a: 0.4, b: -0.3}
    for i in (0, 5, 9):
        derived = float(sympy.diff(written, symbols[i // 6][i % 6]).subs(numbers))
        assert derived == pytest.approx(float(gradient[i]), rel=1e-12)


def test_training_by_backpropagation_is_that_of_torch(module, drawn, images):
    x, y = images
    model = build("mlp", seed=0, input_shape=[16], classes=10, widths=[3])
    descent = torch.optim.SGD(model.parameters(), lr=module.RATE)
    for _ in range(module.QUICK.steps):
        descent.zero_grad()
        F.cross_entropy(model(x), y).backward()
        descent.step()
    final = F.cross_entropy(model(x), y).item()
    assert drawn.numbers["final cost of training with autograd"] == pytest.approx(final, rel=1e-4)
    # a good step trains alike, a large one does not, one that rounding swallows does not move
    by_step = drawn.numbers["final cost of training, by step"]
    assert by_step["0.003"] == pytest.approx(final, rel=1e-2)
    assert by_step["1"] > 1.05 * final
    assert by_step["1e-07"] == pytest.approx(drawn.numbers["first cost of training"], rel=1e-2)


def test_the_numbers_are_those_of_the_figures(drawn):
    numbers, figures = drawn.numbers, drawn.figures
    assert list(figures) == ["errors", "depth", "cost", "symbolic", "training"]
    curves = {trace.name: trace for trace in figures["errors"].data}
    for name, found in numbers["difference quotients"].items():
        i = int(np.argmin(curves[name].y))
        assert (curves[name].x[i], curves[name].y[i]) == (found["best step"], found["smallest error"])
    for dtype, error in numbers["error of automatic differentiation"].items():
        assert set(curves[f"autograd, {dtype}"].y) == {error}
        assert error < 4 * torch.finfo(getattr(torch, dtype)).eps
    times = {trace.name: dict(zip(trace.x, trace.y, strict=True)) for trace in figures["cost"].data}
    ratios = numbers["evaluations that a gradient takes as long as, by number of parameters"]
    for p, found in ratios.items():
        assert found["reverse mode"] == pytest.approx(times["reverse mode"][p] / times["the cost itself, once"][p])
        assert ("differences" in found) == (p in times["forward differences"])
    assert {trace.name for trace in figures["training"].data} == {"autograd", "h = 1", "h = 0.003", "h = 1e-07"}
    assert "digits" in drawn.caption
    assert "100 images of digits" in figures["errors"].layout.title.subtitle.text.replace("<br>", " ")
    json.dumps(numbers)


def test_what_does_not_depend_on_the_clock_holds_in_small(drawn):
    claims = drawn.numbers["claims"]
    assert claims["quotients have truncation errors at large steps and rounding errors at small ones"]
    assert claims["no step makes a quotient as exact as automatic differentiation"]
    assert claims["computer algebra: the derivative grows faster with depth than the function"]
    assert claims["training with quotients can stall"]


def test_claims_are_denied_where_the_numbers_say_so(module):
    from landscape.differences import GradientErrors

    flat = np.full((2, 1, 3), 1e-9)
    errors = GradientErrors(np.array([1e-6, 1e-4, 1e-2]), ("float32",), flat, np.array([1e-7]), np.ones(2),
                            np.ones((2, 1)), np.array([3, 4]))  # fmt: skip
    seconds = {p: {"cost": 1.0, "reverse mode": 10.0, "differences": 3.0, "forward mode": 3.0} for p in (10, 100)}
    counts = dict.fromkeys(("formula", "derivative by one weight", "automatic, all weights"), 5)
    runs = {0.0: [2.0, 1.0], 0.1: [2.0, 1.0]}
    numbers = module.findings(errors, {1: [errors], 4: [errors]}, seconds, {1: counts, 2: counts}, runs)
    assert set(numbers["claims"].values()) == {False}
    assert numbers["exponent of the seconds in the number of parameters"]["differences"] == pytest.approx(0, abs=1e-12)
    runs = {0.0: [2.0, 1.0], 0.1: [2.0, 0.5, 1.0], 1e-9: [2.0, 2.0]}
    claims = module.findings(errors, {1: [errors]}, seconds, {1: counts, 2: counts}, runs)["claims"]
    assert claims["training with quotients can be unstable"]
    assert claims["training with quotients can stall"]


def test_progress_runs_from_start_to_end(drawn, setting):
    shares = setting[1]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_a_second_figure_comes_from_what_is_stored(module, drawn, setting, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed again")

    for name in ("error_curves", "time_gradients", "count_operations", "train", "exact_gradient"):
        monkeypatch.setattr(module, name, refuse)
    again = module.draw(setting[0])
    assert again.caption == drawn.caption
    assert json.loads(json.dumps(again.numbers)) == json.loads(json.dumps(drawn.numbers))
    monkeypatch.setattr(module, "RATE", 0.25)
    with pytest.raises(AssertionError, match="computed again"):
        module.draw(setting[0])

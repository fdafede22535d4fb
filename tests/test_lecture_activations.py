"""The figure of the activation functions, against their formulas."""

import numpy as np
import pytest
import torch

from landscape.models.mlp import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def drawn(scripts, tmp_path_factory):
    from lecture import activations
    from lecture.setting import Setting

    return activations.draw(Setting(tmp_path_factory.mktemp("L1"), quick=True, data="digits"))


def curves(figure, label):
    """Return the points of the curves of that name, panel by panel."""
    return [(np.array(trace.x), np.array(trace.y, dtype=float)) for trace in figure.data if trace.name == label]


def test_functions_and_derivatives_are_those_of_the_formulas(drawn):
    figure = drawn.figures["activations"]
    formulas = [
        (lambda x: (x > 0) * 1.0, lambda x: 0 * x),
        (lambda x: 1 / (1 + np.exp(-x)), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
        (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
        (lambda x: x * (x > 0), lambda x: (x > 0) * 1.0),
        (lambda x: np.maximum(0.5 - 0.5 * x, x), lambda x: np.where(x < 1 / 3, -0.5, 1.0)),
    ]
    for label, which in (("f", 0), ("f'", 1)):
        found = curves(figure, label)
        assert len(found) == len(formulas)
        for (x, y), pair in zip(found, formulas, strict=True):
            drawn_points = ~np.isnan(y)
            assert (~drawn_points).sum() <= 1  # the jump
            np.testing.assert_allclose(y[drawn_points], pair[which](x)[drawn_points], atol=1e-6)


def test_shares_are_those_of_the_formulas(drawn):
    reach, small = 8.0, 0.01
    ends = {"sigmoid": np.arccosh(1 / (2 * small) - 1), "tanh": np.arccosh(small**-0.5)}
    for name, expected in {
        "step": 1.0,
        **{name: 1 - end / reach for name, end in ends.items()},
        "ReLU": 0.5,
        "maxout": 0.0,
    }.items():
        share = drawn.numbers[name]["share of the axis with a nearly zero derivative"]
        assert share == pytest.approx(expected, abs=2 / drawn.numbers["points"]), name
        zones = drawn.numbers[name]["zones of nearly zero derivative"]
        assert sum(high - low for low, high in zones) == pytest.approx(2 * reach * share)
    assert "not on the sides" not in drawn.caption


def test_shaded_are_these_zones_and_no_others(drawn):
    figure = drawn.figures["activations"]
    shaded = sorted((shape.xref, shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect")
    panels = {
        name: "x" if not i else f"x{i + 1}" for i, name in enumerate(["step", "sigmoid", "tanh", "ReLU", "maxout"])
    }
    zones = [
        (axis, *zone)
        for name, axis in panels.items()
        for zone in drawn.numbers[name]["zones of nearly zero derivative"]
    ]
    assert shaded == sorted(zones)
    assert len(shaded) == 1 + 2 + 2 + 1


def test_the_step_has_no_derivative_at_its_jump_though_autograd_returns_one(drawn):
    step = drawn.numbers["step"]
    assert step["derivative at 0 by autograd"] == 0
    assert list(step["difference quotient at 0"].values()) == pytest.approx([5, 50, 500])


def test_a_claim_that_does_not_hold_is_reported(scripts, tmp_path, monkeypatch):
    from lecture import activations
    from lecture.setting import Setting

    real = activations.units()
    monkeypatch.setattr(activations, "units", lambda: {**real, "ReLU": torch.nn.LeakyReLU(0.5)})
    drawn = activations.draw(Setting(tmp_path, quick=True, data="digits"))
    assert not drawn.numbers["ReLU"]["nearly zero on the sides that the lecture names"]
    assert "not on the sides" in drawn.caption


def test_the_units_are_those_of_the_networks(scripts):
    from lecture import activations

    for name, unit in activations.units().items():
        assert type(unit) is ACTIVATIONS[name.lower()]

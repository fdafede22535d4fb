"""Difference quotients against closed forms: their truncation, their rounding, the best step, the evaluations."""

import math

import numpy as np
import pytest
import torch
from problems import TwoParameters, asymmetric_loss, one_sample

from landscape import Objective, compare_gradients, difference_gradient

THETA = torch.tensor([1.0, -0.7, 2.3], dtype=torch.float64)
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def sines(theta):
    return theta.sin().sum()


def cubes(theta):
    return (theta**3).sum()


def norm_ratio(a, b):
    return float(a.norm() / b.norm())


@pytest.fixture(scope="module")
def errors():
    return compare_gradients(sines, THETA, 10.0 ** np.arange(-13, 0.5, 0.5))


def test_quotients_are_what_their_definition_says():
    h = 0.3
    forward, central = (difference_gradient(cubes, THETA, h, kind) for kind in ("forward", "central"))
    assert forward.tolist() == pytest.approx((3 * THETA**2 + 3 * THETA * h + h**2).tolist(), rel=1e-13)
    assert central.tolist() == pytest.approx((3 * THETA**2 + h**2).tolist(), rel=1e-13)


def test_central_quotients_of_a_quadratic_are_exact_with_any_step():
    scale = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)

    def quadratic(theta):
        return (scale * theta**2).sum() + theta[0] * theta[2]

    exact = 2 * scale * THETA + THETA.flip(0) * torch.tensor([1.0, 0, 1.0])
    for h in (0.01, 1.0, 100.0):
        assert difference_gradient(quadratic, THETA, h, "central").tolist() == pytest.approx(exact.tolist(), rel=1e-11)
    assert difference_gradient(quadratic, THETA, 1.0).tolist() == pytest.approx((exact + scale).tolist(), rel=1e-13)


@pytest.mark.parametrize(("kind", "calls"), [("forward", 4), ("central", 6)])
def test_evaluations_are_as_many_as_stated(kind, calls, errors):
    n = 0

    def counted(theta):
        nonlocal n
        n += 1
        return sines(theta)

    before = THETA.clone()
    difference_gradient(counted, THETA, 0.1, kind)
    assert n == calls == errors.calls[("forward", "central").index(kind)]
    assert torch.equal(THETA, before)


def test_factors_have_their_closed_forms(errors):
    theta = THETA.float().double()  # where the precisions meet
    gradient = theta.cos()
    assert errors.truncation[0] == pytest.approx(norm_ratio(theta.sin(), gradient) / 2, rel=1e-6)
    assert errors.truncation[1] == pytest.approx(norm_ratio(gradient, gradient) / 6, rel=1e-6)
    f, shift = abs(float(sines(theta))), (theta * gradient).abs()
    for d, dtype in enumerate(errors.dtypes):
        u = EPS[dtype] / 2
        assert errors.rounding[0, d] == pytest.approx(norm_ratio(u * (2 * f + shift), gradient), rel=1e-12)
        assert errors.rounding[1, d] == pytest.approx(norm_ratio(u * (f + shift), gradient), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "power"), [("forward", 1 / 2), ("central", 1 / 3)])
def test_the_best_step_is_that_of_theory(errors, dtype, kind, power):
    h, smallest = errors.best(kind, dtype)
    assert EPS[dtype] ** power / 10 < h < 10 * EPS[dtype] ** power
    order = round(1 / power) - 1
    assert EPS[dtype] ** (order * power) / 100 < smallest < 5 * EPS[dtype] ** (order * power)
    predicted, least = errors.optimum(kind, dtype)
    assert h / 10 < predicted < 10 * h
    fine = compare_gradients(sines, THETA, predicted * np.geomspace(0.5, 2, 201), dtypes=[getattr(torch, dtype)])
    curve = fine.predicted(kind, dtype)
    assert curve.min() == pytest.approx(least, rel=1e-6)
    assert np.argmin(curve) == 100


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["forward", "central"])
def test_the_prediction_is_the_truncation_error_of_large_steps_and_bounds_the_rounding_error(errors, dtype, kind):
    measured = errors.errors[("forward", "central").index(kind), errors.dtypes.index(dtype)]
    predicted = errors.predicted(kind, dtype)
    optimum = errors.optimum(kind, dtype)[0]
    large = (errors.steps > 10 * optimum) & (errors.steps < {"forward": 0.2, "central": 0.5}[kind])
    small = (errors.steps < optimum / 10) & (predicted < 0.5)
    assert large.any()
    assert measured[large] == pytest.approx(predicted[large], rel=0.1)
    assert (measured[small] < 2 * predicted[small]).all()  # a sum of three is not rounded once
    if dtype == "float64":
        assert np.median(measured[small] / predicted[small]) > 0.05
    slope = np.polyfit(np.log(errors.steps[large]), np.log(measured[large]), 1)[0]
    assert slope == pytest.approx(1 if kind == "forward" else 2, abs=0.05)


def test_a_step_that_rounding_swallows_gives_no_gradient():
    theta = torch.ones(2)
    assert difference_gradient(sines, theta, 1e-9).tolist() == [0, 0]
    found = compare_gradients(sines, theta, [1e-9], dtypes=[torch.float32])
    assert found.errors[:, 0, 0].tolist() == [1, 1]


def test_autograd_is_measured_against_what_is_known_better(errors):
    assert 1e-9 < errors.autograd[0] < EPS["float32"]
    assert math.isnan(errors.autograd[1])
    reference = THETA.float().double().cos() * 1.5
    found = compare_gradients(sines, THETA, [1e-3], reference=reference)
    assert found.autograd == pytest.approx([1 / 3, 1 / 3], rel=1e-6)
    assert found.errors.ravel() == pytest.approx(np.full(4, 1 / 3), rel=1e-2)


def test_a_linear_function_has_no_best_step():
    found = compare_gradients(lambda theta: 2 * theta.sum(), THETA, [1e-2, 1.0], dtypes=[torch.float64])
    assert found.truncation.tolist() == [0, 0]
    assert found.optimum("forward", "float64") == (math.inf, 0)


def test_an_objective_is_a_function_like_any_other():
    objective = Objective(TwoParameters(), one_sample(), loss=asymmetric_loss, metrics={})
    theta = torch.tensor([0.5, -1.5], dtype=torch.float64)

    def function(theta):
        return asymmetric_loss(theta[None], None)[0]

    a, b = theta.tolist()
    expected = [4 * a + 0.25 * b**3 + 0.1, b + 0.75 * a * b**2]
    assert difference_gradient(objective, theta, 1e-5, "central").tolist() == pytest.approx(expected, rel=1e-8)
    steps = [1e-6, 1e-2]
    own, plain = compare_gradients(objective, theta, steps), compare_gradients(function, theta, steps)
    assert own.truncation == pytest.approx(plain.truncation, rel=1e-6)
    assert own.errors[:, :, 1] == pytest.approx(plain.errors[:, :, 1], rel=0.1)
    assert (own.errors[:, 0, 0] > 100 * own.errors[:, 1, 0]).all()  # moved to float32, and rounded there


def test_progress_is_reported():
    shares = []
    compare_gradients(sines, THETA, [1e-3, 1e-2], report=shares.append)
    assert shares == [i / 8 for i in range(1, 9)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: difference_gradient(sines, THETA, 0.0), ValueError, "step h must be a finite number, above 0"),
        (lambda: difference_gradient(sines, THETA, math.nan), ValueError, "step h must be a finite number, above 0"),
        (lambda: difference_gradient(sines, THETA, 0.1, "backward"), ValueError, "forward, central, got 'backward'"),
        (lambda: difference_gradient(sines, THETA[None], 0.1), ValueError, r"vector \[p\], got shape \[1, 3\]"),
        (lambda: difference_gradient(sines, torch.arange(3), 0.1), TypeError, "expected real floating-point"),
        (lambda: difference_gradient(torch.sin, THETA, 0.1), TypeError, r"0-D tensor .*, got torch.float64 \[3\]"),
        (lambda: difference_gradient(lambda t: 1.0, THETA, 0.1), TypeError, "got float"),
        (lambda: compare_gradients(lambda t: sines(t.double()), THETA, [0.1]), TypeError, "precision of theta"),
        (lambda: compare_gradients(sines, THETA, []), ValueError, "steps must be"),
        (lambda: compare_gradients(sines, THETA, [0.1, -0.1]), ValueError, "step h must be a finite number, above 0"),
        (lambda: compare_gradients(cubes, 0 * THETA, [0.1]), ValueError, "norm 0: choose a point"),
    ],
)
def test_mistakes_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()

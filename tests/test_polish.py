import copy
import math

import numpy as np
import pytest
import torch
from problems import KNOWN_MINIMA, class_data, one_sample, randomize
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from landscape.data import load
from landscape.directions import random_directions
from landscape.evaluation import evaluate
from landscape.hessian import Hessian
from landscape.minima.newton import Derivatives, Ends, _step
from landscape.minima.polish import polish, polish_many, runs_away
from landscape.objective import Objective

XOR = (torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([0.0, 1, 1, 0]))


def logistic(output, target):
    return F.binary_cross_entropy_with_logits(output[:, 0], target, reduction="none")


def xor(activation=nn.Tanh, penalty=1e-3, **options):
    """The 2-2-1 network on the exclusive or."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), activation(), nn.Linear(2, 1))
    return Objective(model, XOR, loss=logistic, penalty=penalty, **options)


def starts(n, p, scale=2.0, seed=0):
    return scale * torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Coordinates(nn.Module):
    """Its output are its parameters, so that the loss can be any function of them."""

    def __init__(self, k):
        super().__init__()
        self.x = nn.Parameter(torch.full((k,), 0.1, dtype=torch.float64))

    def forward(self, x):
        return self.x.expand(len(x), -1)


def function(f, k=2):
    """An objective whose loss is `f` of `k` coordinates."""
    return Objective(Coordinates(k), one_sample(), loss=lambda output, target: f(*output.unbind(1)), metrics={})


def separated(**options):
    """Logistic regression on data that a line separates, with two logits."""
    x, _ = class_data(12, (2,), 2)
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).long()
    return Objective(randomize(nn.Linear(2, 2)), (x, y), **options)


@pytest.mark.parametrize("method", ["newton", "krylov"])
@pytest.mark.parametrize(
    "name", ["Himmelblau", "six-hump camel", "Mueller-Brown", "Goldstein-Price", "Styblinski-Tang-3"]
)
def test_descents_end_in_the_known_minima_and_find_them_all(name, method):
    problem = KNOWN_MINIMA[name]
    low, high = np.array(problem.box).T
    points = np.random.default_rng(0).uniform(low, high, (60, len(low)))
    if method == "krylov":  # one after another: near each minimum, two starts are enough
        points = np.repeat(problem.minima, 2, axis=0) + np.random.default_rng(0).normal(
            0, 0.01, (2 * len(problem.minima), len(low))
        )
    objective = function(problem.function, len(low))
    results = polish_many(objective, torch.from_numpy(points), method=method, progress=False)
    assert {r.method for r in results} == {method}
    found = set()
    for r in results:
        if r.status != "converged" or not ((low < r.theta.numpy()) & (r.theta.numpy() < high)).all():
            continue  # beyond the box
        distances = np.abs(problem.minima - r.theta.numpy()).max(axis=1)
        assert distances.min() < 2e-4  # as exactly as the table gives them
        assert r.gradient_norm <= 1e-10 * (1 + abs(r.loss))
        found.add(int(distances.argmin()))
    assert len(found) == len(problem.minima)


def test_a_step_solves_the_trust_region_problem():
    generator = np.random.default_rng(1)
    values = np.sort(generator.normal(size=(40, 3)), axis=1)
    values[::4] = np.abs(values[::4]) + 0.1
    values.sort(axis=1)
    c = generator.normal(size=(40, 3))
    c[1::4, 0] = 0  # nothing along the lowest eigenvector
    radius = generator.uniform(0.05, 3, size=40)
    steps, predicted = _step(values, c, radius, 1e-10)
    assert (np.linalg.norm(steps, axis=1) <= radius * (1 + 1e-9)).all()
    # the smallest of many points in the ball, and of descents from some of them
    inside = generator.normal(size=(4000, 3))
    inside *= (generator.uniform(size=4000) ** (1 / 3) / np.linalg.norm(inside, axis=1))[:, None]
    for lam, b, r, reached in zip(values, c, radius, predicted, strict=True):

        def model(s, lam=lam, b=b):
            return (s * b).sum(axis=-1) + 0.5 * (lam * s**2).sum(axis=-1)

        points = np.concatenate([r * inside, r * inside / np.linalg.norm(inside, axis=1, keepdims=True)])
        start = points[model(points).argmin()]
        best = minimize(model, start, constraints={"type": "ineq", "fun": lambda s, r=r: r**2 - s @ s}, tol=1e-14)
        assert -reached <= min(best.fun, model(points).min()) + 1e-9


def test_a_start_in_float32_is_polished_in_float64():
    objective = xor()
    assert objective.dtype == torch.float32
    before = copy.deepcopy(objective.model.state_dict())
    result = polish(objective, starts(1, 9)[0].float())
    assert result.status == "converged"
    assert result.theta.dtype == torch.float64
    assert result.gradient_norm < 1e-14
    assert objective.dtype == torch.float32
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.model.state_dict().items())


def test_many_end_where_each_ends_alone():
    objective, points = xor(), starts(8, 9)
    together = polish_many(objective, points, progress=False)
    for theta, one in zip(points, together, strict=True):
        alone = polish(objective, theta)
        assert (alone.status, alone.n_steps) == (one.status, one.n_steps)
        torch.testing.assert_close(alone.theta, one.theta, rtol=0, atol=1e-9)
    assert len({round(one.loss, 8) for one in together}) > 2


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_both_methods_end_in_the_same_minimum_near_it(activation):
    objective = xor(activation)
    ends = torch.stack([r.theta for r in polish_many(objective, starts(8, 9), progress=False)])
    near = ends + starts(8, 9, scale=3e-3, seed=1)
    by_newton, by_krylov = (polish_many(objective, near, method=m, progress=False) for m in ("newton", "krylov"))
    for end, newton, krylov in zip(ends, by_newton, by_krylov, strict=True):
        assert newton.status == krylov.status == "converged"
        torch.testing.assert_close(newton.theta, end, rtol=0, atol=1e-8)
        torch.testing.assert_close(krylov.theta, end, rtol=0, atol=1e-8)


def test_many_by_vmap_equal_the_objectives_own_derivatives():
    objective = xor().to(dtype=torch.float64)
    points = starts(5, 9)
    derivatives = Derivatives(objective, points[0])
    assert derivatives.by_vmap
    losses, gradients = derivatives.first(points.numpy())
    hessians = derivatives.second(points.numpy())
    for theta, loss, gradient, hessian in zip(points, losses, gradients, hessians, strict=True):
        own_loss, own_gradient = objective.loss_and_gradient(theta)
        assert loss == pytest.approx(own_loss, rel=1e-13)
        np.testing.assert_allclose(gradient, own_gradient, rtol=0, atol=1e-14)
        np.testing.assert_allclose(hessian, Hessian(objective, theta).products(torch.eye(9).double()), atol=1e-14)


def test_samples_in_chunks_and_points_in_groups_change_nothing(monkeypatch):
    x, y = class_data(31, (3,), 2)
    model = randomize(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double())
    whole, cut = (Objective(model, (x.double(), y), penalty=0.01, chunk_size=size) for size in (31, 4))
    points = starts(6, whole.layout.p)
    expected = Derivatives(whole, points[0])
    monkeypatch.setattr("landscape.minima.newton._BYTES", 5_000)
    found = Derivatives(cut, points[0])
    assert found._together < 16 < expected._together
    for a, b in zip(found.first(points.numpy()), expected.first(points.numpy()), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.second(points.numpy()), expected.second(points.numpy()), rtol=0, atol=1e-13)


def test_a_model_that_vmap_does_not_support_is_polished_point_by_point(caplog):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))

        def forward(self, x):
            if float(self.x[0].detach()) > 100:
                return 2 * self.x.expand(len(x), -1)
            return self.x.expand(len(x), -1)

    himmelblau = KNOWN_MINIMA["Himmelblau"].function
    objective = Objective(Branching(), one_sample(), loss=lambda o, t: himmelblau(*o.unbind(1)), metrics={})
    points = starts(4, 2)
    found = polish_many(objective, points, progress=False)
    assert "one after another" in caplog.text
    for a, b in zip(found, polish_many(function(himmelblau), points, progress=False), strict=True):
        torch.testing.assert_close(a.theta, b.theta, rtol=0, atol=1e-9)


class TestInfinity:
    @pytest.mark.parametrize("method", ["newton", "krylov"])
    def test_separable_logistic_regression_has_no_minimum(self, method):
        result = polish(separated(), method=method)
        assert result.status == "at infinity"
        assert result.loss < 1e-9

    @pytest.mark.parametrize("method", ["newton", "krylov"])
    def test_with_a_penalty_it_has_one(self, method):
        result = polish(separated(penalty=1e-2), method=method)
        assert result.status == "converged"
        assert result.gradient_norm < 1e-13

    @pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
    def test_no_minimum_of_the_exclusive_or_is_finite(self, activation):
        results = polish_many(xor(activation, penalty=0.0), starts(100, 9), progress=False)
        assert {r.status for r in results} == {"at infinity"}
        # not only where all samples are right: a half of them undecided is at infinity, too
        assert sum(abs(r.loss - math.log(2) / 2) < 1e-6 for r in results) > 10

    def test_data_that_overlap_have_a_finite_minimum(self):
        x, y = class_data(30, (2,), 2)
        objective = Objective(randomize(nn.Linear(2, 2)), (x, y))
        for method in ("newton", "krylov"):
            assert polish(objective, method=method).status == "converged"

    def test_a_loss_that_is_rounded_to_zero(self):
        objective = separated()
        result = polish(objective, 500 * polish(objective).theta)
        assert (result.loss, result.gradient_norm) == (0.0, 0.0)
        assert result.status == "at infinity"

    def test_an_algebraic_tail(self):
        objective = function(lambda a, b: 1 / (1 + a**2) + (b - 1) ** 2)
        result = polish(objective, torch.tensor([2.0, 0.0]), gtol=1e-6)
        assert result.status == "at infinity"

    @pytest.mark.parametrize("order", [2, 4])
    @pytest.mark.parametrize("shift", [0.0, 3.0])
    def test_a_degenerate_minimum_is_not_at_infinity(self, order, shift):
        # heading for larger norms, or for smaller ones
        objective = function(lambda a, b: (a - shift) ** order + (b - 1) ** 2)
        for start in (shift - 1.5, shift + 1.5):
            result = polish(objective, torch.tensor([start, 0.2]))
            assert result.status == "converged"
            np.testing.assert_allclose(result.theta, [shift, 1], atol=1e-3 if order == 4 else 1e-9)

    def test_what_tells_infinity_from_a_slow_descent(self):
        # along a line a(||g||), on which a descent went as far as ||g|| = 1e-7
        ways = {
            "exponential tail": (lambda g: -np.log(g), True),
            "algebraic tail": (lambda g: g**-0.5, True),
            "fourth order": (lambda g: 0.1 - 4 * g ** (1 / 3), False),
            "towards the origin": (lambda g: 40 + np.log(g), False),
            "second order": (lambda g: 1 - 1e5 * g, False),
        }
        objective = function(lambda a, b: a + b)
        for name, (way, expected) in ways.items():
            start = np.array([[way(1e-7), 0.0]])
            ends = Ends(start, np.zeros(1), np.array([[1e-7, 0]]), np.full((1, 2), 1e5), np.ones(1))
            away = runs_away(objective, ends, lambda _, norms, way=way: (np.array([[way(norms[0]), 0.0]]), norms))
            assert away.tolist() == [expected], name

    def test_a_residual_of_zero_is_not_at_infinity(self):
        # more parameters than samples: the loss of the square tends to zero at a finite point
        x, y = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, -0.2, 0.5])
        model = randomize(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
        objective = Objective(model, (x, y), loss=lambda o, t: (o[:, 0] - t) ** 2, metrics={})
        for method in ("newton", "krylov"):
            result = polish(objective, method=method)
            assert result.status == "converged"
            assert result.loss < 1e-18


def test_a_start_that_is_not_finite_is_said_to_be_so():
    points = starts(3, 9)
    points[1, 4] = math.nan
    first, second, third = polish_many(xor(), points, progress=False)
    assert second.status == "not finite"
    assert (second.n_steps, math.isnan(second.loss)) == (0, True)
    assert first.status == third.status == "converged"
    torch.testing.assert_close(third.theta, polish(xor(), points[2]).theta, rtol=0, atol=1e-9)
    assert polish(xor(), points[1], method="krylov").status == "not finite"


def test_a_loss_that_cancels_large_terms():
    problem = KNOWN_MINIMA["Himmelblau"]
    objective = function(lambda a, b: (problem.function(a, b) + 1e5) - 1e5)  # rounded to 1e-11
    for result in polish_many(objective, starts(40, 2), progress=False):
        assert (result.status, result.n_steps < 60) == ("converged", True)


@pytest.mark.parametrize("method", ["newton", "krylov"])
def test_a_wall_of_infinite_loss_is_stepped_back_from(method):
    objective = function(lambda a, b: a - a.log() + (b - 2) ** 2)  # NaN for a < 0
    result = polish(objective, torch.tensor([30.0, -3.0]), method=method)
    np.testing.assert_allclose(result.theta, [1, 2], atol=1e-9)


def test_too_few_steps():
    for method in ("newton", "krylov"):
        assert polish(xor(), starts(1, 9)[0], max_steps=3, method=method).status == "not converged"


def test_a_kink_is_no_critical_point():
    objective = function(lambda a, b: a.abs() + (b - 1) ** 2)
    for method in ("newton", "krylov"):
        result = polish(objective, torch.tensor([0.7, 0.0]), method=method, max_steps=200)
        assert result.status == "not converged"
        assert abs(float(result.theta[0])) < 1e-3


def test_a_larger_network_reaches_the_last_digits():
    digits = load("digits")
    x, y = digits.inputs[:150], digits.targets[:150]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 10))
    result = polish(Objective(model, (x, y), penalty=0.01))
    assert (result.method, result.status) == ("krylov", "converged")
    assert result.gradient_norm < 1e-12


def test_options_out_of_range():
    objective = xor()
    with pytest.raises(ValueError, match=r"shape \[n, 9\], got \(2, 8\)"):
        polish_many(objective, torch.zeros(2, 8))
    with pytest.raises(ValueError, match="gtol must be a finite number, above 0"):
        polish(objective, gtol=0.0)
    with pytest.raises(ValueError, match="newton, krylov, got 'adam'"):
        polish(objective, method="adam")


def test_penalty_of_an_objective():
    objective, bare = xor(penalty=0.3, dtype=torch.float64), xor(penalty=0.0, dtype=torch.float64)
    theta, v = starts(2, 9)
    assert objective.evaluate(theta)["loss"] == pytest.approx(
        bare.evaluate(theta)["loss"] + 0.15 * float(theta @ theta)
    )
    torch.testing.assert_close(objective.gradient(theta), bare.gradient(theta) + 0.3 * theta)
    products = Hessian(objective, theta).products(v[None]), Hessian(bare, theta).products(v[None]) + 0.3 * v
    torch.testing.assert_close(*products)
    assert objective.loss_and_gradient(theta)[0] == pytest.approx(objective.evaluate(theta)["loss"], rel=1e-14)
    plain = objective.evaluate_model()["loss"]
    assert plain == pytest.approx(objective.evaluate(objective.origin)["loss"], rel=1e-12)
    assert objective.settings()["penalty"] == 0.3
    assert objective.fingerprint() != bare.fingerprint()
    assert "penalty" not in bare.fingerprint()
    with pytest.raises(ValueError, match="penalty must be"):
        xor(penalty=-1.0)


def test_every_plan_of_a_surface_has_the_penalty():
    x, y = class_data(20, (2,), 2)
    model = randomize(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    objective = Objective(model, (x, y), penalty=0.1)
    plane = random_directions(objective, 2, seed=0)
    surface = evaluate(objective, plane, resolution=(3, 4), progress=False)
    expected = [[objective.evaluate(plane.at([a, b]))["loss"] for b in surface.axes["y"]] for a in surface.axes["x"]]
    np.testing.assert_allclose(surface.metric("loss"), expected, rtol=1e-5)


def test_the_penalty_is_not_part_of_the_test_loss():
    x, y = class_data(6, (2,), 2)
    objective = Objective(nn.Linear(2, 2), (x, y), test=(x, y), penalty=1.0)
    values = objective.evaluate(objective.origin)
    norm = float(objective.origin.square().sum())
    assert values["loss"] == pytest.approx(values["test_loss"] + norm / 2)

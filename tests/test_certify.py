import math

import numpy as np
import pytest
import torch
from problems import KNOWN_MINIMA, class_data, randomize
from scipy.spatial.distance import cdist
from test_polish import XOR, function, logistic, separated, starts, xor
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from landscape import critical
from landscape.critical import dense_hessian, index
from landscape.minima.certify import KINDS, certify, find_minima, find_minimum
from landscape.minima.polish import polish, polish_many
from landscape.objective import Objective

HIMMELBLAU = KNOWN_MINIMA["Himmelblau"].function
# the other critical points of the function, to six digits
HIMMELBLAU_SADDLES = [[-3.073026, -0.081353], [-0.127961, -1.953715], [0.086678, 2.884255], [3.385154, 0.073852]]
HIMMELBLAU_MAXIMUM = [-0.270845, -0.923039]


def quadratic(values, seed=0):
    """`theta^T H theta / 2`, where `H` has these eigenvalues and random eigenvectors."""
    p = len(values)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((p, p)))
    matrix = torch.from_numpy(q @ np.diag(values) @ q.T)
    return function(lambda *x: 0.5 * torch.stack(x, dim=1) @ matrix @ torch.stack(x), k=p)


def dense_by_torch(model, loss, theta, penalty):
    """The Hessian of a plain network by `torch.func.hessian`, without the library."""
    model = model.double()
    names, shapes = zip(*((name, tensor.shape) for name, tensor in model.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]
    x, y = (part.double() if part.is_floating_point() else part for part in XOR)

    def total(theta):
        parts = torch.split(theta, sizes)
        tensors = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return loss(functional_call(model, tensors, (x,)), y).mean() + penalty / 2 * theta.square().sum()

    return hessian(total)(theta)


class TestIndex:
    @pytest.mark.parametrize("dense_below", [100, 0])
    @pytest.mark.parametrize(
        ("values", "negative", "flat"),
        [
            ([1, 2, 3, 5, 8], 0, 0),
            ([-1, 2, 3, 5, 8], 1, 0),
            ([-3, -3, -3, 0, 0, 0, 0, 1, 2, 2, 7, 7], 3, 4),
            ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 0, 9),
            ([-2, -2, -2, -1, -1, -0.5, -0.5], 7, 0),
            ([-1e-4, 1e-4, 1], 1, 0),
        ],
    )
    def test_of_a_known_spectrum(self, values, negative, flat, dense_below):
        found = index(quadratic(values), dense_below=dense_below)
        assert (found.n_negative, found.n_flat, found.exact) == (negative, flat, True)
        assert found.method == ("dense" if dense_below else "lanczos")
        assert found.values[0] == pytest.approx(min(values), abs=1e-6)
        assert found.largest == pytest.approx(max(values), rel=1e-3)
        assert found.vectors.shape == (max(1, negative + flat), len(values))
        assert str(negative) in found.describe()

    def test_the_tolerance_decides_what_is_flat(self):
        objective = quadratic([-1e-5, 1e-5, 2, 4])
        by_default = index(objective)
        assert by_default.tol == pytest.approx(4 * 2**-26)
        assert (by_default.n_negative, by_default.n_flat) == (1, 0)
        coarse = index(objective, tol=1e-4)
        assert (coarse.n_negative, coarse.n_flat, coarse.tol) == (0, 2, 1e-4)

    def test_lanczos_agrees_with_the_dense_hessian_of_a_network(self):
        x, y = class_data(30, (6,), 3)
        model = randomize(nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3)).double())
        objective = Objective(model, (x.double(), y))
        dense = index(objective, tol=1e-3)
        lanczos = index(objective, tol=1e-3, dense_below=0)
        assert dense.n_negative > 1
        assert (lanczos.n_negative, lanczos.n_flat, lanczos.exact) == (dense.n_negative, dense.n_flat, True)
        np.testing.assert_allclose(lanczos.values, dense.values[: len(lanczos.values)], atol=1e-4)

    def test_what_was_not_finished_is_a_lower_bound(self):
        values = -np.linspace(1, 2, 80)
        found = index(quadratic(values), dense_below=0, max_products=40)
        assert not found.exact
        assert 0 < found.n_negative < 80
        assert "at least" in found.describe()

    def test_a_hessian_that_is_not_finite(self):
        objective = function(lambda a, b: a.sqrt() + b)
        for below in (0, 100):
            with pytest.raises(ValueError, match="not finite"):
                index(objective, torch.tensor([-1.0, 0.0]), dense_below=below)
        with pytest.raises(ValueError, match="tol must be a finite number, 0 or more"):
            index(objective, tol=-1.0)

    def test_a_wrong_second_derivative_is_noticed(self):
        class Wrong(torch.autograd.Function):
            @staticmethod
            def forward(ctx, a, b):
                ctx.save_for_backward(a, b)
                return a * b

            @staticmethod
            def backward(ctx, g):
                a, b = ctx.saved_tensors
                return g * b, g * a.detach()

        objective = function(lambda a, b: Wrong.apply(a, b))
        with pytest.raises(ValueError, match="not symmetric"):
            dense_hessian(objective)

    def test_blocks_of_rows(self, monkeypatch):
        objective = xor(dtype=torch.float64)
        whole = dense_hessian(objective)
        monkeypatch.setattr(critical, "_ROWS", 4)
        np.testing.assert_array_equal(dense_hessian(objective), whole)


class TestCertify:
    @pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
    def test_eigenvalues_agree_with_a_dense_hessian(self, activation):
        objective = xor(activation)
        kinds = set()
        for result in polish_many(objective, starts(6, 9), progress=False):
            certificate = certify(objective, result.theta)
            model = nn.Sequential(nn.Linear(2, 2), activation(), nn.Linear(2, 1))
            expected = torch.linalg.eigvalsh(dense_by_torch(model, logistic, result.theta, 1e-3))
            np.testing.assert_allclose(certificate.index.values, expected, rtol=0, atol=1e-8)
            np.testing.assert_allclose(certificate.index.values, expected, rtol=0, atol=1e-13)
            assert certificate.loss == pytest.approx(result.loss, rel=1e-13)
            kinds.add(certificate.kind)
        assert kinds == {"minimum"}

    @pytest.mark.parametrize("point", KNOWN_MINIMA["Himmelblau"].minima.tolist())
    def test_minima_of_a_known_function(self, point):
        objective = function(HIMMELBLAU)
        end = polish(objective, torch.tensor(point, dtype=torch.float64))
        certificate = certify(objective, end.theta)
        assert (certificate.kind, certificate.index.n_negative) == ("minimum", 0)
        assert certificate.descent is None
        assert certificate.describe().startswith("minimum: all eigenvalues")

    @pytest.mark.parametrize("point", [*HIMMELBLAU_SADDLES, HIMMELBLAU_MAXIMUM])
    def test_saddles_and_the_maximum_of_a_known_function(self, point):
        objective = function(HIMMELBLAU)
        near = certify(objective, torch.tensor(point, dtype=torch.float64), gtol=1e-5)
        expected = ("maximum", 2) if point is HIMMELBLAU_MAXIMUM else ("saddle", 1)
        assert (near.kind, near.index.n_negative) == expected
        assert float(near.descent.norm()) == pytest.approx(1)
        strict = certify(objective, torch.tensor(point, dtype=torch.float64))
        assert strict.kind == "not converged"

    def test_flat_minima_and_degenerate_saddles(self):
        def kind(f):
            return certify(function(f), torch.zeros(2, dtype=torch.float64)).kind

        assert kind(lambda a, b: a**3 - 3 * a * b**2) == "degenerate saddle"  # the monkey saddle
        assert kind(lambda a, b: b**2 + a**3) == "degenerate saddle"
        assert kind(lambda a, b: b**2 - a**4) == "degenerate saddle"
        assert kind(lambda a, b: b**2 + a**4) == "flat minimum"
        assert kind(lambda a, b: b**2 + 0 * a) == "flat minimum"
        assert kind(lambda a, b: (b - a**2) ** 2) == "flat minimum"  # a curved valley

    def test_every_relu_unit_is_a_flat_direction_until_there_is_a_penalty(self):
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(40, 2, generator=generator)
        y = (x[:, :1] - 0.5 * x[:, 1:]).relu() + 0.3 * (0.4 - x[:, 1:]).relu()  # a network of two units fits it
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        teacher = torch.tensor([1.0, -0.5, 0.0, -1.0, 0.0, 0.4, 1.0, 0.3, 0.0]).double()
        for penalty, kind, n_flat in ((0.0, "flat minimum", 2), (1e-3, "minimum", 0)):
            objective = Objective(model, (x, y), loss=F.mse_loss, metrics={}, penalty=penalty)
            found = find_minimum(objective, teacher + 0.01)
            assert found.polished.status == "converged"
            assert (found.certificate.kind, found.certificate.index.n_flat) == (kind, n_flat)

    def test_a_point_that_is_not_finite(self):
        objective = function(lambda a, b: a.log() + b**2)
        certificate = certify(objective, torch.tensor([-1.0, 0.0]))
        assert (certificate.kind, certificate.index) == ("not finite", None)
        assert "not finite" in certificate.describe()

    def test_a_hessian_that_the_loss_does_not_follow(self):
        # at the kink, autograd takes the derivative of the left side
        objective = function(lambda a, b: torch.where(a > 0, a, 2 * a**2 - a.sin() ** 2 * 3) + 5 * a.relu() + b**2)
        certificate = certify(objective, torch.zeros(2, dtype=torch.float64))
        assert certificate.index.n_negative == 1
        assert certificate.kind == "saddle"  # on the left the loss does fall
        objective = function(lambda a, b: -(a**2) + 2 * torch.where(a.detach() == 0, 0 * a, a.abs()) + b**2)
        assert certify(objective, torch.zeros(2, dtype=torch.float64)).kind == "undecided"

    def test_lanczos_that_gives_up_decides_nothing(self):
        objective = quadratic(np.geomspace(1e-2, 1, 60))
        certificate = certify(objective, torch.zeros(60), dense_below=0, max_products=8)
        assert certificate.kind == "undecided"
        assert certify(objective, torch.zeros(60), dense_below=0).kind == "minimum"


class TestFindMinima:
    @pytest.mark.parametrize("point", [*HIMMELBLAU_SADDLES, HIMMELBLAU_MAXIMUM])
    def test_a_saddle_is_left_for_a_minimum(self, point):
        objective = function(HIMMELBLAU)
        saddle = torch.from_numpy(_critical_point(HIMMELBLAU, np.array(point)))
        assert polish(objective, saddle).n_steps <= 1  # it stays where the gradient vanishes
        found = find_minimum(objective, saddle)
        assert found.certificate.kind == "minimum"
        assert [one.index.n_negative for one in found.saddles] == [2 if point is HIMMELBLAU_MAXIMUM else 1]
        assert found.certificate.loss < found.saddles[0].loss
        before = saddle.clone()
        assert find_minimum(objective, saddle, max_escapes=0).certificate.kind in ("saddle", "maximum")
        assert torch.equal(saddle, before)

    def test_the_lower_side_of_a_saddle_is_taken(self):
        objective = function(lambda a, b: a**4 / 4 - a**2 / 2 + 0.05 * a**3 + b**2)  # lower for a < 0
        found = find_minimum(objective, torch.zeros(2, dtype=torch.float64))
        assert float(found.polished.theta[0]) < 0
        assert len(found.saddles) == 1

    def test_a_degenerate_saddle_is_left_too(self):
        objective = function(lambda a, b: a**3 - 3 * a * b**2 + (a**2 + b**2) ** 2)
        found = find_minimum(objective, torch.zeros(2, dtype=torch.float64))
        assert [one.kind for one in found.saddles] == ["degenerate saddle"]
        assert found.certificate.kind == "minimum"
        assert found.certificate.loss == pytest.approx(-27 / 256)

    @pytest.mark.parametrize("name", ["Schwefel-1", "Styblinski-Tang-3", "Rastrigin-1"])
    def test_restarts_find_all_minima_of_a_function_and_no_other(self, name):
        problem = KNOWN_MINIMA[name]
        low, high = np.array(problem.box).T
        points = torch.from_numpy(np.random.default_rng(0).uniform(low, high, (100, len(low))))
        found = find_minima(function(problem.function, len(low)), points, progress=False)
        assert {one.certificate.kind for one in found} == {"minimum"}
        ends = np.stack([one.polished.theta.numpy() for one in found])
        distances = cdist(ends[((low < ends) & (ends < high)).all(axis=1)], problem.minima)
        assert distances.min(axis=1).max() < 1e-3
        assert len(set(distances.argmin(axis=1))) == len(problem.minima)

    def test_infinity_is_not_counted(self):
        found = find_minimum(separated())
        assert found.certificate.kind == found.polished.status == "at infinity"
        assert found.certificate.descent is None
        results = find_minima(xor(penalty=0.0), starts(20, 9), progress=False)
        assert {one.certificate.kind for one in results} == {"at infinity"}

    def test_the_exclusive_or(self):
        results = find_minima(xor(), starts(60, 9), progress=False)
        assert {one.certificate.kind for one in results} == {"minimum"}
        # what 2,000 starts find, and no other
        assert {round(one.certificate.loss, 4) for one in results} <= {0.0688, 0.0751, 0.3838, 0.3966}

    def test_bad_starts_keep_their_places(self):
        points = starts(3, 9)
        points[1] = math.nan
        kinds = [one.certificate.kind for one in find_minima(xor(), points, progress=False)]
        assert kinds == ["minimum", "not finite", "minimum"]
        assert set(kinds) <= set(KINDS)


def _critical_point(f, x):
    """Newton's method for the gradient of a function of two variables."""
    for _ in range(6):
        point = torch.from_numpy(x)
        gradient = torch.func.grad(lambda x: f(x[0], x[1]))(point)
        x = x - np.linalg.solve(hessian(lambda x: f(x[0], x[1]))(point).numpy(), gradient.numpy())
    return x

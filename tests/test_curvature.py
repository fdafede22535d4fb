import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import TwoParameters, class_data, one_sample, randomize
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import lanczos
from landscape.curvature import curvature_map, eigenvector_directions, extreme_eigenpairs, spectral_density, trace
from landscape.directions import given_directions
from landscape.objective import Objective
from landscape.surface import Surface

TIGHT = {"rtol": 1e-10, "max_products": 5000}


class Quadratic(nn.Module):
    """Its loss is `theta^T H theta / 2`, so that its Hessian is H everywhere."""

    def __init__(self, hessian):
        super().__init__()
        self.register_buffer("hessian", torch.as_tensor(np.asarray(hessian), dtype=torch.float64))
        self.theta = nn.Parameter(torch.linspace(1, 2, len(self.hessian), dtype=torch.float64))

    def forward(self, x):
        return (0.5 * self.theta @ self.hessian @ self.theta).expand(len(x))


def quadratic(hessian):
    return Objective(Quadratic(hessian), one_sample(), loss=lambda output, target: output, metrics={})


def with_spectrum(values, seed=0):
    """A symmetric matrix with the given eigenvalues and random eigenvectors."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return q @ np.diag(values) @ q.T


class Residual(nn.Module):
    """A network with two additions in place, on which some ways to differentiate twice are silently wrong."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 5)
        self.block = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        out = self.block(x)
        out += x
        out = F.softplus(out)
        out *= 0.7
        return self.head(out)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )


def recurrent():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    return Last()


NETWORKS = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "in place": (Residual, (4,)),
    "convolutional": (convolutional, (1, 6, 6)),
    "recurrent": (recurrent, (5, 4)),
    "attention": (lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 3, batch_first=True), Mean()), (5, 4)),
}


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=1)


def network(name):
    build, shape = NETWORKS[name]
    model = randomize(build().double())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(0.2)
            module.running_var.fill_(1.7)
    x, y = class_data(21, shape, 3)
    return model, (x.double(), y)


def dense_hessian(model, data, loss=F.cross_entropy):
    """The Hessian entry by entry, from the plain model on all data at once."""
    parameters = list(model.eval().parameters())
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
        value = loss(model(data[0]), data[1])
    gradients = torch.autograd.grad(value, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in flat]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).numpy()


def check_pairs(pairs, hessian, expected, atol):
    """Values, vectors and residuals, against the matrix."""
    np.testing.assert_allclose(pairs.values, expected, rtol=0, atol=atol)
    vectors = pairs.vectors.numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-10)
    true = np.linalg.norm(vectors @ hessian - pairs.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, true, rtol=1e-3, atol=1e-12 * np.abs(hessian).max())


class TestEigenpairs:
    @pytest.mark.parametrize("name", list(NETWORKS))
    def test_of_networks_agree_with_the_dense_hessian(self, name):
        model, data = network(name)
        hessian = dense_hessian(model, data)
        exact = np.linalg.eigvalsh(hessian)
        objective = Objective(model, data, chunk_size=4)
        pairs = extreme_eigenpairs(objective, k=3, which="both", **TIGHT)
        assert pairs.converged.all()
        check_pairs(pairs, hessian, [*exact[::-1][:3], *exact[:3]], 1e-8 * exact[-1])

    def test_several_batches_are_averaged(self):
        model, (x, y) = network("dense")
        values = [
            extreme_eigenpairs(Objective(model, data, chunk_size=size), k=2, **TIGHT).values
            for data, size in [((x, y), 21), ((x, y), 4), ([(x[:5], y[:5]), (x[5:], y[5:])], None)]
        ]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-9)
        np.testing.assert_allclose(values[2], values[0], rtol=1e-9)

    def test_away_from_the_network(self):
        model, data = network("dense")
        objective = Objective(model, data)
        theta = objective.origin + 0.3
        moved, _ = network("dense")
        nn.utils.vector_to_parameters(theta, moved.parameters())
        exact = np.linalg.eigvalsh(dense_hessian(moved, data))
        np.testing.assert_allclose(extreme_eigenpairs(objective, theta, **TIGHT).values, exact[-1:], rtol=1e-8)

    def test_another_loss(self):
        model, (x, _) = network("dense")
        target = torch.randn(21, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        exact = np.linalg.eigvalsh(dense_hessian(model, (x, target), F.mse_loss))
        values = extreme_eigenpairs(Objective(model, (x, target), loss=nn.MSELoss()), k=4, **TIGHT).values
        np.testing.assert_allclose(values, exact[::-1][:4], rtol=1e-8)

    def test_agrees_with_arpack(self):
        values = np.random.default_rng(2).standard_normal(150) ** 3
        hessian = with_spectrum(values)
        expected = eigsh(LinearOperator(hessian.shape, matvec=lambda v: hessian @ v), k=4, which="SA")[0]
        pairs = extreme_eigenpairs(quadratic(hessian), k=4, which="smallest", **TIGHT)
        np.testing.assert_allclose(pairs.values, expected, atol=1e-10)

    @settings(max_examples=40)
    @given(st.data())
    def test_of_any_spectrum_repeated_eigenvalues_included(self, data):
        values = data.draw(
            st.lists(st.sampled_from([-5.0, -1.0, -1e-3, 0.0, 0.5, 2.0, 2.5, 100.0]), min_size=1, max_size=40)
        )
        hessian = with_spectrum(values, seed=len(values))
        k = data.draw(st.integers(1, max(1, len(values) // 2)))
        which = data.draw(
            st.sampled_from(["largest", "smallest", "both"] if len(values) > 1 else ["largest", "smallest"])
        )
        pairs = extreme_eigenpairs(quadratic(hessian), k=k, which=which, seed=data.draw(st.integers(0, 5)), **TIGHT)
        ordered = np.sort(values)
        upper, lower = ordered[::-1][:k], ordered[:k]
        expected = {"largest": upper, "smallest": lower, "both": [*upper, *lower]}[which]
        assert pairs.converged.all()
        check_pairs(pairs, hessian, expected, 1e-11 * max(1, np.abs(ordered).max()))

    def test_copies_beyond_the_random_starts_are_found(self):
        hessian = with_spectrum([7.0] * 5 + [3.0] + [0.1] * 60)
        pairs = extreme_eigenpairs(quadratic(hessian), k=6)
        np.testing.assert_allclose(pairs.values, [7, 7, 7, 7, 7, 3], rtol=1e-6)
        hessian = with_spectrum([7.0] * 3 + [3.0, 2.5] + np.linspace(-1, 1, 200).tolist())
        pairs = extreme_eigenpairs(quadratic(hessian), k=4)  # 7, 7, 3, 2.5 converge before there is a third copy
        np.testing.assert_allclose(pairs.values, [7, 7, 7, 3], rtol=1e-5)

    def test_the_zero_hessian(self):
        pairs = extreme_eigenpairs(quadratic(np.zeros((6, 6))), k=2, which="both")
        assert pairs.values.tolist() == [0, 0, 0, 0]
        assert pairs.residuals.tolist() == [0, 0, 0, 0]
        assert pairs.converged.all()

    def test_a_short_basis_is_restarted(self, monkeypatch):
        hessian = with_spectrum(np.random.default_rng(3).standard_normal(200))
        exact = np.linalg.eigvalsh(hessian)
        monkeypatch.setattr(lanczos, "_BASIS_BYTES", 200 * 8 * 30)
        pairs = extreme_eigenpairs(quadratic(hessian), k=3, which="both", **TIGHT)
        assert pairs.n_products > 60
        check_pairs(pairs, hessian, [*exact[::-1][:3], *exact[:3]], 1e-11)

    def test_a_separated_eigenvalue_takes_few_products(self):
        values = [100.0, 80.0, 60.0, *np.random.default_rng(4).uniform(-1, 1, 300)]
        pairs = extreme_eigenpairs(quadratic(with_spectrum(values)), k=3)
        np.testing.assert_allclose(pairs.values, values[:3], rtol=1e-5)
        assert pairs.n_products <= 14
        assert (pairs.residuals <= 1e-3 * pairs.values).all()

    def test_what_has_not_converged_is_said(self, caplog):
        hessian = with_spectrum(np.linspace(0, 1, 200))
        with caplog.at_level(logging.WARNING):
            pairs = extreme_eigenpairs(quadratic(hessian), k=2, rtol=1e-8, max_products=12)
        assert not pairs.converged.any()
        assert pairs.n_products <= 12
        assert "2 of 2 Hessian eigenpairs have not converged" in caplog.text
        true = np.linalg.norm(pairs.vectors.numpy() @ hessian - pairs.values[:, None] * pairs.vectors.numpy(), axis=1)
        np.testing.assert_allclose(pairs.residuals, true, rtol=1e-8)

    def test_in_float32_residuals_are_those_of_the_float64_hessian_up_to_rounding(self):
        model, data = network("dense")
        hessian = dense_hessian(model, data)
        objective = Objective(model, data, dtype=torch.float32)
        pairs = extreme_eigenpairs(objective, k=3)
        vectors = pairs.vectors.numpy()
        true = np.linalg.norm(vectors @ hessian - pairs.values[:, None] * vectors, axis=1)
        assert pairs.converged.all()
        assert (true <= 1.01 * pairs.residuals + 1e-5 * pairs.values[0]).all()
        np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(hessian)[::-1][:3], rtol=1e-5)

    def test_the_seed_decides_and_the_model_and_the_random_state_are_untouched(self):
        model, data = network("dense")
        before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
        objective = Objective(model, data)
        first, again, other = (extreme_eigenpairs(objective, rtol=0.1, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first.vectors, again.vectors)
        assert not torch.equal(first.vectors, other.vectors)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    def test_nan_is_a_result(self):
        objective = Objective(TwoParameters(), one_sample(), loss=lambda o, t: o[:, 0].log() + o[:, 1] ** 2)
        pairs = extreme_eigenpairs(objective, torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert np.isnan(pairs.values).all()
        assert not pairs.converged.any()
        assert np.isnan(trace(objective, torch.tensor([0.0, 1.0], dtype=torch.float64)).value)
        with pytest.raises(ValueError, match="not finite"):
            spectral_density(objective, torch.tensor([0.0, 1.0], dtype=torch.float64))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"k": 0}, "k must be a whole number, 1 or more"),
            ({"k": 7}, "at most 6 pairs"),
            ({"k": 4, "which": "both"}, "at most 6 pairs.*got 8"),
            ({"which": "middle"}, "which must be"),
            ({"rtol": 0}, "rtol must be a finite number, above 0"),
            ({"k": 3, "max_products": 2}, "max_products=2"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            extreme_eigenpairs(quadratic(np.eye(6)), **options)


def decaying(p=200, rank=8):
    """A few large eigenvalues and a long flat tail."""
    return with_spectrum(np.concatenate([100.0 / np.arange(1, rank + 1), np.full(p - rank, 0.05)]))


class TestTrace:
    def test_is_exact_where_nothing_is_left_to_sampling(self):
        low_rank = with_spectrum([5.0, -3.0, 2.0] + [0.0] * 50)
        assert trace(quadratic(low_rank), n_samples=12).value == pytest.approx(4, rel=1e-10)
        diagonal = np.diag(np.linspace(-1, 3, 20))  # z^T D z = tr D for entries +1 and -1
        pairs = extreme_eigenpairs(quadratic(diagonal), k=2, **TIGHT)
        estimate = trace(quadratic(diagonal), deflate=pairs, n_samples=4)
        assert estimate.value == pytest.approx(20, rel=1e-9)
        assert estimate.standard_error < 1e-7
        assert estimate.n_products == 4

    def test_more_samples_than_parameters(self):
        assert trace(quadratic(np.diag([1.0, 2.0])), n_samples=9).value == pytest.approx(3)

    @pytest.mark.parametrize("deflated", [False, True])
    def test_the_standard_error_covers_the_truth_as_often_as_it_should(self, deflated):
        hessian = with_spectrum(np.random.default_rng(5).standard_normal(60))
        objective = quadratic(hessian)
        # inaccurate eigenpairs must not bias the estimate
        pairs = extreme_eigenpairs(objective, k=3, max_products=8) if deflated else None
        estimates = [trace(objective, n_samples=60, deflate=pairs, seed=seed) for seed in range(200)]
        z = np.array([(e.value - np.trace(hessian)) / e.standard_error for e in estimates])
        assert abs(z.mean()) < 0.25  # 3.5 standard errors of a mean of 200
        assert 0.88 <= (np.abs(z) < 1.96).mean() <= 0.99
        assert np.std([e.value for e in estimates]) == pytest.approx(
            np.mean([e.standard_error for e in estimates]), rel=0.15
        )

    def test_a_sketch_or_known_eigenpairs_beat_plain_sampling(self):
        hessian = decaying()
        objective = quadratic(hessian)
        exact = np.trace(hessian)
        pairs = extreme_eigenpairs(objective, k=8)
        generator = np.random.default_rng(6)
        errors = {"plain": [], "sketch": [], "deflated": []}
        for seed in range(30):
            z = generator.choice([-1.0, 1.0], size=(36, len(hessian)))
            errors["plain"].append(((z @ hessian) * z).sum(axis=1).mean() - exact)
            errors["sketch"].append(trace(objective, n_samples=36, seed=seed).value - exact)
            errors["deflated"].append(trace(objective, n_samples=36, deflate=pairs, seed=seed).value - exact)
        plain, sketch, deflated = (np.sqrt(np.mean(np.square(e))) for e in errors.values())
        assert sketch < plain / 10
        assert deflated < plain / 10

    def test_of_a_network(self):
        model, data = network("dense")
        exact = np.trace(dense_hessian(model, data))
        estimate = trace(Objective(model, data, chunk_size=8), n_samples=90)
        assert abs(estimate.value - exact) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.2 * exact

    def test_seeds_and_large_groups(self, monkeypatch):
        objective = quadratic(decaying(50))
        first, other = trace(objective, seed=0), trace(objective, seed=1)
        assert trace(objective, seed=0) == first != other
        monkeypatch.setattr("landscape.curvature._SAMPLE_BYTES", 1)
        one_by_one = trace(objective, seed=0)
        assert one_by_one.n_products == first.n_products == 30
        assert one_by_one.value == pytest.approx(first.value, abs=6 * first.standard_error)

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match="6 or more, got 5"):
            trace(quadratic(np.eye(3)), n_samples=5)


class TestSpectralDensity:
    def test_moments_are_exact_for_a_diagonal_hessian(self):
        values = np.random.default_rng(7).standard_normal(40) + 0.5
        density = spectral_density(quadratic(np.diag(values)), n_probes=3, n_steps=6)
        for power in range(4):
            # the first three are those of every probe, since z_i^2 = 1/p and the square of H is diagonal, too
            estimates = (density.weights * density.nodes**power).sum(axis=1)
            np.testing.assert_allclose(estimates, np.mean(values**power), rtol=1e-10)

    def test_moments_of_each_probe_are_those_of_its_vector(self):
        hessian = with_spectrum(np.random.default_rng(8).standard_normal(30))
        nodes, weights, n_products = lanczos.quadrature(
            lambda v: v @ torch.from_numpy(hessian), 30, 4, 5, noise=1e-15, seed=3
        )
        z = lanczos.rademacher(4, 30, torch.Generator().manual_seed(3)).numpy() / math.sqrt(30)
        for power in range(10):  # a quadrature of 5 nodes is exact up to degree 9
            expected = np.einsum("mi,ij,mj->m", z, np.linalg.matrix_power(hessian, power), z)
            np.testing.assert_allclose((weights * nodes**power).sum(axis=1), expected, rtol=1e-9, atol=1e-12)
        assert n_products == 20

    def test_agrees_with_the_dense_eigenvalues_of_a_network(self):
        model, data = network("dense")
        exact = np.linalg.eigvalsh(dense_hessian(model, data))
        density = spectral_density(Objective(model, data), n_probes=300, n_steps=30, sigma=0.05)
        step = density.grid[1] - density.grid[0]
        assert density.density.sum() * step == pytest.approx(1, abs=1e-4)
        assert (density.density >= 0).all()
        bells = np.exp(-0.5 * ((density.grid[:, None] - exact) / 0.05) ** 2) / (0.05 * math.sqrt(2 * math.pi))
        distance = np.abs(density.density - bells.mean(axis=1)).sum() * step
        assert distance < 0.1
        for edge in (-0.1, 0.1, 0.5):
            mine = density.weights[density.nodes < edge].sum() / 300
            assert mine == pytest.approx((exact < edge).mean(), abs=0.05)

    def test_an_invariant_subspace_ends_a_probe(self):
        density = spectral_density(quadratic(with_spectrum([2.0] * 10 + [-1.0] * 10)), n_probes=40, n_steps=8)
        np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=1e-12)
        assert density.n_products == 80  # two steps of each probe
        at_two = density.weights[np.abs(density.nodes - 2) < 1e-8].sum() / 40
        at_minus_one = density.weights[np.abs(density.nodes + 1) < 1e-8].sum() / 40
        assert at_two + at_minus_one == pytest.approx(1)
        assert at_two == pytest.approx(0.5, abs=0.08)

    def test_of_the_zero_hessian_is_a_bell_at_zero(self):
        density = spectral_density(quadratic(np.zeros((4, 4))), sigma=0.5, grid=np.array([-0.5, 0.0, 2.0]))
        expected = np.exp([-0.5, 0, -8]) / (0.5 * math.sqrt(2 * math.pi))
        np.testing.assert_allclose(density.density, expected, rtol=1e-12)

    def test_seeds_and_probes_in_groups(self, monkeypatch):
        objective = quadratic(with_spectrum(np.linspace(-1, 1, 30)))
        first, other = spectral_density(objective, seed=0), spectral_density(objective, seed=1)
        assert not np.allclose(first.density, other.density)
        np.testing.assert_array_equal(spectral_density(objective, seed=0).density, first.density)
        monkeypatch.setattr(lanczos, "_BASIS_BYTES", 3 * 8 * 30 * 30)
        grouped = spectral_density(objective, seed=0)
        assert grouped.nodes.shape == first.nodes.shape == (8, 30)
        np.testing.assert_allclose(grouped.weights.sum(axis=1), 1, rtol=1e-12)

    def test_options_out_of_range(self):
        with pytest.raises(ValueError, match="n_probes must be a whole number, 1 or more, got 0"):
            spectral_density(quadratic(np.eye(3)), n_probes=0)
        with pytest.raises(ValueError, match="sigma must be a finite number, above 0"):
            spectral_density(quadratic(np.eye(3)), sigma=0.0)


class TestDirections:
    def test_are_unit_eigenvectors_with_a_range_that_suits_them(self):
        objective = quadratic(np.diag([0.5, 8.0, -2.0, 0.0, 50.0]))
        plane = eigenvector_directions(objective, 2, rtol=1e-10)
        np.testing.assert_allclose(plane.directions.numpy(), [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]], atol=1e-8)
        assert plane.extent == ((-0.2, 0.2), (-0.5, 0.5))
        assert plane.info["kind"] == "hessian"
        assert plane.info["labels"] == ["Hessian eigenvector 1 (λ = 50)", "Hessian eigenvector 2 (λ = 8)"]
        assert max(plane.info["residuals"]) < 1e-6
        assert plane.info["converged"] == [True, True]
        center, edge = (objective.evaluate(plane.at([c, 0]))["loss"] for c in (0, 0.2))
        slope = float(objective.gradient(objective.origin) @ plane.directions[0])
        assert edge - center - 0.2 * slope == pytest.approx(1)

    def test_of_the_lower_end_and_of_both(self):
        objective = quadratic(np.diag([0.5, 8.0, -2.0, 0.0, 50.0]))
        assert eigenvector_directions(objective, 1, "smallest").info["eigenvalues"] == pytest.approx([-2])
        volume = eigenvector_directions(objective, 3, "extremes")
        np.testing.assert_allclose(volume.info["eigenvalues"], [50, 8, -2], rtol=1e-5)
        assert volume.info["labels"][2] == "Hessian eigenvector 1 from below (λ = -2)"
        assert volume.extent[2] == (-1, 1)

    def test_a_flat_direction_reaches_as_far_as_the_network_is_long(self):
        objective = quadratic(np.zeros((4, 4)))
        norm = float(objective.origin.norm())
        assert eigenvector_directions(objective, 1).extent[0][1] == pytest.approx(norm, rel=1e-3)

    def test_an_unknown_end_is_refused(self):
        with pytest.raises(ValueError, match="'extremes', got 'both'"):
            eigenvector_directions(quadratic(np.eye(3)), which="both")


def cubic_loss(output, target):
    """`a^3 + 2 b^2`: the Hessian is diag(6 a, 4)."""
    return output[:, 0] ** 3 + 2 * output[:, 1] ** 2


def cubic():
    return Objective(TwoParameters(), one_sample(), loss=cubic_loss, metrics={})


class TestMap:
    axes = (np.array([-1.0, -0.25, 0.0, 2.0]), np.array([-1.0, 0.0, 1.0]))

    def test_agrees_with_the_formula(self):
        objective = cubic()
        plane = given_directions(objective, np.eye(2))
        surface = curvature_map(objective, plane, axes=self.axes, progress=False)
        a = np.broadcast_to(0.3 + self.axes[0][:, None], (4, 3))
        largest, smallest = np.maximum(6 * a, 4), np.minimum(6 * a, 4)
        np.testing.assert_allclose(surface.metric("lambda_max"), largest, rtol=1e-10)
        np.testing.assert_allclose(surface.metric("lambda_min"), smallest, rtol=1e-10)
        np.testing.assert_allclose(surface.metric("ratio"), np.abs(smallest / largest), rtol=1e-10)
        assert surface.metric("residual").max() < 1e-10
        assert surface.finished
        assert surface.provenance["plan"]["name"] == "curvature"

    def test_is_continued_after_a_kill(self, tmp_path):
        path = tmp_path / "map.h5"
        script = f"""
            import sys, time
            sys.path[:0] = {[str(p) for p in sys.path if p]}
            import numpy as np, torch
            from landscape import curvature
            from test_curvature import cubic, given_directions
            torch.set_num_threads(1)
            slow = curvature._extremes
            curvature._extremes = lambda *arguments: (time.sleep(0.02), slow(*arguments))[1]
            objective = cubic()
            plane = given_directions(objective, np.eye(2))
            options = dict(resolution=(30, 7), path={str(path)!r}, progress=False, interval=0.01)
            curvature.curvature_map(objective, plane, **options)
        """
        worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=os.path.dirname(__file__))
        deadline = time.monotonic() + 60
        while not (path.exists() and Surface.load(path).done.sum() > 5):
            assert worker.poll() is None, "finished before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        begun = Surface.load(path).done.sum()
        assert 5 < begun < 210
        objective = cubic()
        plane = given_directions(objective, np.eye(2))
        continued = curvature_map(objective, plane, resolution=(30, 7), path=path, progress=False)
        whole = curvature_map(objective, plane, resolution=(30, 7), progress=False)
        for name in whole.values:
            np.testing.assert_array_equal(continued.metric(name), whole.metric(name))
            np.testing.assert_array_equal(Surface.load(path).metric(name), whole.metric(name))

    def test_another_question_is_refused(self, tmp_path):
        objective = cubic()
        plane = given_directions(objective, np.eye(2))
        curvature_map(objective, plane, axes=self.axes, path=tmp_path / "map.h5", progress=False)
        with pytest.raises(ValueError, match="what differs: curvature"):
            curvature_map(objective, plane, axes=self.axes, path=tmp_path / "map.h5", progress=False, rtol=1e-4)

    def test_nan_is_kept(self):
        objective = Objective(TwoParameters(), one_sample(), loss=lambda o, t: o[:, 0].log() + o[:, 1] ** 2, metrics={})
        plane = given_directions(objective, np.array([[1.0, 0.0]]))
        surface = curvature_map(objective, plane, axes=[np.array([-0.3, 0.0])], progress=False)
        assert surface.finished
        assert np.isnan(surface.metric("ratio")).tolist() == [True, False]

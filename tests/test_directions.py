import numpy as np
import pytest
import torch
from problems import EveryLayer, class_data, randomize
from test_parameters import filters_of
from torch import nn

from landscape.checkpoint import save
from landscape.directions import directions_between, given_directions, pca_directions, random_directions
from landscape.objective import Objective
from landscape.recorder import Recorder
from landscape.trajectory import Trajectory

DATA = class_data(20, (4,), 3)


def network(seed=0):
    return randomize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), seed)


def objective_of(model=None, **options):
    return Objective(model or network(), DATA, **options)


class EveryLayerCalled(EveryLayer):
    """All layers as parameters, one of them used."""

    def forward(self, x):
        return self.linear(x[:, :3])


@pytest.fixture
def every():
    return objective_of(randomize(EveryLayerCalled()).double())


def entries(objective, vector):
    return {name: part.numpy() for name, part in objective.layout.unflatten(vector).items()}


class TestRandom:
    def test_every_filter_has_the_networks_norm(self, every):
        theta = entries(every, every.origin)
        for direction in random_directions(every, 2, seed=3).directions:
            d = entries(every, direction)
            for name, shape in zip(every.layout.names, every.layout.shapes, strict=True):
                if name.startswith("weight_norm"):
                    continue
                for entries_of_filter in filters_of(every.model, name, shape):
                    norm = np.sqrt(sum(d[name][i] ** 2 for i in entries_of_filter))
                    expected = np.sqrt(sum(theta[name][i] ** 2 for i in entries_of_filter))
                    assert norm == pytest.approx(expected, rel=1e-8), name
                if not filters_of(every.model, name, shape):
                    assert not d[name].any(), name

    def test_layer_normalization_is_per_tensor_and_not_filter_normalization(self, every):
        theta = entries(every, every.origin)
        plane = random_directions(every, 1, normalization="layer")
        d = entries(every, plane.directions[0])
        for name in ("linear.weight", "transposed.weight", "embedding.weight"):
            assert np.linalg.norm(d[name]) == pytest.approx(np.linalg.norm(theta[name]), rel=1e-8)
        rows = np.linalg.norm(d["linear.weight"], axis=1) / np.linalg.norm(theta["linear.weight"], axis=1)
        assert rows.std() > 0.05

    def test_biases_take_part_only_if_asked(self, every):
        with_biases = entries(every, random_directions(every, 1, biases=True).directions[0])
        assert all(part.any() for part in with_biases.values())
        bias = entries(every, every.origin)["linear.bias"]
        assert np.linalg.norm(with_biases["linear.bias"]) == pytest.approx(np.linalg.norm(bias), rel=1e-8)
        plain = random_directions(every, 1, normalization="none").directions[0]
        assert plain.all()

    def test_weight_normalization_multiplies_with_the_absolute_weights(self, every):
        plain = random_directions(every, 1, seed=5, normalization="none").directions
        weighted = random_directions(every, 1, seed=5, normalization="weight", biases=True).directions
        torch.testing.assert_close(weighted, plain * every.origin.abs(), rtol=1e-12, atol=0)

    def test_they_are_gaussian_and_nearly_orthogonal(self):
        objective = Objective(nn.Linear(100, 100), class_data(4, (100,), 100))
        a, b = random_directions(objective, 2, normalization="none").directions.double()
        assert abs(a.mean()) < 0.05
        assert a.std() == pytest.approx(1, abs=0.05)
        assert (a**4).mean() == pytest.approx(3, abs=0.3)  # uniform numbers would give 1.8
        assert abs(a @ b / (a.norm() * b.norm())) < 0.05

    def test_a_seed_gives_the_same_again_and_another_seed_others(self):
        objective = objective_of()
        first, again, other = (random_directions(objective, 3, seed=seed) for seed in (4, 4, 5))
        assert torch.equal(first.directions, again.directions)
        cosines = torch.nn.functional.cosine_similarity(first.directions, other.directions)
        assert (cosines.abs() < 0.9).all()
        assert torch.equal(random_directions(objective, 1, seed=4).directions, first.directions[:1])
        assert abs(torch.nn.functional.cosine_similarity(*first.directions[:2, None])[0]) < 0.9

    def test_they_can_be_drawn_again_from_what_is_stored(self):
        objective = objective_of()
        stored = random_directions(objective, 2, seed=9, normalization="layer", biases=True)
        known = {key: stored.info[key] for key in ("seed", "normalization", "biases", "orthogonal")}
        assert torch.equal(random_directions(objective, 2, **known).directions, stored.directions)

    def test_the_global_generators_are_untouched(self):
        objective = objective_of()
        state = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
        random_directions(objective, 2)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert str(np.random.get_state()) == state[1]  # noqa: NPY002

    def test_orthogonal_on_request(self):
        gram = random_directions(objective_of(network().double()), 3, orthogonal=True).gram()
        assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-12 * gram.max()
        gram = random_directions(objective_of(), 2).gram()
        assert abs(gram[0, 1]) > 1e-6 * gram[0, 0]  # not unless asked

    def test_frozen_parts_of_a_fine_tuned_network_do_not_move(self):
        model = network()
        model[0].requires_grad_(False)
        assert random_directions(objective_of(model, select="trainable")).directions.shape == (2, 21)

    def test_tied_weights_count_once(self):
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        x = torch.arange(5)
        assert random_directions(Objective(model, (x, x))).directions.shape == (2, 15)

    def test_a_direction_that_is_zero_is_refused(self):
        with pytest.raises(ValueError, match=r"zero everywhere.*normalization='none'"):
            random_directions(objective_of(select="*.bias"))
        with pytest.raises(ValueError, match="must be one of filter, layer, weight, none"):
            random_directions(objective_of(), normalization="dfilter")


@pytest.fixture
def walk(tmp_path):
    """A random walk of seven networks, its objective at the last, and the checkpoints as rows."""
    model, rows = network().double(), []
    generator = torch.Generator().manual_seed(1)
    scales = torch.rand(51, generator=generator, dtype=torch.float64)
    with Recorder(tmp_path / "walk.h5", model) as recorder:
        rows.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        for _ in range(6):
            step = torch.randn(51, generator=generator, dtype=torch.float64) * scales
            with torch.no_grad():
                nn.utils.vector_to_parameters(rows[-1] + step, model.parameters())
            rows.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
            recorder.step()
    return Trajectory.load(tmp_path / "walk.h5"), objective_of(model), torch.stack(rows).numpy()


class TestPca:
    def test_agrees_with_numpys_svd_of_the_differences_from_the_network(self, walk):
        trajectory, objective, rows = walk
        plane = pca_directions(objective, trajectory, 3)
        _, s, vt = np.linalg.svd(rows - rows[-1], full_matrices=False)
        cosines = np.abs((plane.directions.numpy() * vt[:3]).sum(axis=1))
        np.testing.assert_allclose(cosines, 1, atol=1e-10)
        np.testing.assert_allclose(plane.info["singular_values"][:6], s[:6], rtol=1e-9)
        shares = s**2 / (s**2).sum()
        np.testing.assert_allclose(plane.info["explained_variance_ratio"][:6], shares[:6], rtol=1e-9)
        np.testing.assert_allclose(plane.gram(), np.eye(3), atol=1e-12)

    def test_the_plane_goes_through_the_network_and_not_through_the_mean(self, walk):
        trajectory, objective, _ = walk
        plane = pca_directions(objective, trajectory, 2)
        coordinates, distance = plane.project(trajectory)
        np.testing.assert_allclose(coordinates[-1], 0, atol=1e-12)
        assert distance[-1] == pytest.approx(0, abs=1e-12)
        assert "origin" in plane.info["subtracted"]

    def test_blocks_of_columns_do_not_matter(self, walk, monkeypatch):
        trajectory, objective, _ = walk
        whole = pca_directions(objective, trajectory, 2)
        import landscape.directions as module
        from landscape.slice import differences

        monkeypatch.setattr(module, "differences", lambda runs, origin: differences(runs, origin, max_bytes=8 * 7 * 5))
        torch.testing.assert_close(pca_directions(objective, trajectory, 2).directions, whole.directions)

    def test_the_extent_covers_the_trajectory(self, walk):
        trajectory, objective, _ = walk
        plane = pca_directions(objective, trajectory, 2)
        coordinates, _ = plane.project(trajectory)
        for i, (low, high) in enumerate(plane.extent):
            assert low < coordinates[:, i].min()
            assert coordinates[:, i].max() < high

    def test_several_runs_jointly(self, walk, tmp_path):
        trajectory, objective, rows = walk
        other = network(7).double()
        with Recorder(tmp_path / "other.h5", other) as recorder:
            other_rows = [nn.utils.parameters_to_vector(other.parameters()).detach().clone().numpy()]
            with torch.no_grad():
                other[0].weight += 1
            other_rows.append(nn.utils.parameters_to_vector(other.parameters()).detach().clone().numpy())
            recorder.step()
        second = Trajectory.load(tmp_path / "other.h5")
        plane = pca_directions(objective, [trajectory, second], 2)
        _, s, _ = np.linalg.svd(np.concatenate([rows, other_rows]) - rows[-1], full_matrices=False)
        np.testing.assert_allclose(plane.info["singular_values"][:8], s[:8], rtol=1e-7, atol=1e-7)

    def test_too_short_a_run_is_refused(self, tmp_path):
        model = network()
        with Recorder(tmp_path / "short.h5", model) as recorder:
            with torch.no_grad():
                model[0].weight += 1
            recorder.step()
        with pytest.raises(ValueError, match=r"2 checkpoints span 1 dimension.*record more often"):
            pca_directions(objective_of(model), Trajectory.load(tmp_path / "short.h5"), 2)

    def test_no_run_and_a_run_that_diverged_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="PCA needs a trajectory"):
            pca_directions(objective_of(), [])
        model = network()
        with Recorder(tmp_path / "lost.h5", model) as recorder:
            with torch.no_grad():
                model[0].weight += torch.nan
            recorder.step()
        with pytest.raises(ValueError, match=r"1 of the 2 checkpoints are not finite.*diverged"):
            pca_directions(objective_of(network()), Trajectory.load(tmp_path / "lost.h5"), 1)

    def test_another_networks_run_is_refused(self, walk):
        with pytest.raises(ValueError, match="other parameters than the model"):
            pca_directions(objective_of(nn.Linear(4, 3)), walk[0])


class TestProjection:
    def test_least_squares_on_directions_that_are_neither_orthogonal_nor_of_norm_one(self):
        objective = objective_of(network().double())
        rng = np.random.default_rng(0)
        d1 = rng.standard_normal(51) * 3
        d2 = 0.8 * d1 + rng.standard_normal(51)
        plane = given_directions(objective, np.stack([d1, d2]))
        point = plane.at([1.7, -2.3])
        coordinates, distance = plane.project(point[None])
        np.testing.assert_allclose(coordinates, [[1.7, -2.3]], rtol=1e-10)
        assert distance[0] == pytest.approx(0, abs=1e-10)

    def test_distance_and_coordinates_agree_with_lstsq(self):
        objective = objective_of(network().double())
        plane = random_directions(objective, 2)
        points = torch.randn(5, 51, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        coordinates, distance = plane.project(points)
        difference = (points - objective.origin).numpy()
        expected, *_ = np.linalg.lstsq(plane.directions.numpy().T, difference.T, rcond=None)
        np.testing.assert_allclose(coordinates, expected.T, rtol=1e-9)
        residual = difference - expected.T @ plane.directions.numpy()
        np.testing.assert_allclose(distance, np.linalg.norm(residual, axis=1), rtol=1e-9)

    def test_a_direction_much_shorter_than_the_other_keeps_its_coordinate(self):
        plane = given_directions(objective_of(network().double()), np.eye(2, 51) * [[1.0], [1e-9]])
        np.testing.assert_allclose(plane.project(plane.at([0.5, 3.0])[None])[0], [[0.5, 3.0]], rtol=1e-6)

    def test_a_small_distance_is_not_lost_to_rounding(self):
        objective = objective_of(network().double())
        plane = random_directions(objective, 2)
        normal = torch.linalg.qr(torch.cat([plane.directions, torch.randn(1, 51, dtype=torch.float64)]).T)[0][:, 2]
        _, distance = plane.project((plane.at([100.0, 50.0]) + 1e-9 * normal)[None])
        assert distance[0] == pytest.approx(1e-9, rel=1e-2)


class TestBetween:
    def test_coordinates_zero_and_one_are_the_networks(self, tmp_path):
        first, second, third = network(0), network(1), network(2)
        save(tmp_path / "third.safetensors", third)
        objective = objective_of(first)
        plane = directions_between(objective, second, tmp_path / "third.safetensors")
        for coordinates, model in [((0, 0), first), ((1, 0), second), ((0, 1), third)]:
            expected = nn.utils.parameters_to_vector(model.parameters())
            torch.testing.assert_close(plane.at(coordinates), expected)

    def test_buffers_are_interpolated_alike(self):
        def normed(seed):
            model = randomize(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), seed)
            model[1].running_mean.fill_(float(seed))
            return model

        objective = objective_of(normed(2), batch_norm="interpolated")
        line = directions_between(objective, normed(6))
        buffers = line.buffers_at([0.25], objective.buffers)
        assert buffers["1.running_mean"].tolist() == [3.0] * 6

    def test_a_network_of_another_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"shape|missing"):
            directions_between(objective_of(), nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))

    def test_the_same_network_is_refused(self):
        with pytest.raises(ValueError, match="same parameters as the one at the origin"):
            directions_between(objective_of(), network())


class TestGiven:
    def test_flat_and_named_directions(self):
        objective = objective_of()
        rows = torch.randn(2, 51)
        named = [objective.layout.unflatten(row) for row in rows]
        assert torch.equal(given_directions(objective, rows).directions, rows)
        assert torch.equal(given_directions(objective, named).directions, rows)
        assert given_directions(objective, rows[0].numpy()).directions.shape == (1, 51)
        assert torch.equal(given_directions(objective, named[1]).directions, rows[1:])
        assert torch.equal(given_directions(objective, list(rows)).directions, rows)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (torch.zeros(2, 7), r"shape \[k, 51\].*\(7,\)"),
            (torch.zeros(1, 51), "zero everywhere"),
            (torch.full((1, 51), torch.nan), "not finite"),
            ([], "at least one"),
        ],
    )
    def test_what_is_no_direction_is_refused(self, rows, message):
        with pytest.raises(ValueError, match=message):
            given_directions(objective_of(), rows)


def test_a_point_is_computed_from_the_origin_in_one_expression():
    objective = objective_of(network().double())
    plane = random_directions(objective, 2)
    expected = objective.origin + 0.3 * plane.directions[0] - 1.7 * plane.directions[1]
    torch.testing.assert_close(plane.at([0.3, -1.7]), expected, rtol=1e-14, atol=1e-15)
    assert torch.equal(plane.at([0, 0]), objective.origin)
    with pytest.raises(ValueError, match="2 coordinates"):
        plane.at([1.0])

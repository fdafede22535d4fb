import numpy as np
import pytest
import torch
from problems import TwoParameters, class_data, one_sample
from torch import nn
from torch.nn import functional as F

from landscape import Objective
from landscape.barriers import Barriers, PathProfile, disconnectivity
from landscape.connectivity import barrier, barrier_matrix
from landscape.figures.barrier import plot_barrier
from landscape.figures.connections import plot_connections
from landscape.figures.matrix import plot_matrix
from landscape.models import build
from landscape.symmetry import symmetries


def double_well(output, target):
    a, b = output[:, 0], output[:, 1]
    return (a**2 - 1) ** 2 + b**2 + 0.1 * a


def trained(objective, seed, steps=60):
    """A few steps of plain gradient descent with momentum, from another start."""
    generator = torch.Generator().manual_seed(seed)
    theta = 0.7 * torch.randn(objective.layout.p, generator=generator, dtype=objective.origin.dtype)
    velocity = torch.zeros_like(theta)
    for _ in range(steps):
        velocity = 0.9 * velocity - 0.1 * objective.gradient(theta).to(theta)
        theta = theta + velocity
    return theta


@pytest.fixture(scope="module")
def moons():
    angle = torch.linspace(0, torch.pi, 30)
    upper = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    x = torch.cat([upper, torch.tensor([1.0, 0.4]) - upper])
    model = build("mlp", seed=0, input_shape=(2,), classes=2, widths=[6])
    return Objective(model, (x, torch.arange(60) // 30))


def test_the_barrier_of_a_double_well_is_a_closed_formula():
    objective = Objective(TwoParameters(), one_sample(), loss=double_well)
    a, b = torch.tensor([-1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    path = barrier(objective, a, b, n=21)
    position = 2 * path.t - 1
    np.testing.assert_allclose(path.values["loss"], (position**2 - 1) ** 2 + 0.1 * position, atol=1e-12)
    assert path.barrier == pytest.approx(1.0)
    assert path.height == pytest.approx(((position**2 - 1) ** 2 + 0.1 * position).max())
    assert path.distance == pytest.approx(2.0)
    assert barrier(objective, b, a, n=21).barrier == pytest.approx(1.0)


def test_a_path_equals_a_plain_loop(moons):
    a, b = trained(moons, 1, 20), trained(moons, 2, 20)
    path = barrier(moons, a, b, n=7)
    (x, y) = next(moons.splits[""].chunks(None))
    model = build("mlp", seed=0, input_shape=(2,), classes=2, widths=[6])
    for t, loss, accuracy in zip(path.t, path.values["loss"], path.values["accuracy"], strict=True):
        nn.utils.vector_to_parameters((1 - t) * a + t * b, model.parameters())
        output = model(x)
        assert loss == pytest.approx(F.cross_entropy(output, y).item(), rel=1e-4)
        assert accuracy == pytest.approx((output.argmax(1) == y).float().mean().item())


def test_alignment_removes_the_barrier_between_copies_and_lowers_others(moons):
    found = symmetries(moons.model, torch.randn(2, 2))
    a, b = trained(moons, 1), trained(moons, 2)
    copied = found.random(a, 0)
    assert barrier(moons, a, copied).barrier > 0.1
    aligned = barrier(moons, a, copied, symmetries=found)
    assert aligned.barrier == pytest.approx(0, abs=1e-6)
    assert aligned.distance == pytest.approx(0, abs=1e-5)
    before, after = barrier(moons, a, b), barrier(moons, a, b, symmetries=found)
    assert after.distance < before.distance
    assert after.values["loss"][-1] == pytest.approx(before.values["loss"][-1], rel=1e-4)
    assert after.barrier < before.barrier


def test_the_matrix_holds_the_paths_of_all_pairs(moons):
    found = symmetries(moons.model, torch.randn(2, 2))
    thetas = torch.stack([trained(moons, seed, 30) for seed in range(3)])
    for own in (None, found):
        matrix = barrier_matrix(moons, thetas, own, n_points=9, progress=False)
        assert matrix.aligned == (own is not None)
        np.testing.assert_array_equal(matrix.barriers, matrix.barriers.T)
        np.testing.assert_array_equal(matrix.distances, matrix.distances.T)
        assert (np.diag(matrix.barriers) == 0).all()
        assert (np.diag(matrix.distances) == 0).all()
        for i, j in ((0, 1), (0, 2), (1, 2)):
            path = barrier(moons, thetas[i], thetas[j], n=9, symmetries=own)
            np.testing.assert_allclose(matrix.profiles[i, j], path.values["loss"], rtol=1e-5)
            np.testing.assert_allclose(matrix.profiles[j, i], path.values["loss"][::-1], rtol=1e-5)
            assert matrix.barriers[i, j] == pytest.approx(path.barrier, rel=1e-3, abs=1e-6)
            assert matrix.heights[i, j] == pytest.approx(path.height, rel=1e-5)
            assert matrix.distances[i, j] == pytest.approx(path.distance)
            assert matrix.path(i, j).barrier == pytest.approx(path.barrier, rel=1e-3, abs=1e-6)
        np.testing.assert_allclose(matrix.losses, [moons.evaluate(t)["loss"] for t in thetas])


def test_batch_norm_needs_statistics_of_each_point():
    model = build("vgg", seed=0, input_shape=(1, 4, 4), classes=2, width=1)
    data = class_data(40, (1, 4, 4), 2)
    objective = Objective(model, data)
    a = objective.origin
    with pytest.raises(ValueError, match="recalibrated"):
        barrier(objective, a, a + 1)
    recalibrated = Objective(model, data, batch_norm="recalibrated")
    found = symmetries(model, data[0][:3])
    path = barrier(recalibrated, a, found.random(a, 1), n=5, symmetries=found)
    assert path.barrier < 1e-4
    # scales before and after the norms are free, so that copies differ in theta, not in their function
    assert path.values["loss"][0] == pytest.approx(path.values["loss"][-1], rel=1e-3)


def test_one_network_with_itself_has_no_way_to_go(moons):
    path = barrier(moons, moons.origin, moons.origin, n=5)
    assert path.barrier == 0
    assert path.distance == 0
    assert path.values["loss"].tolist() == [moons.evaluate(moons.origin)["loss"]] * 5


def test_what_is_not_finite_stays():
    t = np.linspace(0, 1, 3)
    assert PathProfile(t, {"loss": np.array([0, np.inf, 1])}, 1.0).barrier == np.inf
    assert np.isnan(PathProfile(t, {"loss": np.array([0, np.nan, 1])}, 1.0).barrier)


def test_the_barrier_of_an_accuracy_is_its_drop():
    path = PathProfile(np.linspace(0, 1, 3), {"loss": np.zeros(3), "accuracy": np.array([1.0, 0.4, 0.8])}, 1.0)
    assert path.barrier_of("accuracy") == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no metric 'test_loss'"):
        path.barrier_of("test_loss")


def test_questions_that_make_no_sense(moons):
    theta = moons.origin
    with pytest.raises(ValueError, match="at least 3 points"):
        barrier(moons, theta, theta + 1, n=2)
    with pytest.raises(ValueError, match="theta has shape"):
        barrier(moons, theta, theta[:-1])
    with pytest.raises(ValueError, match=r"thetas need shape \[n"):
        barrier_matrix(moons, theta)
    other = symmetries(build("mlp", seed=0, input_shape=(2,), classes=2, widths=[5]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="other parameters"):
        barrier(moons, theta, theta + 1, symmetries=other)


# --- disconnectivity ---------------------------------------------------------------------------------


def test_a_tree_by_hand():
    losses = np.array([0.5, 0.0, 0.2, 0.1])
    heights = np.full((4, 4), 9.0)
    for (i, j), height in {(1, 3): 1.0, (0, 2): 2.0, (2, 3): 3.0}.items():
        heights[i, j] = heights[j, i] = height
    np.fill_diagonal(heights, losses)
    tree = disconnectivity(losses, heights)
    assert tree.heights.tolist() == [1.0, 2.0, 3.0]
    assert tree.merges.tolist() == [[1, 3], [2, 0], [4, 5]]
    assert tree.order.tolist() == [1, 3, 2, 0]


def connected(losses, heights, level):
    """Components of the graph of all paths up to a level, by plain search."""
    alive = [i for i in range(len(losses)) if losses[i] <= level]
    components = []
    while alive:
        component, frontier = set(), [alive[0]]
        while frontier:
            i = frontier.pop()
            component.add(i)
            frontier += [j for j in alive if heights[i, j] <= level and j not in component]
        alive = [i for i in alive if i not in component]
        components.append(frozenset(component))
    return set(components)


def test_a_tree_connects_what_a_search_connects():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        losses = rng.uniform(size=n)
        heights = np.maximum(losses[:, None], losses) + rng.uniform(size=(n, n))
        heights = np.minimum(heights, heights.T)
        np.fill_diagonal(heights, losses)
        tree = disconnectivity(losses, heights)
        assert len(tree.merges) == n - 1
        assert (np.diff(tree.heights) >= 0).all()
        assert sorted(tree.order) == list(range(n))
        for level in rng.uniform(0, 2, 10):
            groups = {i: {i} for i in range(n)}
            for k, ((a, b), height) in enumerate(zip(tree.merges, tree.heights, strict=True)):
                if height <= level:
                    groups[n + k] = groups.pop(a) | groups.pop(b)
            found = {frozenset(g) for g in groups.values() if min(losses[list(g)]) <= level}
            assert found == connected(losses, heights, level)


def test_infinite_paths_leave_a_forest():
    heights = np.array([[0.0, 1.0, np.inf], [1.0, 0.0, np.nan], [np.inf, np.nan, 0.0]])
    tree = disconnectivity(np.zeros(3), heights)
    assert tree.merges.tolist() == [[0, 1]]
    assert sorted(tree.order) == [0, 1, 2]


def test_impossible_heights_are_refused():
    with pytest.raises(ValueError, match="lower than one of its ends"):
        disconnectivity(np.array([0.0, 1.0]), np.array([[0.0, 0.5], [0.5, 1.0]]))
    with pytest.raises(ValueError, match="need shape"):
        disconnectivity(np.zeros(2), np.zeros((3, 3)))


def test_barriers_are_stored(tmp_path):
    rng = np.random.default_rng(0)
    barriers = Barriers(np.linspace(0, 1, 4), rng.uniform(size=(3, 3, 4)), rng.uniform(size=(3, 3)), True)
    barriers.save(tmp_path / "b.h5")
    loaded = Barriers.load(tmp_path / "b.h5")
    assert loaded.aligned is True
    for name in ("t", "profiles", "distances", "barriers", "heights"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(barriers, name))
    with pytest.raises(FileNotFoundError):
        Barriers.load(tmp_path / "none.h5")


# --- figures -----------------------------------------------------------------------------------------


def hill(height, ends=(0.0, 1.0)):
    t = np.linspace(0, 1, 5)
    loss = (1 - t) * ends[0] + t * ends[1] + height * np.array([0, 0.5, 0.2, 1.0, 0])
    return PathProfile(t, {"loss": loss, "accuracy": 1 - loss / 10}, 2.0)


def test_a_figure_marks_the_barrier_of_each_path():
    figure = plot_barrier({"as trained": hill(3.0), "<b>aligned": hill(0.5)})
    curves = [trace for trace in figure.data if trace.showlegend is not False]
    assert [trace.name for trace in curves] == ["as trained: barrier 3", "&lt;b&gt;aligned: barrier 0.5"]
    np.testing.assert_allclose(curves[0].y, hill(3.0).values["loss"])
    marks = [trace for trace in figure.data if trace.marker.symbol == "line-ew"]
    assert [list(mark.x) for mark in marks] == [[0.75, 0.75]] * 2
    np.testing.assert_allclose(marks[0].y, [0.75, 3.75])
    assert figure.layout.yaxis.title.text == "loss"


def test_an_accuracy_is_drawn_in_percent_and_a_valley_has_no_mark():
    figure = plot_barrier(hill(3.0), "accuracy")
    assert figure.layout.yaxis.title.text == "accuracy (%)"
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["barrier 30 %"]
    valley = plot_barrier(hill(-1.0))
    assert not [trace for trace in valley.data if trace.marker.symbol == "line-ew"]
    broken = PathProfile(np.linspace(0, 1, 3), {"loss": np.array([0.0, np.inf, 1.0])}, 1.0)
    assert np.isnan(plot_barrier(broken).data[1].y[1])
    with pytest.raises(ValueError, match="at least one path"):
        plot_barrier({})


def test_the_matrix_puts_networks_of_one_valley_side_by_side():
    n, valley = 6, np.array([0, 1, 0, 1, 0, 1])
    peaks = np.where(valley[:, None] == valley, 0.1, 1.0)
    np.fill_diagonal(peaks, 0)
    profiles = peaks[:, :, None] * np.array([0, 1.0, 0])
    figure = plot_matrix(Barriers(np.linspace(0, 1, 3), profiles, 10 * peaks, False), [f"net {i}" for i in range(n)])
    barriers, distances = figure.data
    order = [int(name.split()[1]) for name in barriers.x]
    assert sorted(order) == list(range(n))
    assert len(set(valley[order[:3]])) == 1
    expected = peaks[np.ix_(order, order)]
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(barriers.z, expected)
    np.testing.assert_allclose(distances.z, 10 * expected)
    infinite = profiles.copy()
    infinite[0, 1] = infinite[1, 0] = np.inf
    figure = plot_matrix(Barriers(np.linspace(0, 1, 3), infinite, 10 * peaks, True))
    assert np.isnan(figure.data[0].z).sum() == n + 2
    assert "clustering of the distances" in figure.layout.title.subtitle.text
    with pytest.raises(ValueError, match="at least 2"):
        plot_matrix(Barriers(np.zeros(3), profiles[:1, :1], peaks[:1, :1], False))
    with pytest.raises(ValueError, match="6 names"):
        plot_matrix(Barriers(np.linspace(0, 1, 3), profiles, peaks, False), ["one"])


def test_a_tree_is_drawn_without_crossings():
    heights = np.array([[0.2, 5, 2], [5, 0.1, 5], [2, 5, 0.4]], dtype=float)
    tree = disconnectivity(np.diag(heights), heights)
    figure = plot_connections(tree, ["a", "b", "c"])
    branches, minima, joins = figure.data
    assert list(figure.layout.xaxis.ticktext) == ["b", "a", "c"]
    np.testing.assert_allclose(minima.y, [0.2, 0.1, 0.4])
    np.testing.assert_allclose(minima.x, [1, 0, 2])
    np.testing.assert_allclose(joins.y, [2, 5])
    np.testing.assert_allclose(joins.x, [1.5, 0.75])
    assert [None if v is None else float(v) for v in branches.y[:5]] == [0.2, 2, 2, 0.4, None]
    assert plot_connections(tree, scale="log").layout.yaxis.type == "log"
    with pytest.raises(ValueError, match="3 names"):
        plot_connections(tree, ["a"])
    with pytest.raises(ValueError, match="scale must be"):
        plot_connections(tree, scale="square")

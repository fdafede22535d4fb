"""Steepest descents: they go down, stay in their basin, and hit a minimum as often as its basin is large."""

import numpy as np
import pytest

from landscape.figures import plot_basin_descents, plot_minima
from landscape.figures.basins import find_basins
from landscape.surface import Surface
from landscape.topology import analyze, descend, random_starts
from landscape.topology.tree import NONE, OUTSIDE


def bumpy(nx=31, ny=23):
    """Return a surface with several minima, on axes of unequal spacing."""
    x, y = np.sort(np.append(np.linspace(-2, 3, nx - 1), 0.017)), np.linspace(0, 1, ny)
    values = np.sin(2.3 * x)[:, None] + np.cos(9 * y)[None, :] + 0.2 * x[:, None] * y
    return Surface({"x": x, "y": y}, {"loss": values}, np.ones((nx, ny), dtype=bool))


def every_point(topology):
    return np.stack(np.meshgrid(*topology.axes.values(), indexing="ij"), axis=-1).reshape(-1, len(topology.axes))


@pytest.mark.parametrize("neighborhood", ["full", "axis"])
def test_each_step_leads_to_the_lowest_neighbor_and_the_last_point_has_none_below(neighborhood):
    topology = analyze(bumpy(), neighborhood=neighborhood)
    reach = 2 if neighborhood == "full" else 1
    grid = np.stack(np.indices(topology.values.shape), axis=-1).reshape(-1, 2)
    found = descend(topology, every_point(topology))
    for path in found.paths[::7]:
        for here, there in zip(path, [*path[1:], None], strict=True):
            away = np.abs(grid - here)
            beside = grid[(away.max(axis=1) == 1) & (away.sum(axis=1) <= reach)]
            lowest = beside[np.argmin(topology.values[tuple(beside.T)])]
            if there is None:
                assert topology.values[tuple(here)] < topology.values[tuple(lowest)]
            else:
                assert there.tolist() == lowest.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_descents_agree_with_basins_even_where_values_repeat(seed):
    generator = np.random.default_rng(seed)
    for shape in ((40,), (9, 13), (5, 6, 7)):
        topology = analyze(generator.integers(0, 4, shape).astype(float))  # plateaus everywhere
        found = descend(topology, every_point(topology))
        assert len(found) == len(found.paths) == topology.basins.size
        lowest = topology.minima.value[topology.basins.ravel()]
        for path, end, start_basin in zip(found.paths, lowest, topology.basins.ravel(), strict=True):
            along = topology.values[tuple(path.T)]
            assert along[-1] == end
            assert (np.diff(along) <= 0).all()
            assert (np.abs(np.diff(path, axis=0)).max(axis=1, initial=0) == 1).all()
            assert (topology.basins[tuple(path.T)] == start_basin).all()
        assert found.minimum.tolist() == topology.basins.ravel().tolist()


def test_a_plateau_is_crossed_on_a_shortest_way():
    (path,) = descend(analyze([3, 2, 2, 2, 1, 4]), [[0.3]]).paths
    assert path.ravel().tolist() == [0, 1, 2, 3, 4]


def test_random_starts_end_in_a_minimum_as_often_as_its_basin_is_large():
    topology = analyze(bumpy())
    n = 4000
    hits = np.bincount(descend(topology, random_starts(topology, n, seed=3)).minimum, minlength=len(topology.minima))
    share = topology.minima.share
    assert (share > 0.05).sum() >= 3
    assert (np.abs(hits / n - share) < 4 * np.sqrt(share * (1 - share) / n) + 1e-12).all()


def test_starts_depend_on_the_seed_only_and_a_longer_draw_goes_on():
    topology = analyze(bumpy())
    assert np.array_equal(random_starts(topology, 10, seed=1), random_starts(topology, 10, seed=1))
    assert np.array_equal(random_starts(topology, 200, seed=1)[:100], random_starts(topology, 100, seed=1))
    assert not np.array_equal(random_starts(topology, 10, seed=1), random_starts(topology, 10, seed=2))


def test_unknown_points_are_neither_starts_nor_crossed():
    surface = bumpy()
    surface.done[10:20, 5:15] = False
    topology = analyze(surface)
    starts = random_starts(topology, 500)
    for path in descend(topology, starts).paths:
        assert surface.done[tuple(path.T)].all()
    with pytest.raises(ValueError, match="not known"):
        descend(topology, [[surface.axes["x"][15], surface.axes["y"][10]]])
    surface.done[:] = False
    with pytest.raises(ValueError, match="nowhere to start"):
        random_starts(analyze(surface), 1)


@pytest.mark.parametrize(
    ("starts", "message"), [([0.0, 0.0], "shape"), ([[9.0, 0.5]], "outside"), ([[np.nan, 0.5]], "outside")]
)
def test_starts_that_do_not_fit_are_refused(starts, message):
    with pytest.raises(ValueError, match=message):
        descend(analyze(bumpy()), starts)
    with pytest.raises(ValueError, match="0 or more"):
        random_starts(analyze(bumpy()), -1)


def test_a_descent_tells_when_it_leads_out_of_the_window():
    topology = analyze([3.0, 2, 1])
    (end,) = descend(topology, [[0.0]]).minimum
    assert topology.minima.on_border[end]
    assert topology.merged_basins()[0] == OUTSIDE != NONE


def test_the_figure_draws_every_descent_in_the_color_of_its_basin():
    surface = bumpy()
    topology = analyze(surface)
    found = descend(topology, random_starts(topology, 40))
    figure = plot_basin_descents(surface, topology, found)
    basins = find_basins(topology)
    drawn = {}
    for trace in figure.data:
        if trace.type == "scatter" and trace.mode == "lines" and not trace.showlegend:
            x, y = np.array(trace.x), np.array(trace.y)
            for part in np.split(np.arange(len(x)), np.flatnonzero(np.isnan(x)) + 1)[:-1]:
                drawn[x[part[0]], y[part[0]]] = trace.line.color, x[part[-2]], y[part[-2]]
    axes = topology.axes
    for path in found.paths:
        start, end = ((axes["x"][i], axes["y"][j]) for i, j in (path[0], path[-1]))
        home = basins.labels[tuple(path[0])]
        color = "#777777" if home == OUTSIDE else basins.colors[home]
        assert drawn[start] == (color, *end)
    assert not any(trace.name == "minimum that does not count" for trace in figure.data)
    marks = [trace.name for trace in plot_minima(surface, topology).data if trace.type == "scatter"]
    assert [trace.name for trace in figure.data][-len(marks) :] == marks  # on top of the lines
    line = Surface({"x": np.arange(3.0)}, {"loss": np.arange(3.0)}, np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="dimension"):
        plot_basin_descents(line, analyze(line), found)


def test_the_figure_rings_the_ends_in_minima_that_do_not_count():
    surface = bumpy()
    persistence = analyze(surface).minima.persistence
    topology = analyze(surface, threshold=float(persistence[persistence > 0].min()))
    counted = topology.counts_as(topology.minima)
    small = np.flatnonzero(~counted & ~topology.minima.on_border)
    assert len(small)
    found = descend(topology, topology.minima.coordinates)
    (ring,) = [
        trace
        for trace in plot_basin_descents(surface, topology, found).data
        if trace.name == "minimum that does not count"
    ]
    assert np.array_equal(np.stack([ring.x, ring.y], axis=1), topology.minima.coordinates[small])

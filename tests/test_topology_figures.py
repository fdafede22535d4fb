import csv

import numpy as np
import pytest
from problems import KNOWN_MINIMA

from landscape.cli import main
from landscape.figures.basins import MOST_NUMBERED, find_basins
from landscape.figures.merge_tree import _tree_info, plot_merge_tree
from landscape.figures.minima import plot_basins, plot_minima
from landscape.figures.minima_count import plot_minima_count
from landscape.figures.persistence import plot_persistence
from landscape.figures.topology import topology_figures
from landscape.surface import empty_surface
from landscape.topology import OUTSIDE, analyze


def on_grid(name, *resolution):
    problem = KNOWN_MINIMA[name]
    axes = [np.linspace(low, high, n) for (low, high), n in zip(problem.box, resolution, strict=True)]
    surface = empty_surface(dict(zip("xyz", axes, strict=False)), ["loss", "accuracy"])
    surface.values["loss"][:] = problem.function(*np.meshgrid(*axes, indexing="ij"))
    surface.values["accuracy"][:] = 1 / (2 + surface.values["loss"] - surface.values["loss"].min())
    surface.done[:] = True
    return surface


def line(values):
    surface = empty_surface({"x": np.arange(float(len(values)))}, ["loss"])
    surface.values["loss"][:] = values
    surface.done[:] = True
    return surface


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name and (trace.x is None or trace.x[0] is not None)][0]  # noqa: RUF015


CAMEL = on_grid("six-hump camel", 41, 38)


# ---------------------------------------------------------------- on the surface


def test_marks_on_contours_are_where_the_minima_are():
    found = analyze(CAMEL)
    figure = plot_minima(CAMEL, found)
    minima = named(figure, "minimum")
    assert list(minima.text) == ["1", "2", "3", "4", "5", "6"]
    drawn = np.stack([minima.x, minima.y], axis=1)
    np.testing.assert_array_equal(drawn, found.minima.coordinates[found.counts_as(found.minima)])
    values = [KNOWN_MINIMA["six-hump camel"].function(*point) for point in drawn]
    assert values == sorted(values)
    saddles = named(figure, "saddle")
    assert len(saddles.x) == 7  # with two maxima inside a ring of 6 basins and the two ways out
    assert len(named(figure, "maximum").x) == 2
    assert "minimum 1" in minima.customdata[0]
    assert "persistence" in minima.customdata[0]


def test_basins_are_drawn_with_the_first_axis_to_the_right():
    found = analyze(CAMEL)
    (areas,) = [trace for trace in plot_minima(CAMEL, found).data if trace.type == "heatmap"]
    basins = find_basins(found)
    for i, j in ((0, 0), (40, 0), (3, 30), (20, 5)):
        assert areas.z[j][i] == basins.labels[i, j]
    steps = areas.colorscale
    assert len(steps) == 2 * (len(basins.shown) + 1)
    assert [step[1] for step in steps[::2]] == [step[1] for step in steps[1::2]]  # no transitions


def test_neighboring_basins_differ_in_color():
    found = analyze(on_grid("Rastrigin-2", 64, 61))
    basins = find_basins(found)
    labels = basins.labels
    for u, v in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1]), (labels[1:, 1:], labels[:-1, :-1])):
        beside = {pair for pair in zip(u.ravel().tolist(), v.ravel().tolist(), strict=True) if min(pair) >= 0}
        assert all(basins.colors[a] != basins.colors[b] for a, b in beside if a != b)
    assert len(basins.shown) > MOST_NUMBERED
    assert named(plot_minima(on_grid("Rastrigin-2", 64, 61), found), "minimum").text is None


def test_basins_of_minima_that_do_not_count_are_part_of_others():
    surface = line([9.0, 0.0, 2.0, 1.0, 8.0, 3.0, 4.0, -1.0])
    basins = find_basins(analyze(surface, threshold=1.5))
    assert basins.shown.tolist() == [1]  # after the one on the border
    assert basins.numbers.tolist() == [1]
    assert basins.labels.tolist() == [0, 0, 0, 0, 0, OUTSIDE, OUTSIDE, OUTSIDE]
    assert "1 local minimum with a persistence above 1.5, 2 below; the border excluded" in basins.note
    shapes = plot_minima(surface, analyze(surface, threshold=1.5)).layout.shapes
    bands = [(shape.x0, shape.x1) for shape in shapes if shape.type == "rect"]
    assert bands == [(0, 4.5), (4.5, 7)]


def test_a_line_and_a_volume():
    flat = plot_minima(on_grid("Schwefel-1", 201))
    assert len(named(flat, "minimum").x) == 7
    assert list(named(flat, "minimum").y) == sorted(named(flat, "minimum").y)
    solid = plot_minima(on_grid("Styblinski-Tang-3", 21, 24, 22))
    minima = named(solid, "minimum")
    assert len(minima.x) == len(minima.z) == 8
    assert {"isosurface", "scatter3d"} <= {trace.type for trace in solid.data}


def test_a_surface_in_three_dimensions_has_the_colors_of_its_basins():
    found = analyze(CAMEL)
    figure = plot_basins(CAMEL, found, ceiling=4)
    (mesh,) = [trace for trace in figure.data if trace.type == "mesh3d"]
    assert len(mesh.x) == 41 * 38
    assert len(mesh.i) == 2 * 40 * 37
    corner = 7 * 38 + 11
    assert (mesh.x[corner], mesh.y[corner]) == (CAMEL.axes["x"][7], CAMEL.axes["y"][11])
    assert mesh.z[corner] == CAMEL.values["loss"][7, 11]
    labels = find_basins(found).labels.ravel()
    colors = np.array(mesh.vertexcolor)
    for label in np.unique(labels):
        assert len(set(colors[labels == label])) == 1
    minima = named(figure, "minimum")
    assert (np.array(minima.z) > found.minima.value[:6]).all()  # lifted, so as not to sink in
    assert list(figure.layout.scene.zaxis.range)[1] < 4.5


def test_gaps_have_no_faces():
    surface = on_grid("Himmelblau", 20, 21)
    surface.values["loss"][3, 4] = np.nan
    surface.values["loss"][10, 10] = np.inf
    (mesh,) = [trace for trace in plot_basins(surface).data if trace.type == "mesh3d"]
    corners = np.concatenate([mesh.i, mesh.j, mesh.k])
    assert not {3 * 21 + 4, 10 * 21 + 10} & set(corners.tolist())


# ---------------------------------------------------------------- diagrams


def test_persistence_diagram():
    surface = line([9.0, 0.0, 3.0, 1.0, 8.0, 3.0, 3.25, 2.5, 4.0])
    found = analyze(surface, border="include")
    figure = plot_persistence(found)
    (merging,) = [trace for trace in figure.data if trace.name == "merges into a lower minimum"]
    assert list(zip(merging.x, merging.y, strict=True)) == [(1.0, 3.0), (2.5, 8.0)]
    assert list(merging.text) == ["2", "3"]
    (gray,) = [trace for trace in figure.data if trace.name == "within the noise"]
    assert list(zip(gray.x, gray.y, gray.error_y.arrayminus, strict=True)) == [(3.0, 3.25, (5 + 0.25) / 8)]
    (lowest,) = [trace for trace in figure.data if trace.name == "the lowest of all"]
    assert lowest.x[0] == 0
    assert lowest.y[0] > 8
    border = plot_persistence(analyze(surface))
    assert [trace.name for trace in border.data if trace.name and "border" in trace.name] == ["reaches the border"]


def test_persistence_on_a_log_scale_leaves_out_what_it_cannot_show():
    found = analyze(line([9.0, 0.0, 2.0, 1.0, 9.0]))
    figure = plot_persistence(found, scale="log")
    assert "1 left out" in figure.layout.title.subtitle.text.replace("<br>", " ")
    assert figure.layout.xaxis.type == "log"
    with pytest.raises(ValueError, match="scale"):
        plot_persistence(found, scale="cubic")


def test_disconnectivity_graph():
    values = [9.0, 0.0, 2.0, 1.0, 8.0, -3.0, 5.0, -1.0, 7.0, 1.5, 9.5]
    found = analyze(line(values), border="include", threshold=0)
    info = _tree_info(found, "linear")
    ends = {}
    for branch, foot in zip(info.branches, info.feet, strict=True):
        assert branch.y[0] == foot
        ends[foot] = branch.y[1] if branch.x[0] != branch.x[-1] else None
    assert ends == {-3.0: None, -1.0: 5.0, 0.0: 8.0, 1.0: 2.0, 1.5: 7.0}
    place = dict(zip(info.feet, info.leaves, strict=True))
    assert {branch.y[0]: branch.x[-1] for branch in info.branches}[1.0] == place[0.0]
    for branch in info.branches:  # a branch crosses no line that is still there at its height
        low, high = sorted((branch.x[0], branch.x[-1]))
        for other in info.branches:
            if other is not branch and low < other.x[0] < high and len(branch.y) == 3:
                assert other.y[1] <= branch.y[1]


@pytest.mark.parametrize("border", ["exclude", "include"])
def test_disconnectivity_graphs_do_not_cross(border):
    values = np.random.default_rng(3).normal(size=(14, 15))
    found = analyze(values, border=border, threshold=0)
    info = _tree_info(found, "linear")
    assert sorted(info.leaves) == list(range(found.count()))
    assert (info.border is not None) == (border == "exclude")
    branches = [branch for branch in info.branches if len(branch.x) == 3]
    assert len(branches) >= found.count() - (border == "include")
    for branch in branches:
        low, high = sorted((branch.x[0], branch.x[-1]))
        for other in branches:
            if low < other.x[0] < high:
                assert other.y[1] <= branch.y[1]


def test_the_border_is_drawn_where_minima_flow_out():
    figure = plot_merge_tree(analyze(CAMEL))
    assert [note.text for note in figure.layout.annotations] == ["border"]
    assert not plot_merge_tree(analyze(CAMEL, border="include")).layout.annotations


def test_count_against_threshold():
    found = analyze(line([9.0, 0.0, 3.0, 1.0, 8.0, 3.0, 3.25, 2.5, 4.0]), border="include", threshold=0.5)
    figure = plot_minima_count(found)
    everything, certain = figure.data
    for trace, expected in ((everything, [4, 3, 2, 1]), (certain, [3, 3, 2, 1])):
        for threshold, count in zip((0.2, 0.5, 2.0, 7.0), expected, strict=True):
            assert trace.y[np.searchsorted(trace.x, threshold, side="right") - 1] == count
    assert figure.layout.xaxis.type == "log"
    assert "3 above the threshold" in figure.layout.annotations[0].text
    assert figure.layout.annotations[0].x == pytest.approx(np.log10(0.5))


def test_accuracies_are_in_percent():
    surface = on_grid("Himmelblau", 31, 30)
    surface.values["accuracy"][:] = 1 - surface.values["accuracy"]
    found = analyze(surface, metric="accuracy")
    figure = plot_persistence(found)
    assert "accuracy (%)" in figure.layout.xaxis.title.text
    lowest = min(min(trace.x) for trace in figure.data if trace.name)
    assert lowest == pytest.approx(100 * found.minima.value.min())


# ---------------------------------------------------------------- all of them


def test_nothing_to_see_is_drawn_all_the_same():
    nothing = np.full((4, 5), np.nan)
    for values in (np.zeros((4, 5)), nothing, np.add.outer(np.arange(4.0), np.arange(5.0))):
        surface = empty_surface({"x": np.arange(4.0), "y": np.arange(5.0)}, ["loss"])
        surface.values["loss"][:] = values
        surface.done[:] = True
        drawn = topology_figures(surface, analyze(surface))
        assert list(drawn) == ["minima", "basins", "persistence", "merge_tree", "minima_count"]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_minimum_of_zero_is_drawn_on_any_scale(scale):
    surface = on_grid("Himmelblau", 21, 21)
    assert surface.values["loss"].min() == 0
    drawn = topology_figures(surface, analyze(surface), scale)
    assert len(named(drawn["minima"], "minimum").x) == analyze(surface).count()
    assert len(drawn["merge_tree"].data[-1].x) == analyze(surface).count()


def test_a_topology_of_another_surface():
    with pytest.raises(ValueError, match="grid"):
        plot_minima(CAMEL, analyze(np.zeros((4, 5))))
    with pytest.raises(ValueError, match="2 dimension"):
        plot_basins(line([3.0, 1.0, 2.0]))


def test_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "camel.h5"
    CAMEL.save(path)
    assert main(["topology", str(path), "--formats", "html"]) == 0
    shown = capsys.readouterr().out
    assert "6 local minima of the surface" in shown
    folder = tmp_path / "camel_topology"
    assert {file.name for file in folder.iterdir()} == {
        "minima.csv", "minima.html", "basins.html", "persistence.html", "merge_tree.html", "minima_count.html",
    }  # fmt: skip
    with open(folder / "minima.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["counts"] == "True" for row in rows) == 6
    assert float(rows[0]["loss"]) == CAMEL.values["loss"].min()
    assert main(["topology", str(path), "--threshold", "-1", "--formats", "html"]) == 2
    assert "at least 0" in capsys.readouterr().err
    both = [str(path), str(tmp_path / "again.h5")]
    CAMEL.save(both[1])
    assert main(["topology", *both, "--out", str(tmp_path / "out"), "--formats", "html", "--border", "include"]) == 0
    assert (tmp_path / "out" / "again_minima.csv").exists()
    assert (tmp_path / "out" / "camel_merge_tree.html").exists()

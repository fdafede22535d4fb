import math
import re
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from landscape import figures
from landscape.figures import (
    browser_missing,
    figures_of,
    plot,
    plot_comparison,
    plot_contour,
    plot_descent,
    plot_history,
    plot_line,
    plot_surface,
    plot_trajectory,
    plot_volume,
    save_figure,
    save_figures,
)
from landscape.figures.grid import complete_grid, drawn, find_levels, number
from landscape.surface import ProjectedTrajectory, empty_surface

X, Y, Z = np.linspace(-1, 1, 5), np.linspace(-2, 1, 4), np.linspace(-1, 2, 3)


def f(x, y):
    return 1 + x**2 + 2 * (y + 0.5) ** 2 + 0.3 * x


def g(x, y, z):
    return 1 + x**2 + 2 * y**2 + 4 * z**2 + 0.3 * x


def run(n=6, k=2, shift=0.0):
    t = np.linspace(0, 1, n)
    coordinates = np.stack([0.9 * (1 - t) ** (i + 1) + shift for i in range(k)], axis=1)
    return ProjectedTrajectory(
        step=10 * np.arange(n), coordinates=coordinates, distance=t + 1, loss=3 - t, loss_on_slice=2.5 - t
    )


def plane(**runs):
    surface = empty_surface({"x": X, "y": Y}, ["loss", "accuracy", "test_loss"])
    for i, x in enumerate(X):
        for j, y in enumerate(Y):
            surface.values["loss"][i, j] = f(x, y)
            surface.values["accuracy"][i, j] = 1 / f(x, y)
            surface.values["test_loss"][i, j] = 2 * f(x, y)
    surface.done[:] = True
    surface.trajectories = runs
    return surface


def line(factor=1.0):
    surface = empty_surface({"x": X}, ["loss", "test_loss", "accuracy", "test_accuracy", "entropy"])
    for name, values in surface.values.items():
        values[:] = factor * f(X, 0) / 10 + (0.1 if name.startswith("test") else 0)
    surface.done[:] = True
    return surface


def volume():
    surface = empty_surface({"x": X, "y": Y, "z": Z}, ["loss", "accuracy"])
    surface.values["loss"][:] = g(X[:, None, None], Y[None, :, None], Z[None, None, :])
    surface.values["accuracy"][:] = 1 / surface.values["loss"]
    surface.done[:] = True
    return surface


def labels(surface, unit=None):
    surface.provenance = {"axes": [{"label": f"direction {i}", "unit": unit} for i in range(len(surface.axes))]}
    return surface


def of_kind(figure, kind):
    return next(trace for trace in figure.data if trace.type == kind)


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def subtitle(figure):
    return (figure.layout.title.subtitle.text or "").replace("<br>", " ")


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize(
    "trace",
    [of_kind(plot_contour(plane()), "contour"), of_kind(plot_surface(plane()), "surface")],
    ids=["contour", "surface"],
)
def test_columns_of_plotly_are_our_first_axis(trace):
    assert np.shape(trace.z) == (4, 5)
    for i, x in enumerate(trace.x):
        for j, y in enumerate(trace.y):
            assert trace.z[j][i] == f(x, y)
            assert trace.customdata[j][i] == f(x, y)


def test_points_of_a_volume_keep_their_values():
    trace = of_kind(plot_volume(volume()), "isosurface")
    assert len(trace.value) == 5 * 4 * 3
    np.testing.assert_allclose(
        trace.value, [g(*point) for point in zip(trace.x, trace.y, trace.z, strict=True)], rtol=1e-6
    )


def test_drawing_changes_nothing():
    surface = plane(sgd=run())
    surface.values["loss"][0, 0], surface.values["loss"][1, 1] = np.nan, np.inf
    before = {name: values.copy() for name, values in surface.values.items()}
    figures_of(surface, scale="log", ceiling=5)
    for name, values in before.items():
        np.testing.assert_array_equal(surface.values[name], values)


# ---------------------------------------------------------------- gaps, unfinished surfaces


def test_what_is_not_finite_is_a_gap_and_said():
    surface = plane()
    surface.values["loss"][2, 1], surface.values["loss"][0, 3] = np.inf, np.nan
    figure = plot_contour(surface)
    z = np.array(of_kind(figure, "contour").z)
    assert np.isnan(z[1, 2])
    assert np.isnan(z[3, 0])
    assert np.isnan(z).sum() == 2
    assert "gaps: 2 of 20 points are not finite" in subtitle(figure)


def test_a_log_scale_leaves_out_what_has_no_logarithm_and_says_so():
    surface = plane()
    surface.values["loss"][2, 1], surface.values["loss"][0, 3] = 0.0, -1.0
    figure = plot_contour(surface, scale="log")
    trace = of_kind(figure, "contour")
    assert np.isnan(np.array(trace.z)).sum() == 2
    assert trace.z[2][1] == pytest.approx(math.log10(f(X[1], Y[2])), rel=1e-15)
    assert trace.customdata[2][1] == f(X[1], Y[2])
    assert "log scale; gaps: 2 point(s) not above 0" in subtitle(figure)


def test_few_missing_points_are_gaps():
    surface = plane()
    surface.done[4, 3] = False
    figure = plot_contour(surface)
    assert np.isnan(of_kind(figure, "contour").z[3][4])
    assert "95 % of the points computed" in subtitle(figure)


def test_a_coarse_beginning_shows_the_whole_picture():
    surface = empty_surface({"x": np.linspace(0, 1, 9), "y": np.linspace(0, 1, 5)}, ["loss"])
    surface.values["loss"][:] = np.arange(45.0).reshape(9, 5)
    surface.done[::4, ::2] = True
    surface.done[:4] = True  # the next levels have begun here: more points, but not the whole picture
    figure = plot_contour(surface)
    trace = of_kind(figure, "contour")
    assert list(trace.x) == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 1]
    assert list(trace.y) == [0, 0.5, 1]
    rows = np.ix_([0, 1, 2, 3, 4, 8], [0, 2, 4])
    np.testing.assert_array_equal(np.array(trace.z).T, surface.values["loss"][rows])
    assert "57 % of the points computed, shown on 6 x 3" in subtitle(figure)
    assert list(figure.layout.xaxis.range) == [0, 1]


@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))))
def test_the_complete_grid_is_complete(done):
    grid = complete_grid(done)
    assert done[np.ix_(*grid)].all()
    assert all((np.diff(rows) > 0).all() for rows in grid)


@given(st.lists(st.sets(st.integers(0, 6), min_size=1), min_size=1, max_size=3))
def test_a_complete_grid_is_found(chosen):
    done = np.zeros((7,) * len(chosen), dtype=bool)
    done[np.ix_(*map(sorted, chosen))] = True
    assert [rows.tolist() for rows in complete_grid(done)] == [sorted(rows) for rows in chosen]


def test_nothing_computed_is_drawn_empty():
    for surface in (line(), plane(), volume()):
        surface.done[:] = False
        for figure in figures_of(surface, scale="log").values():
            assert "0 % of the points computed" in subtitle(figure)


# ---------------------------------------------------------------- levels and numbers


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.sampled_from(["linear", "log"]))
def test_levels_are_even_inside_and_labelled_with_their_values(low, width, scale):
    if scale == "log":
        low, width = low / 1e5, max(width / 1e6, 1e-2)
    levels = find_levels(np.array([low, low + width]), "loss", scale)
    assert 3 <= len(levels.values) <= 19
    np.testing.assert_allclose(np.diff(levels.values), levels.step, atol=1e-9 * max(abs(low), 1))
    assert levels.low - 1e-6 * width <= levels.values[0]
    assert levels.values[-1] <= levels.high + 1e-6 * width
    assert len(set(levels.text)) == len(levels.text)
    shown = 10**levels.values if scale == "log" else levels.values
    np.testing.assert_allclose([float(text) for text in levels.text], shown, rtol=0.021, atol=1e-6 * levels.step)


def test_levels_of_a_constant_and_of_nothing():
    constant = find_levels(np.full((3, 2), 2.5), "loss", "linear")
    assert constant.low < 2.5 < constant.high
    assert len(find_levels(np.full((3, 2), np.nan), "loss", "log").values) > 2


@given(st.floats(1e-30, 1e30), st.booleans())
def test_numbers_are_short_and_right(value, negative):
    value = -value if negative else value
    text = number(value)
    assert len(text) <= 9
    assert float(text) == pytest.approx(value, rel=0.00501)


def test_numbers_look_as_one_writes_them():
    assert [number(v) for v in (0, 0.02, 1250, 3.14159e7, 1e-5, -0.5)] == [
        "0",
        "0.02",
        "1250",
        "3.14e7",
        "1e-5",
        "-0.5",
    ]


def test_ticks_of_a_log_scale_show_the_values():
    trace = of_kind(plot_contour(plane(), scale="log"), "contour")
    bar = trace.colorbar
    np.testing.assert_allclose([float(text) for text in bar.ticktext], 10 ** np.array(bar.tickvals), rtol=0.021)
    # plotly labels the lines with the ticks' texts, which it finds only if the levels are the ticks
    np.testing.assert_allclose(
        np.arange(len(bar.tickvals)) * trace.contours.size + trace.contours.start, bar.tickvals, atol=1e-12
    )


def test_a_ceiling_ends_the_view_and_keeps_the_data():
    for figure, kind in ((plot_contour(plane(), ceiling=4), "contour"), (plot_surface(plane(), ceiling=4), "surface")):
        trace = of_kind(figure, kind)
        assert np.max(trace.z) == f(X, Y[:, None]).max() > 4
        assert (trace.zmax if kind == "contour" else trace.cmax) == 4
        assert "view ends at 4; highest value 6.8" in subtitle(figure)
    assert 4 < plot_surface(plane(), ceiling=4).layout.scene.zaxis.range[1] < 4.2
    assert plot_contour(plane(), scale="log", ceiling=4).data[0].zmax == pytest.approx(math.log10(4))
    assert subtitle(plot_contour(plane(), ceiling=100)) == ""


# ---------------------------------------------------------------- marks


def test_trained_network_and_lowest_point_are_marked():
    figure = plot_contour(plane())
    assert (named(figure, "trained network").x, named(figure, "trained network").y) == ((0.0,), (0.0,))
    lowest = named(figure, "lowest grid point")
    assert (lowest.x, lowest.y) == ((0.0,), (-1.0,))


def test_a_lowest_point_on_the_border_is_called_so():
    surface = plane()
    surface.values["loss"][4, 2] = 0.1
    figure = plot_contour(surface)
    lowest = named(figure, "lowest grid point (on the border)")
    assert (lowest.x, lowest.y) == ((1.0,), (0.0,))
    assert not any("lowest" in (trace.name or "") for trace in plot_contour(surface, "accuracy").data)


def test_a_grid_without_the_origin_has_no_trained_network():
    surface = empty_surface({"x": X + 5, "y": Y}, ["loss"])
    surface.done[:] = True
    surface.values["loss"][:] = 1.0
    assert "trained network" not in {trace.name for trace in plot_contour(surface).data}


def test_trajectories_are_drawn_with_all_that_is_known_of_them():
    runs = {"sgd": run(), "adam": run(4, shift=0.05)}
    figure = plot_contour(plane(**runs))
    for name, expected in runs.items():
        trace = named(figure, name)
        np.testing.assert_array_equal(np.stack([trace.x, trace.y], axis=1), expected.coordinates)
        np.testing.assert_array_equal(
            trace.customdata,
            np.column_stack(
                [expected.step, expected.loss, expected.loss_on_slice, expected.distance, trace.x, trace.y]
            ),
        )
        ends = [t for t in figure.data if t.legendgroup == name and t.mode == "markers"]
        assert [end.x[0] for end in ends] == [expected.coordinates[0, 0], expected.coordinates[-1, 0]]
    assert named(figure, "sgd").line.color != named(figure, "adam").line.color
    assert {trace.name for trace in plot_contour(plane(**runs), trajectories=False).data}.isdisjoint(runs)


def test_checkpoints_outside_the_grid_are_counted():
    figure = plot_contour(plane(sgd=run(shift=0.5)))
    outside = int((run(shift=0.5).coordinates > 1).any(axis=1).sum())
    assert outside == 3
    assert f"{outside} of 6 checkpoints lie outside the grid" in subtitle(figure)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_runs_lie_on_the_surface_at_their_loss_on_the_slice(scale):
    trace = named(plot_surface(plane(sgd=run(shift=0.5)), scale=scale), "sgd")
    expected = run(shift=0.5)
    inside = (expected.coordinates <= 1).all(axis=1)
    heights = np.log10(expected.loss_on_slice) if scale == "log" else expected.loss_on_slice
    span = np.ptp(np.log10(f(X, Y[:, None])) if scale == "log" else f(X, Y[:, None]))
    lift = np.array(trace.z)[inside] - heights[inside]
    assert (lift > 0).all()
    assert (lift < 0.02 * span).all()
    assert np.isnan(np.array(trace.z)[~inside]).all()


def test_what_a_run_does_above_the_ceiling_is_not_drawn_but_said():
    figure = plot_surface(plane(sgd=run()), ceiling=2)
    expected = run().loss_on_slice
    assert list(np.isnan(named(figure, "sgd").z)) == list(expected > 2)
    assert f"{(expected > 2).sum()} of 6 checkpoints of sgd lie above the view" in subtitle(figure)


def test_a_run_is_not_drawn_on_a_surface_of_another_metric():
    assert "sgd" not in {trace.name for trace in plot_surface(plane(sgd=run()), "accuracy").data}


# ---------------------------------------------------------------- axes


def test_axes_carry_the_stored_labels_or_say_what_they_are():
    figure = plot_contour(labels(plane()))
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("direction 0", "direction 1")
    figure = plot_contour(plane())
    assert figure.layout.xaxis.title.text == "x: coefficient of direction 1"
    assert figure.layout.yaxis.title.text == "y: coefficient of direction 2"
    scene = plot_volume(volume()).layout.scene
    assert scene.zaxis.title.text == "z: coefficient of direction 3"
    assert (list(scene.xaxis.range), list(scene.yaxis.range)) == ([-1, 1], [-2, 1])


def test_axes_of_one_unit_have_one_scale():
    assert plot_contour(labels(plane(), "distance")).layout.yaxis.scaleanchor == "x"
    assert plot_contour(labels(plane())).layout.yaxis.scaleanchor is None
    aspect = plot_surface(labels(plane(), "distance")).layout.scene.aspectratio
    assert (aspect.x, aspect.y) == pytest.approx((2 / 3, 1))


def test_the_camera_stands_where_the_trained_network_is_seen():
    for side in ((1, -1), (-1, -1), (1, 1), (-1, 1)):
        surface = plane()
        surface.values["loss"][:] = -side[0] * X[:, None] - side[1] * Y + 5  # falls toward that corner
        eye = plot_surface(surface).layout.scene.camera.eye
        assert (np.sign(eye.x), np.sign(eye.y)) == side


# ---------------------------------------------------------------- lines


def test_a_line_shows_losses_left_and_accuracies_right_in_percent():
    figure = plot_line(line())
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces) == ["loss", "test loss", "accuracy", "test accuracy"]
    np.testing.assert_array_equal(traces["loss"].y, f(X, 0) / 10)
    np.testing.assert_allclose(traces["accuracy"].y, 10 * f(X, 0))
    np.testing.assert_array_equal(traces["accuracy"].x, X)
    assert [trace.yaxis for trace in figure.data] == ["y", "y", "y2", "y2"]
    assert [trace.line.dash for trace in figure.data] == ["solid", "dash", "solid", "dash"]
    assert figure.layout.yaxis2.title.text == "accuracy (%)"
    assert figure.layout.shapes[0].x0 == 0


def test_several_lines_differ_in_color_and_show_losses():
    figure = plot_line({"a": line(), "b": line(2.0)}, scale="log")
    assert [trace.name for trace in figure.data] == ["a, loss", "a, test loss", "b, loss", "b, test loss"]
    assert figure.data[0].line.color == figure.data[1].line.color != figure.data[2].line.color
    assert figure.layout.yaxis.type == "log"
    assert subtitle(figure) == "log scale"
    np.testing.assert_array_equal(figure.data[2].y, 2 * f(X, 0) / 10)


def test_other_metrics_are_drawn_when_asked_for():
    figure = plot_line(line(), ["entropy"])
    assert [trace.name for trace in figure.data] == ["entropy"]
    assert figure.layout.yaxis.title.text == "value"


# ---------------------------------------------------------------- volumes, trajectories, histories


@pytest.mark.parametrize(("metric", "sign"), [("loss", 1), ("accuracy", -1)])
def test_surfaces_of_a_volume_enclose_the_best_points(metric, sign):
    rng = np.random.default_rng(0)
    surface = empty_surface({name: np.linspace(-1, 1, 10) for name in "xyz"}, ["loss", "accuracy"])
    surface.done[:] = True
    surface.values[metric][:] = rng.random((10, 10, 10))
    traces = [trace for trace in plot_volume(surface, metric).data if trace.type == "isosurface"]
    factor = 100 if metric == "accuracy" else 1
    shares = [(sign * surface.values[metric] * factor <= sign * trace.isomin).mean() for trace in traces]
    assert shares == pytest.approx([0.02, 0.1, 0.3], abs=0.0011)
    assert all(trace.isomin == trace.isomax for trace in traces)
    assert traces[0].opacity > traces[1].opacity > traces[2].opacity


def test_gaps_in_a_volume():
    surface = volume()
    surface.values["loss"][0, 0, 0] = np.inf
    figure = plot_volume(surface)
    assert np.isnan(of_kind(figure, "isosurface").value[0])
    assert "gaps: 1 of 60" in subtitle(figure)


def test_a_trajectory_panel_shows_distance_and_both_losses():
    expected = run()
    figure = plot_trajectory(plane(sgd=expected, adam=run(4)), "sgd")
    assert len(figure.data) == 3
    for trace, values, axis in zip(
        figure.data, (expected.distance, expected.loss, expected.loss_on_slice), ("y", "y2", "y2"), strict=True
    ):
        np.testing.assert_array_equal(trace.y, values)
        np.testing.assert_array_equal(trace.x, expected.step)
        assert trace.yaxis == axis
    assert figure.layout.yaxis2.type == "log"
    assert len(plot_trajectory(plane(sgd=expected, adam=run(4))).data) == 6


def test_losses_that_are_not_positive_are_not_hidden_by_a_log_axis():
    low = run()
    low.loss_on_slice[3] = -0.5
    assert plot_trajectory(plane(sgd=low)).layout.yaxis2.type is None
    low.loss_on_slice[3] = np.nan
    assert plot_trajectory(plane(sgd=low)).layout.yaxis2.type == "log"


def test_history_of_one_run():
    history = {
        "epoch": [0, 1, 2],
        "loss": [2.0, np.inf, 0.5],
        "test_loss": [2.0, np.nan, 0.7],
        "accuracy": [0.1, 0.5, 1],
    }
    figure = plot_history({**history, "seconds": [1, 2, 3]}, scale="log")
    loss, test_loss, accuracy = figure.data
    np.testing.assert_array_equal(loss.y, [2, np.nan, 0.5])
    np.testing.assert_array_equal(test_loss.x, [0, 2])  # NaN is "not measured"
    np.testing.assert_array_equal(accuracy.y, [10, 50, 100])
    assert (loss.line.dash, test_loss.line.dash) == ("solid", "dash")
    assert (loss.yaxis, accuracy.yaxis) == ("y", "y2")
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.xaxis2.title.text == "epoch"


def test_histories_of_several_runs_and_of_steps():
    figure = plot_history({"a": {"loss": [3, 2]}, "b": {"loss": [3, 1], "test_loss": [4, 2]}})
    assert [trace.name for trace in figure.data] == ["a, training data", "b, training data", "b, test data"]
    np.testing.assert_array_equal(figure.data[0].x, [0, 1])
    figure = plot_history({"step": [0, 50], "loss": [3, 2]})
    np.testing.assert_array_equal(figure.data[0].x, [0, 50])
    assert figure.layout.xaxis.title.text == "training step"


# ---------------------------------------------------------------- comparison, descent


def test_a_comparison_shares_levels_and_colors():
    high = plane()
    high.values["loss"] *= 10
    figure = plot_comparison({"a": plane(sgd=run()), "b": high}, scale="log")
    one, two = (trace for trace in figure.data if trace.type == "contour")
    assert (one.contours.start, one.contours.size) == (two.contours.start, two.contours.size)
    assert one.coloraxis == two.coloraxis == "coloraxis"
    assert figure.layout.coloraxis.cmin == pytest.approx(math.log10(f(X, Y[:, None]).min()))
    assert figure.layout.coloraxis.cmax == pytest.approx(math.log10(10 * f(X, Y[:, None]).max()))
    assert two.z[1][3] == pytest.approx(math.log10(10 * f(X[3], Y[1])), rel=1e-15)
    assert (one.xaxis, two.xaxis) == ("x", "x2")
    assert [note.text for note in figure.layout.annotations] == ["a", "b"]
    in_legend = [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]
    assert len(in_legend) == len(set(in_legend))


def test_a_descent_goes_step_by_step():
    slow, fast = run(6), run(3)
    figure = plot_descent(plane(slow=slow, fast=fast), n_frames=4)
    steps = [int(frame.name) for frame in figure.frames]
    assert (steps[0], steps[-1], len(steps)) == (0, 50, 4)
    for frame, step in zip(figure.frames, steps, strict=True):
        for i, expected in enumerate((slow, fast)):
            past = expected.coordinates[expected.step <= step]
            edge, line, end = frame.data[3 * i : 3 * i + 3]
            np.testing.assert_array_equal(np.stack([line.x, line.y], axis=1), past)
            np.testing.assert_array_equal(edge.x, line.x)
            assert (end.x[0], end.y[0]) == tuple(past[-1])
            assert figure.data[frame.traces[3 * i + 1]].name == ("slow", "fast")[i]
            assert figure.data[frame.traces[3 * i + 2]].marker.symbol == "square"


# ---------------------------------------------------------------- choice of figures, errors


def test_plot_follows_the_number_of_axes():
    assert [trace.name for trace in plot(line(), scale="log").data][:2] == ["loss", "test loss"]
    assert [trace.name for trace in plot(line(), "entropy").data] == ["entropy"]
    assert of_kind(plot(plane(), "accuracy"), "contour").z[1][2] == pytest.approx(100 / f(X[2], Y[1]))
    assert of_kind(plot(volume()), "isosurface")


def test_all_figures_of_a_surface():
    assert list(figures_of(line())) == ["line"]
    assert list(figures_of(plane())) == ["contour", "surface", "accuracy"]
    assert list(figures_of(plane(sgd=run()))) == ["contour", "surface", "accuracy", "descent", "trajectory"]
    assert list(figures_of(plane(sgd=run()), "test_loss")) == ["contour", "surface", "descent", "trajectory"]
    assert list(figures_of(volume())) == ["volume"]
    four = empty_surface(dict.fromkeys("xyuv", X), ["loss"])
    assert figures_of(four) == {}


def test_accuracy_and_loss_do_not_share_a_color_scale():
    loss, accuracy = (of_kind(plot_contour(plane(), metric), "contour") for metric in ("loss", "accuracy"))
    assert loss.colorscale != accuracy.colorscale
    assert accuracy.colorbar.title.text == "accuracy (%)"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_contour(line()), r"2 dimension\(s\), this one has 1: use plot_line"),
        (lambda: plot_line(plane()), "use plot_contour or plot_surface"),
        (lambda: plot_surface(volume()), "use plot_volume"),
        (lambda: plot_contour(plane(), "los"), "no metric 'los'; the surface has loss, accuracy, test_loss"),
        (lambda: plot_contour(plane(), scale="sqrt"), "scale must be one of linear, log, got 'sqrt'"),
        (lambda: plot_history({"loss": [1]}, scale="sqrt"), "scale must be one of linear, log, got 'sqrt'"),
        (lambda: plot_surface(plane(), ceiling=0.5), "ceiling must lie above the lowest loss, 1.* got 0.5"),
        (lambda: plot_trajectory(plane()), "no trajectory: project one"),
        (lambda: plot_trajectory(plane(sgd=run()), "adam"), "no trajectory 'adam'; the surface has sgd"),
        (lambda: plot_descent(plane()), "no trajectory: project one"),
        (lambda: plot_descent(plane(sgd=run()), n_frames=1), "at least 2 frames, got 1"),
        (lambda: plot_comparison({}), "at least one surface"),
        (lambda: plot_line({}), "at least one surface"),
        (lambda: plot_history({"seconds": [1, 2]}), "neither a loss nor an accuracy, only seconds"),
        (lambda: plot_history({"epoch": [0, 1], "loss": [1, 2, 3]}), "loss has 3 values for 2 epochs"),
    ],
)
def test_errors_name_the_remedy(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_text_from_files_is_text():
    hostile = "<script>alert(1)</script>%{x}"
    surface = empty_surface({"x": X, "y": Y}, [f"{hostile}_loss"])
    surface.values[f"{hostile}_loss"][:] = f(X[:, None], Y)
    surface.done[:] = True
    surface.trajectories = {hostile: run(shift=0.5), "other": run()}
    surface.provenance = {"axes": [{"label": hostile}, {"label": "b"}]}
    flat = empty_surface({"x": X}, ["loss"])
    flat.done[:] = True
    flat.values["loss"][:] = f(X, 0)
    drawings = [
        *figures_of(surface).values(),
        plot_comparison({hostile: surface}, f"{hostile}_loss"),
        plot_line({hostile: flat}),
        plot_history({hostile: {"loss": [1, 2]}}),
    ]
    for figure in drawings:
        for text in shown_texts(figure.to_dict()):
            assert "<script" not in text
            assert "script&gt;%{" not in text  # would be filled in by a hover template
    assert sum("&lt;script&gt;" in text for figure in drawings for text in shown_texts(figure.to_dict())) > 20


def shown_texts(node):
    """All texts of a figure, except the names of groups, which nobody sees."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            if key != "legendgroup":
                yield from shown_texts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from shown_texts(value)


# ---------------------------------------------------------------- files


def test_html_is_always_written_and_needs_nothing_else(tmp_path):
    (path,) = save_figure(plot_contour(plane()), tmp_path / "new" / "plane", ["html"])
    assert path == tmp_path / "new" / "plane.html"
    page = path.read_text()
    assert page.count("* plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=(?![\"']?data:)", page)
    assert "default-src 'none'" in page
    assert [p.name for p in path.parent.iterdir()] == ["plane.html"]


def test_without_a_browser_html_is_written_and_images_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(figures.image, "browser_missing", lambda: "no browser here")
    assert [p.name for p in save_figures({"a": go.Figure()}, tmp_path)] == ["a.html"]
    with pytest.raises(RuntimeError, match="no browser here"):
        save_figure(go.Figure(), tmp_path / "b", ["png"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_what_is_missing_is_said_with_the_remedy(monkeypatch):
    chromium = pytest.importorskip("choreographer.browsers.chromium")
    monkeypatch.setattr(chromium.Chromium, "find_browser", lambda **_: None)
    assert "apt install chromium" in browser_missing()
    monkeypatch.setattr(figures.image, "find_spec", lambda _: None)
    assert 'pip install "landscape[images]"' in browser_missing()


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="some of html, png, svg, got gif"):
        save_figure(go.Figure(), tmp_path / "a", ["html", "gif"])
    assert not list(tmp_path.iterdir())


def test_images_are_drawn_in_the_size_asked_for(tmp_path):
    if browser_missing():
        pytest.skip(browser_missing())
    image = pytest.importorskip("PIL.Image")
    drawings = {"plane": plot_contour(labels(plane(), "distance")), "surface": plot_surface(plane())}
    paths = save_figures(drawings, tmp_path, ["png", "svg"], width=500, height=400)
    assert [p.name for p in paths] == ["plane.png", "plane.svg", "surface.png", "surface.svg"]
    for path in paths[::2]:
        with image.open(path) as picture:
            assert picture.size == (500, 400)
            assert len(picture.convert("RGB").getcolors(500 * 400)) > 100  # WebGL in software draws, too
    assert "trained network" in (tmp_path / "plane.svg").read_text()
    assert drawings["plane"].layout.margin.l is None  # fitted to the size in a copy


def test_drawn_values_are_in_percent_for_accuracies():
    assert drawn(plane(), "accuracy").values[2, 1] == pytest.approx(100 / f(X[2], Y[1]))


def test_the_options_of_a_command_do_not_reach_the_renderers_own_parser():
    code = "import sys; sys.argv += ['--log']; from landscape import figures as f; f.browser_missing(); print(sys.argv)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "['-c', '--log']", shown.stderr

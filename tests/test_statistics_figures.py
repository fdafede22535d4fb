import numpy as np
import pytest

from landscape.figures import save_figure
from landscape.figures.distributions import _distributions_info, plot_distributions
from landscape.figures.pairwise import _pairwise_info, plot_pairwise
from landscape.figures.rarefaction import _rarefaction_info, plot_rarefaction
from landscape.statistics import compare, rarefaction

CURVES = {"sgd": rarefaction([9, 4, 2, 1, 1]), "<b>adam</b>": rarefaction([3, 1, 1, 1], np.arange(1, 7))}
GROUPS = {
    "sgd": np.linspace(0.1, 0.2, 12),
    "adam": np.append(np.linspace(0.5, 0.7, 9), [np.nan, np.inf]),
    "rmsprop": np.linspace(0.11, 0.21, 10),
}


def test_rarefaction_is_solid_to_the_runs_made_and_dashed_beyond():
    info = _rarefaction_info(CURVES)
    assert info.common == 6
    assert "extrapolated" in info.notes[0]
    assert "95 %" in info.notes[0]
    figure = plot_rarefaction(CURVES)
    solid = [t for t in figure.data if t.line.dash == "solid"]
    dashed = [t for t in figure.data if t.line.dash == "dash"]
    assert [max(t.x) for t in solid] == [17, 6]
    assert [min(t.x) for t in dashed] == [17, 6]
    assert max(dashed[0].x) == 34
    assert solid[0].y[-1] == pytest.approx(5)
    assert [(t.x[0], t.y[0]) for t in figure.data if t.mode == "markers"] == [(17, 5), (6, 4)]
    assert figure.layout.shapes[0].x0 == 6
    assert [t.name for t in figure.data if t.showlegend] == ["sgd", "&lt;b&gt;adam&lt;/b&gt;"]


def test_one_curve_needs_no_legend():
    figure = plot_rarefaction(CURVES["sgd"])
    assert not any(t.showlegend for t in figure.data)
    assert not figure.layout.shapes
    with pytest.raises(ValueError, match="at least one"):
        plot_rarefaction({})


def test_bands_hold_their_curves():
    for curve in _rarefaction_info(CURVES).curves:
        assert np.all((curve.lower <= curve.expected) & (curve.expected <= curve.upper))


def test_every_run_is_drawn_sorted_and_diverged_ones_are_counted():
    info = _distributions_info(GROUPS, "loss", "linear", 0.95)
    for i, (group, values) in enumerate(zip(info.groups, GROUPS.values(), strict=True)):
        finite = values[np.isfinite(values)]
        np.testing.assert_array_equal(group.values, np.sort(finite))
        np.testing.assert_array_equal(values[group.run], group.values)
        assert np.all(np.abs(group.x - i) < 0.5)
        assert group.median.value == pytest.approx(np.median(finite))
    assert [group.n_diverged for group in info.groups] == [0, 2, 0]
    assert plot_distributions(GROUPS).layout.xaxis.ticktext[1] == "adam<br>2 diverged"


def test_accuracies_are_in_percent_and_logarithms_of_positive_numbers():
    figure = plot_distributions({"sgd": [0.5, 0.75, 1.0]}, "test_accuracy")
    assert figure.layout.yaxis.title.text == "test accuracy (%)"
    np.testing.assert_allclose(figure.data[1].y, [50, 75, 100])
    assert plot_distributions(GROUPS, "loss", "log").layout.yaxis.type == "log"
    with pytest.raises(ValueError, match="sgd has values that are not positive"):
        plot_distributions({"sgd": [0.0, 1.0]}, "loss", "log")
    with pytest.raises(ValueError, match="linear, log"):
        plot_distributions(GROUPS, "loss", "sqrt")
    with pytest.raises(ValueError, match="at least one"):
        plot_distributions({})


def test_cells_say_that_the_row_is_better():
    comparison = compare(GROUPS)
    info = _pairwise_info(comparison, 0.05)
    assert info.effect[0, 1] == 1
    assert info.effect[1, 0] == 0
    assert np.all(np.isnan(np.diag(info.effect)))
    np.testing.assert_allclose(info.effect + info.effect.T, np.where(np.eye(3), np.nan, 1))
    np.testing.assert_array_equal(info.p, info.p.T)
    assert info.text[0, 1].endswith("*")
    assert not info.text[0, 2].endswith("*")
    assert "2 of adam" in info.notes[1]
    assert "Holm" in info.notes[0]
    figure = plot_pairwise(comparison)
    framed = {(shape.y0 + shape.y1, shape.x0 + shape.x1) for shape in figure.layout.shapes}
    assert {(round(i / 2), round(j / 2)) for i, j in framed} == {(0, 1), (1, 0), (1, 2), (2, 1)}
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # first row on top, as in a table


def test_pairs_without_a_test_say_so():
    info = _pairwise_info(compare({"a": [1.0], "b": [2.0, 3.0]}), 0.05)
    assert info.text[0, 1] == "no test"
    plot_pairwise(compare({"a": [1.0], "b": [2.0, 3.0]}))


def test_they_are_saved_as_pages(tmp_path):
    for i, figure in enumerate((plot_rarefaction(CURVES), plot_distributions(GROUPS), plot_pairwise(compare(GROUPS)))):
        save_figure(figure, tmp_path / f"{i}", ["html"])
        assert (tmp_path / f"{i}.html").stat().st_size > 10_000

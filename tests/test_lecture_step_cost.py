"""The figure of the step's cost, against counts by hand and derivatives in closed form."""

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def setting(scripts, lecture_folder):
    from lecture.setting import Setting

    return Setting(lecture_folder("L2"), quick=True, data="digits")


@pytest.fixture(scope="module")
def drawn(setting):
    from lecture import step_cost

    return step_cost.draw(setting)


def wrong_answers(threshold, rising):
    """Count by hand which of the points a threshold puts on the wrong side."""
    from lecture.step_cost import CLASSES, POSITIONS

    side = POSITIONS.numpy() > threshold if rising else POSITIONS.numpy() < threshold
    return int((side != CLASSES.numpy().astype(bool)).sum())


def test_the_step_takes_the_values_that_thresholds_can_have(drawn):
    from lecture.step_cost import POSITIONS

    middles = np.concatenate([[-9.0], (POSITIONS[1:] + POSITIONS[:-1]).numpy() / 2, [9.0]])
    values = {wrong_answers(t, rising) for t in middles for rising in (True, False)}
    step = drawn.numbers["step"]
    assert step["distinct values on the grid"] == len(values)
    assert step["lowest on the grid"] == pytest.approx(min(values) / len(POSITIONS))
    assert step["highest on the grid"] == pytest.approx(max(values) / len(POSITIONS))


def test_minima_along_the_line_are_the_thresholds_that_no_neighbor_betters(drawn):
    from lecture.step_cost import POSITIONS

    middles = (POSITIONS[1:] + POSITIONS[:-1]).numpy() / 2  # a positive w1, w0 from high to low
    counts = [wrong_answers(t, True) for t in (-9.0, *middles, 9.0)]
    dips = sorted(b / len(POSITIONS) for a, b, c in zip(counts, counts[1:], counts[2:], strict=False) if a > b < c)
    step = drawn.numbers["step"]
    assert step["minima along w0 at w1 = 8"] == len(dips) > 1
    assert step["values of these minima at w1 = 8"] == pytest.approx(dips)
    assert drawn.numbers["cross-entropy"]["minima along w0 at w1 = 8"] == 1


@pytest.mark.parametrize("cost", ["least squares", "cross-entropy"])
def test_slopes_and_curvature_are_those_of_the_formulas(drawn, cost):
    from lecture.step_cost import CLASSES, EXTENT, FLAT, POSITIONS

    x, y = POSITIONS.numpy(), CLASSES.numpy()
    design = np.stack([np.ones_like(x), x])  # [2, n]

    def slopes(w):  # gradient, Hessian
        s = 1 / (1 + np.exp(-w @ design))
        d = s * (1 - s)
        if cost == "cross-entropy":
            first, second = s - y, d
        else:
            first, second = 2 * (s - y) * d, 2 * d * (d + (s - y) * (1 - 2 * s))
        return design @ first / len(x), (design * second) @ design.T / len(x)

    measured = drawn.numbers[cost]
    grid = [np.linspace(*extent, 16) for extent in EXTENT]
    norms = np.array([np.linalg.norm(slopes(np.array([a, b]))[0]) for a in grid[0] for b in grid[1]])
    assert measured["largest gradient norm"] == pytest.approx(norms.max(), rel=1e-9)
    assert measured[f"share of the area with a gradient norm below {FLAT:g}"] == (norms < FLAT).mean()
    grid = [np.linspace(*extent, 9) for extent in EXTENT]
    values = np.array([np.linalg.eigvalsh(slopes(np.array([a, b]))[1]) for a in grid[0] for b in grid[1]])
    assert measured["smallest Hessian eigenvalue"] == pytest.approx(values.min(), rel=1e-5, abs=1e-11)
    assert measured["largest Hessian eigenvalue"] == pytest.approx(values.max(), rel=1e-5)
    assert measured["share of the area with a negative Hessian eigenvalue"] == (values[:, 0] < -1e-12).mean()


def test_what_the_lecture_says_holds(drawn):
    claims = {name: value for name, value in drawn.numbers.items() if isinstance(value, bool)}
    assert len(claims) == 5
    assert all(claims.values()), claims


def test_figures(drawn):
    assert list(drawn.figures) == ["step", "least_squares", "cross_entropy", "slopes"]
    maps = [trace for trace in drawn.figures["slopes"].data if trace.type == "heatmap"]
    shown = [np.isfinite(np.array(trace.z, dtype=float)) for trace in maps]
    assert not shown[0].any()  # the step has no slope to show
    assert 0 < shown[1].mean() < 1
    assert shown[2].all()


def test_a_second_drawing_computes_nothing(drawn, setting, monkeypatch):
    from lecture import step_cost

    def fail(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(step_cost, "gradient_norms", fail)
    monkeypatch.setattr("landscape.curvature._extremes", fail)
    monkeypatch.setattr("landscape.evaluation.run._fill", lambda store, *rest: store.surface.finished or fail())
    assert step_cost.draw(setting).numbers == drawn.numbers

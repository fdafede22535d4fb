import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from problems import KNOWN_MINIMA, mueller_brown

from landscape.surface import empty_surface
from landscape.topology import NONE, OUTSIDE, analyze

# ---------------------------------------------------------------- the definitions, in plain loops


def neighbors(index, shape, neighborhood):
    for offset in np.ndindex((3,) * len(shape)):
        step = [o - 1 for o in offset]
        if sum(map(abs, step)) == 1 or (neighborhood == "full" and any(step)):
            other = tuple(i + s for i, s in zip(index, step, strict=True))
            if all(0 <= i < n for i, n in zip(other, shape, strict=True)):
                yield other


def component(start, inside, shape, neighborhood):
    found, stack = {start}, [start]
    while stack:
        for other in neighbors(stack.pop(), shape, neighborhood):
            if other not in found and inside(other):
                found.add(other)
                stack.append(other)
    return found


def by_definition(values, neighborhood, border):
    """Minima of an array with persistence, parent, merge value and plateau, and its basins, as they are defined."""
    shape = values.shape
    cells = [index for index in np.ndindex(shape) if not np.isnan(values[index])]

    def is_open(index):
        at_border = any(n > 1 and i in (0, n - 1) for i, n in zip(index, shape, strict=True))
        return at_border or any(np.isnan(values[o]) for o in neighbors(index, shape, neighborhood))

    first, plateaus = {}, {}
    for index in sorted(cells, key=lambda index: (values[index], index)):
        if index not in first:
            plateaus[index] = component(index, lambda o, v=values[index]: values[o] == v, shape, neighborhood)
            first |= dict.fromkeys(plateaus[index], index)
    lowest = {}
    for index, plateau in plateaus.items():
        around = {first[o] for i in plateau for o in neighbors(i, shape, neighborhood) if o in first}
        lowest[index] = min(around | {index}, key=lambda o: (values[o], o))
    minima = [(index, plateau) for index, plateau in plateaus.items() if lowest[index] == index]
    number = {index: m for m, (index, _) in enumerate(minima)}

    basins = np.full(shape, NONE)
    for index in cells:
        at = first[index]
        while at not in number:
            at = lowest[at]
        basins[index] = number[at]

    rows = []
    for m, (index, plateau) in enumerate(minima):
        row = (index, len(plateau), any(map(is_open, plateau)), NONE, np.inf)
        for level in sorted({values[i] for i in cells if values[i] >= values[index]}):
            inside = component(index, lambda o, t=level: values[o] <= t, shape, neighborhood)
            if border == "exclude" and any(map(is_open, inside)):
                row = (*row[:3], OUTSIDE, level)
                break
            eldest = min(number[i] for i in inside if i in number)
            if eldest != m:
                row = (*row[:3], eldest, level)
                break
        rows.append(row)
    return rows, basins


def check_extrema(extrema, values, sign, neighborhood, border):
    rows, basins = by_definition(sign * values, neighborhood, border)
    assert [tuple(i) for i in extrema.index.tolist()] == [row[0] for row in rows]
    assert extrema.plateau.tolist() == [row[1] for row in rows]
    assert extrema.on_border.tolist() == [row[2] for row in rows]
    assert extrema.parent.tolist() == [row[3] for row in rows]
    assert extrema.merge_value.tolist() == [sign * row[4] for row in rows]
    np.testing.assert_array_equal(extrema.basins, basins)
    for i in range(len(extrema)):
        value, merge = extrema.value[i], extrema.merge_value[i]
        assert value == values[tuple(extrema.index[i])]
        assert extrema.persistence[i] == (0 if merge == value else sign * (merge - value))
        if extrema.parent[i] != NONE:
            cell = tuple(extrema.merge_index[i])
            assert values[cell] == merge
            plateau = component(cell, lambda o, v=values[cell]: values[o] == v, values.shape, neighborhood)
            beside = {int(basins[o]) for c in plateau for o in [c, *neighbors(c, values.shape, neighborhood)]}
            assert set(extrema.between[i].tolist()) <= beside | {OUTSIDE}


NEIGHBORHOODS = st.sampled_from(["full", "axis"])
BORDERS = st.sampled_from(["exclude", "include"])
# few values make plateaus and ties
SHAPES = st.integers(1, 3).flatmap(lambda k: array_shapes(min_dims=k, max_dims=k, max_side=(12, 6, 4)[k - 1]))
VALUES = st.one_of(
    st.integers(0, 3).map(float), st.floats(-1, 1, width=16), st.sampled_from([np.nan, np.inf, -np.inf, 0.5])
)
GRIDS = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=VALUES))


@settings(max_examples=250)
@given(GRIDS, NEIGHBORHOODS, BORDERS)
def test_every_number_is_as_defined(values, neighborhood, border):
    found = analyze(values, neighborhood=neighborhood, border=border)
    check_extrema(found.minima, values, 1.0, neighborhood, border)
    check_extrema(found.maxima, values, -1.0, {"full": "axis", "axis": "full"}[neighborhood], border)


@pytest.mark.parametrize("shape", [(60,), (9, 8), (5, 4, 4), (3, 3, 3, 2)])
@pytest.mark.parametrize("levels", [3, 1000])
def test_random_grids_with_and_without_ties(shape, levels):
    values = np.random.default_rng(0).integers(0, levels, shape).astype(float)
    for neighborhood in ("full", "axis"):
        for border in ("exclude", "include"):
            found = analyze(values, neighborhood=neighborhood, border=border)
            check_extrema(found.minima, values, 1.0, neighborhood, border)


def test_a_minimum_of_the_smallest_grid():
    assert analyze(np.zeros((1, 1))).minima.persistence.tolist() == [np.inf]  # axes of one point have no border
    assert analyze([2.0, 1.0, 3.0]).count() == 1
    assert analyze([2.0, 1.0]).count() == 0
    assert analyze([2.0, 1.0], border="include").count() == 1
    nothing = analyze([np.nan, np.nan])
    assert len(nothing.minima) == nothing.count() == 0
    assert nothing.basins.tolist() == [NONE, NONE]


def test_a_valley_that_leaves_the_window_holds_no_minimum_that_lasts():
    valley = np.add.outer([9.0, 4.0, 1.0, 0.0, 1.0, 4.0, 9.0], [1.0, 0.9, 0.79, 0.8, 0.81, 0.82])
    dip = analyze(valley)
    assert dip.minima.persistence.max() == pytest.approx(0.03)  # what it takes to flow out on the right
    assert analyze(valley, border="include").minima.persistence.max() == np.inf


def test_an_unknown_neighbor_makes_no_minimum():
    values = np.add.outer(np.arange(5.0) - 2, np.zeros(5)) ** 2 + (np.arange(5.0) - 2) ** 2
    assert analyze(values).count() == 1
    values[1, 1] = np.nan
    assert analyze(values, neighborhood="full").count() == 0
    assert analyze(values, neighborhood="full").minima.on_border.all()
    assert analyze(values, neighborhood="axis").count() == 1  # there, it is no neighbor
    assert analyze(values, border="include").count() == 1
    values[1, 1] = np.inf
    assert analyze(values).count() == 1


# ---------------------------------------------------------------- against other programs


@pytest.mark.parametrize("shape", [(400,), (97, 80), (17, 13, 15)])
@pytest.mark.parametrize("border", ["exclude", "include"])
def test_persistence_agrees_with_gudhi(shape, border):
    gudhi = pytest.importorskip("gudhi", reason="the oracle is not installed: pip install gudhi")
    values = np.random.default_rng(1).normal(size=shape)
    found = analyze(values, border=border)
    padded = np.pad(values, 1, constant_values=-100.0) if border == "exclude" else values
    complex_ = gudhi.CubicalComplex(top_dimensional_cells=padded)  # in which cells that share a corner touch
    complex_.compute_persistence(homology_coeff_field=2)
    bars = complex_.persistence_intervals_in_dimension(0)
    kept = found.minima.persistence > 0
    ours = np.stack([found.minima.value[kept], found.minima.merge_value[kept]], axis=1)
    theirs = bars[bars[:, 0] > -100]
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=1e-12)
    if border == "exclude" and len(shape) == 2:
        # a maximum is where a loop around a hill is filled: a bar of dimension 1 (Alexander duality)
        complex_ = gudhi.CubicalComplex(top_dimensional_cells=values)
        complex_.compute_persistence(homology_coeff_field=2)
        loops = complex_.persistence_intervals_in_dimension(1)
        kept = found.maxima.persistence > 0
        ours = np.stack([found.maxima.merge_value[kept], found.maxima.value[kept]], axis=1)
        np.testing.assert_allclose(ours[np.lexsort(ours.T)], loops[np.lexsort(loops.T)], atol=1e-12)


def test_axis_neighborhood_agrees_with_gudhi():
    gudhi = pytest.importorskip("gudhi", reason="the oracle is not installed: pip install gudhi")
    values = np.random.default_rng(2).normal(size=(60, 71))
    complex_ = gudhi.CubicalComplex(vertices=values)  # in which cells are joined by edges
    complex_.compute_persistence(homology_coeff_field=2)
    theirs = complex_.persistence_intervals_in_dimension(0)
    minima = analyze(values, neighborhood="axis", border="include").minima
    ours = np.stack([minima.value, minima.merge_value], axis=1)
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=1e-12)


# ---------------------------------------------------------------- functions whose minima are known


def on_grid(problem, *resolution):
    axes = [np.linspace(low, high, n) for (low, high), n in zip(problem.box, resolution, strict=True)]
    surface = empty_surface(dict(zip("xyz", axes, strict=False)), ["loss"])
    surface.values["loss"][:] = problem.function(*np.meshgrid(*axes, indexing="ij"))
    surface.done[:] = True
    surface.provenance["settings"] = {"dtype": "float64"}
    return surface


@pytest.mark.parametrize("problem", KNOWN_MINIMA.values(), ids=KNOWN_MINIMA)
def test_the_known_minima_are_minima(problem):
    theta = torch.tensor(problem.minima, dtype=torch.float64)
    gradient = torch.vmap(torch.func.grad(lambda t: problem.function(*t)))(theta)
    hessian = torch.vmap(torch.func.hessian(lambda t: problem.function(*t)))(theta)
    assert torch.linalg.eigvalsh(hessian).min() > 0
    assert torch.linalg.solve(hessian, gradient).abs().max() < 1e-4  # a Newton step away from exact
    for (low, high), column in zip(problem.box, problem.minima.T, strict=True):
        assert low < column.min()
        assert column.max() < high


@pytest.mark.parametrize(
    ("name", "resolutions"),
    [
        ("six-hump camel", [(31, 34), (71, 68), (200, 201)]),
        ("Himmelblau", [(31, 30), (64, 71), (201, 198)]),
        ("Mueller-Brown", [(31, 34), (80, 71), (201, 198)]),
        ("Branin", [(31, 34), (100, 101), (201, 198)]),
        ("Goldstein-Price", [(101, 104), (201, 198), (301, 304)]),
        ("Rastrigin-1", [(51,), (400,)]),
        ("Rastrigin-2", [(51, 54), (101, 98), (201, 204)]),
        ("Rastrigin-3", [(61, 64, 62)]),
        ("Schwefel-1", [(201,), (1000,)]),
        ("Schwefel-2", [(151, 154), (301, 298)]),
        ("Styblinski-Tang-1", [(21,), (100,)]),
        ("Styblinski-Tang-2", [(21, 24), (101, 98)]),
        ("Styblinski-Tang-3", [(21, 24, 22), (41, 38, 44)]),
    ],
)
def test_known_minima_are_found_and_no_others(name, resolutions):
    problem = KNOWN_MINIMA[name]
    for resolution in resolutions:
        surface = on_grid(problem, *resolution)
        found = analyze(surface)
        assert found.count() == len(problem.minima)
        coordinates = found.minima.coordinates[found.counts_as(found.minima)]
        spacing = np.array([axis[1] - axis[0] for axis in surface.axes.values()])
        away = np.abs((problem.minima[:, None] - coordinates[None]) / spacing).max(axis=2).min(axis=1)
        assert away.max() < (6 if name in ("Branin", "Goldstein-Price") else 2)  # long in valleys askew to the grid


def test_all_minima_of_schwefel_in_three_dimensions():
    problem = KNOWN_MINIMA["Schwefel-3"]
    low = np.unique(problem.minima[:, 0])
    fine = np.linspace(-500, 500, 20001)
    line = KNOWN_MINIMA["Schwefel-1"].function(fine)
    high = [fine[(fine > a) & (fine < b)][line[(fine > a) & (fine < b)].argmax()] for a, b in zip(low, low[1:])]  # noqa: B905, RUF007
    axis = np.sort([-500, *low, *high, 500])
    values = problem.function(*np.meshgrid(axis, axis, axis, indexing="ij"))
    assert analyze(values).count(0) == 7**3


def test_saddles_of_the_mueller_brown_surface():
    found = analyze(on_grid(KNOWN_MINIMA["Mueller-Brown"], 271, 231))
    saddles = found.saddles
    # Mueller and Brown (1979): the passes between the three minima
    expected = np.array([[0.212, 0.293], [-0.822, 0.624]])
    np.testing.assert_allclose(saddles.coordinates[np.argsort(saddles.value)], expected, atol=0.02)
    np.testing.assert_allclose(np.sort(saddles.value), [-72.25, -40.66], atol=0.1)
    for row, value in zip(saddles.coordinates, saddles.value, strict=True):
        assert value == mueller_brown(*row)
    # numbers are by value: the right valley (1) opens into the middle (2), then both into the upper left (0)
    assert saddles.extremum.tolist() == [1, 2]
    assert saddles.parent.tolist() == [0, 1]


def test_all_saddles_of_himmelblau():
    found = analyze(on_grid(KNOWN_MINIMA["Himmelblau"], 201, 202))
    saddles = np.concatenate([found.saddles.value, found.saddles_of(found.maxima).value])
    np.testing.assert_allclose(np.sort(saddles), [13.312, 67.719, 104.015, 178.337], rtol=2e-3)
    top = found.maxima
    assert top.value[top.persistence > 0] == pytest.approx([181.617], rel=1e-4)


# ---------------------------------------------------------------- properties


@given(
    arrays(np.float64, st.tuples(st.integers(2, 7), st.integers(2, 7)), elements=st.integers(-20, 20).map(float)),
    NEIGHBORHOODS,
    BORDERS,
)
def test_a_monotone_map_changes_values_only(values, neighborhood, border):
    before = analyze(values, neighborhood=neighborhood, border=border)
    after = analyze(values**3 + values, neighborhood=neighborhood, border=border)
    for one, other in ((before.minima, after.minima), (before.maxima, after.maxima)):
        np.testing.assert_array_equal(one.basins, other.basins)
        np.testing.assert_array_equal(one.parent, other.parent)
        np.testing.assert_array_equal(one.merge_index, other.merge_index)
        finite = np.isfinite(one.merge_value)
        np.testing.assert_array_equal((one.merge_value**3 + one.merge_value)[finite], other.merge_value[finite])


@given(GRIDS, BORDERS)
def test_counts_fall_and_basins_grow(values, border):
    found = analyze(values, border=border)
    thresholds, counts = found.count_curve()
    assert [found.count(float(t)) for t in thresholds] == counts.tolist()
    assert (np.diff(counts) < 0).all()
    for threshold in (0.0, 0.3, 1.0):
        merged = found.merged_basins(threshold)
        remaining = set(merged[merged >= 0].tolist())
        assert remaining == set(np.flatnonzero(found.minima.persistence > threshold).tolist())
        for i in remaining:  # what belongs to a minimum still does
            assert (merged[found.basins == i] == i).all()
    known = ~np.isnan(values)
    assert found.minima.n_cells.sum() == known.sum()
    assert found.minima.share.sum() == pytest.approx(float(known.any()))
    np.testing.assert_array_equal(found.basins == NONE, ~known)


def test_basins_that_drain_into_others():
    found = analyze([9.0, 0.0, 2.0, 1.0, 5.0, 3.0, 4.0, -1.0])
    assert found.minima.parent.tolist() == [OUTSIDE, OUTSIDE, 1, OUTSIDE]
    assert found.basins.tolist() == [1, 1, 1, 2, 2, 3, 0, 0]
    assert found.merged_basins(0).tolist() == [1, 1, 1, 2, 2, 3, OUTSIDE, OUTSIDE]
    assert found.merged_basins(1.5).tolist() == [1, 1, 1, 1, 1, OUTSIDE, OUTSIDE, OUTSIDE]
    assert (found.merged_basins(10) == OUTSIDE).all()


def test_areas_follow_uneven_axes():
    surface = empty_surface({"x": np.array([0.0, 1.0, 2.0, 4.0, 8.0])}, ["loss"])
    surface.values["loss"][:] = [5, 1, 6, 2, 7]
    surface.done[:] = True
    minima = analyze(surface).minima
    # cells reach half-way to their neighbors: 0.5, 1, 1.5, 3, 2; the two peaks go down their lowest neighbor
    np.testing.assert_allclose(minima.share, [3 / 8, 5 / 8])
    np.testing.assert_allclose(minima.coordinates, [[1], [4]])


# ---------------------------------------------------------------- noise, choices, words


def sampled(n_samples=100):
    """A surface of two valleys whose per-sample losses spread by 1."""
    surface = empty_surface({"x": np.linspace(-2, 2, 81)}, ["loss", "loss_square"])
    loss = 1 + 0.1 * (surface.axes["x"] ** 2 - 1) ** 2
    surface.values["loss"][:], surface.values["loss_square"][:] = loss, loss**2 + 1
    surface.done[:] = True
    surface.provenance["settings"] = {"dtype": "float32", "data": {"training": {"name": "d", "n_samples": n_samples}}}
    return surface


def test_noise_from_standard_errors():
    few, many = analyze(sampled(100)), analyze(sampled(10_000))
    np.testing.assert_allclose(few.minima.noise, 2 * np.sqrt(2) / 10)
    np.testing.assert_allclose(many.minima.noise, 2 * np.sqrt(2) / 100)
    np.testing.assert_allclose(many.minima.persistence.max(), 0.9)
    assert (few.count(), many.count(), few.count(0)) == (1, 2, 2)
    assert "100 samples" in few.noise


def test_noise_from_rounding_and_spacing():
    surface = sampled()
    del surface.values["loss_square"]
    step = surface.axes["x"][1]
    found = analyze(surface)
    assert "float32" in found.noise
    bend = np.abs(np.diff(surface.values["loss"], 2))
    i = found.minima.index[0, 0]
    assert found.minima.noise[1] == pytest.approx(bend[[i - 1, 39]].max() / 8)
    assert bend[i - 1] == pytest.approx(0.8 * (step - surface.axes["x"][0]) ** 2, rel=0.01)  # f'' h^2
    surface.values["loss"] += 1000
    assert analyze(surface).minima.noise[1] == pytest.approx(1e-5 * 1001.1, rel=1e-3)
    assert analyze(surface).count() == 2
    surface.values["loss"] += 1e5
    assert analyze(surface).count() == 0


def test_pits_of_a_valley_askew_to_the_grid_do_not_count():
    x, y = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 44), indexing="ij")
    valley = 100 * (y - 0.37 * x) ** 2 + 0.01 * x
    found = analyze(valley)
    assert found.count(0) > 3
    assert found.count() == 0


def test_a_threshold_of_ones_own():
    values = [9.0, 0.0, 2.0, 1.0, 9.0]
    assert analyze(values, threshold=0.5).count() == 2
    assert analyze(values, threshold=1.0).count() == 1  # above it, not at it
    assert analyze(values, threshold=1.0).count(0) == 2


def test_unfinished_surfaces():
    surface = on_grid(KNOWN_MINIMA["Himmelblau"], 40, 41)
    surface.done[20:] = False
    found = analyze(surface)
    assert found.count() == 2
    assert "not known" in found.describe()
    assert np.isnan(found.values[20:]).all()


def test_a_table_with_a_row_for_every_minimum():
    found = analyze([9.0, 0.0, 2.0, 1.0, 5.0, -1.0], threshold=0)
    assert found.numbers().tolist() == [3, 1, 2]  # the lowest is on the border and does not count
    rows = found.table()
    assert [row["minimum"] for row in rows] == [1, 2, 3]
    assert [row["merges_into"] for row in rows] == ["border", "1", "border"]
    assert (rows[1]["i0"], rows[1]["loss"], rows[1]["persistence"]) == (3.0, 1.0, 1.0)
    assert [row["on_border"] for row in rows] == [False, False, True]


def test_a_description_says_what_the_count_depends_on():
    text = analyze(on_grid(KNOWN_MINIMA["Himmelblau"], 101, 101)).describe()
    for part in ("4 local minima of the surface", "spacing of the grid", "neighborhood full", "excluded", "101 x 101"):
        assert part in text
    many = analyze(on_grid(KNOWN_MINIMA["Rastrigin-1"], 401)).describe()
    assert "11 local minima" in many


def test_nothing_given_is_changed():
    values = np.random.default_rng(0).normal(size=(6, 7))
    before = values.copy()
    analyze(values)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"neighborhood": "diagonal"}, "full, axis"),
        ({"border": "wrap"}, "exclude, include"),
        ({"threshold": -1.0}, "at least 0"),
        ({"threshold": float("nan")}, "at least 0"),
    ],
)
def test_unknown_choices(arguments, words):
    with pytest.raises(ValueError, match=words):
        analyze(np.zeros((3, 3)), **arguments)


def test_values_of_no_use():
    with pytest.raises(ValueError, match="at least one cell"):
        analyze(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="at least one cell"):
        analyze(1.0)
    with pytest.raises(TypeError, match="complex"):
        analyze(np.zeros(3, dtype=complex))
    with pytest.raises(ValueError, match="no metric 'accuracy'"):
        analyze(on_grid(KNOWN_MINIMA["Himmelblau"], 5, 5), metric="accuracy")

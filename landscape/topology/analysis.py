"""From the values of a surface to what is found on them."""

from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from landscape.surface import Surface
from landscape.topology.noise import Noise, noise_of, noise_of_array
from landscape.topology.result import Extrema, Topology, coordinates_of
from landscape.topology.tree import DUAL, OUTSIDE, Tree, merge_tree

Array = np.ndarray


def analyze(
    surface: Surface | ArrayLike,
    metric: str = "loss",
    neighborhood: str = "full",
    border: str = "exclude",
    threshold: float | None = None,
) -> Topology:
    """Find the local minima, maxima and saddles of a surface, their basins, and how much they matter.

    A **local minimum** is a plateau (connected cells of one value, often a single one) with no lower neighbor.
    Its **persistence** is the rise from it to the lowest value `t` at which its component of `{values <= t}` holds a
    lower minimum (of equal ones, that of lower index): zero-dimensional persistent homology with the elder rule
    (Edelsbrunner, Letscher and Zomorodian 2002, doi:10.1007/s00454-002-2885-2). The minimum that it then merges into is
    its parent, and parents make the merge tree. Its **basin** holds the cells from which steps to the lowest neighbor
    lead to it; a plateau that is no minimum leaves by its lowest neighbor. Infinity is a value like any other.

    Nothing is known beyond the border, nor in cells that are NaN or not computed. With `border="exclude"` the unknown
    counts as lower than everything: a minimum that touches it has persistence 0, and the persistence of any other ends
    where water would run from it over the border or into an unknown cell. So a dip in a valley that leaves the window
    does not become the one minimum that lasts. With `border="include"` unknown cells are left out, and the lowest
    minimum of each connected part never merges.

    A minimum counts, by default, if its persistence is above its **noise**, the largest of three. *Spacing*: how far a
    minimum or saddle between the grid points may go beyond the nearest of them, an eighth of the second differences;
    without it, a narrow valley askew to the grid is full of minima. *Rounding* of the precision it was computed in.
    *Sampling*: two standard errors of the difference between minimum and saddle, as if their errors were independent.
    They are not: all points are means over the same samples, and the errors of neighbors nearly agree, so the
    difference is known better than that. The count is therefore conservative: it drops minima that more samples or a
    finer grid might confirm, rather than count those of chance.

    Args:
        surface: A surface of any dimension, or an array of values `[nx, ny, ...]`, whose coordinates are its indices.
        metric: A key of the surface's values.
        neighborhood: Which cells are neighbors: `"full"`, the `3^k - 1` around a cell, or `"axis"`, the `2 k` along the
            axes. Maxima take the other one, so that a set and its complement fit together: in the plane, a ring that
            parts two minima is then connected itself.
        border: `"exclude"` or `"include"`.
        threshold: Persistence, in the metric's unit, above which a minimum counts. Default: its noise, sampling
            included if the surface has the metric `METRIC_square`, the mean of the squared per-sample values; the
            result says which.

    Returns:
        The topology. Nothing is thrown away: it lists all minima, and counts those above the threshold.

    Raises:
        ValueError: Unknown metric, neighborhood or border; negative threshold; array without axes or cells.
        TypeError: The values are complex.

    Example:
        >>> found = analyze([5, 1, 3, 2, 6])
        >>> found.minima.value.tolist(), found.minima.persistence.tolist()
        ([1.0, 2.0], [4.0, 1.0])
        >>> found.count(threshold=1.5)
        1
    """
    if threshold is not None and not (isinstance(threshold, Real) and threshold >= 0):
        raise ValueError(f"threshold must be at least 0, got {threshold!r}")
    if isinstance(surface, Surface):
        axes, values, noise = surface.axes, surface.metric(metric), noise_of(surface, metric)
    else:
        try:
            given = np.asarray(surface)
            known = given.real.astype(np.float64)
        except (AttributeError, TypeError, ValueError) as error:
            raise TypeError(f"values must be a surface or an array of numbers: {error}") from error
        if given.dtype.kind == "c":
            raise TypeError("values must be real numbers, got complex ones")
        if not given.ndim or not given.size:
            raise ValueError(f"values need shape [nx, ny, ...] with at least one cell, got {given.shape}")
        axes = {f"i{axis}": np.arange(float(n)) for axis, n in enumerate(given.shape)}
        values, noise = known, noise_of_array(axes, given)
    trees = (
        merge_tree(values, neighborhood, border),
        merge_tree(-values, DUAL[neighborhood], border),
    )
    minima, maxima = (_extrema(axes, values, sign, tree, noise) for sign, tree in zip((1.0, -1.0), trees, strict=True))
    return Topology(dict(axes), values, metric, neighborhood, border, threshold, noise.text, minima, maxima)


def _extrema(axes: dict[str, Array], values: Array, sign: float, tree: Tree, noise: Noise) -> Extrema:
    """Make the table of the minima of `sign * values` from their tree."""
    merges = tree.merge >= 0
    flat = values.ravel()
    value = flat[tree.cell]
    merge_value = np.where(merges, flat[tree.merge], sign * np.inf)
    with np.errstate(invalid="ignore"):  # infinity minus infinity, replaced by 0
        persistence = np.where(merge_value == value, 0.0, sign * (merge_value - value))
    area = _areas(axes)
    known = tree.basins >= 0
    m = len(value)
    index = np.stack(np.unravel_index(tree.cell, values.shape), axis=1)
    merge_index = np.stack(np.unravel_index(np.where(merges, tree.merge, 0), values.shape), axis=1)
    return Extrema(
        index=index,
        coordinates=coordinates_of(axes, index),
        value=value,
        persistence=persistence,
        noise=noise.of_differences(values, tree.cell, tree.merge),
        parent=tree.parent,
        merge_value=merge_value,
        merge_index=np.where(merges[:, None], merge_index, -1),
        between=tree.between,
        way_out=(tree.between == OUTSIDE).any(axis=1),
        n_cells=np.bincount(tree.basins[known], minlength=m),
        share=np.bincount(tree.basins[known], area[known], minlength=m) / max(area[known].sum(), 1e-300),
        plateau=tree.plateau,
        on_border=tree.on_border,
        basins=tree.basins,
    )


def _areas(axes: dict[str, Array]) -> Array:
    """Return `[nx, ny, ...]` the area of each cell relative to the whole, half-way to its neighbors on each side."""
    area = np.ones(())
    for axis in axes.values():
        gaps = np.diff(axis)
        width = np.concatenate([gaps, [0.0]]) + np.concatenate([[0.0], gaps]) if len(gaps) else np.ones(1)
        area = area[..., None] * (width / width.sum())
    return area

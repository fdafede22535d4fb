"""Steepest descents on a stored surface: from random starts, step by step, each into its minimum."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from landscape.arguments import expect, whole_number
from landscape.topology.result import Topology
from landscape.topology.tree import NONE, neighbor_slices

Array = np.ndarray


@dataclass(frozen=True)
class Descents:
    """Steepest descents over the points of a grid.

    Attributes:
        paths: `[t, k]` grid indices by start, from the point nearest to it to the minimum.
        minimum: `[n]` number of the minimum (in `Topology.minima`) in which each ends, whether it counts or not.
    """

    paths: tuple[Array, ...]
    minimum: Array

    def __len__(self) -> int:
        return len(self.minimum)


def random_starts(topology: Topology, n: int, seed: int = 0) -> Array:
    """Draw points evenly over the known part of the window.

    A descent from such a point ends in minimum `i` with probability `topology.minima.share[i]`, so that `1 / share[i]`
    starts are needed on average until one does.

    Args:
        topology: Whose axes and unknown cells count.
        n: How many.
        seed: Any non-negative integer; the first points of a longer draw are those of a shorter one.

    Returns:
        `[n, k]` coordinates.

    Raises:
        ValueError: No point of the grid is known, or `n` is negative.
    """
    expect("topology", topology, Topology, "what `analyze` returns")
    n, seed = whole_number("n", n, 0), whole_number("seed", seed, 0)
    if not (topology.basins != NONE).any():
        raise ValueError("no point of this surface is known: there is nowhere to start")
    low, high = np.array([(axis[0], axis[-1]) for axis in topology.axes.values()], dtype=np.float64).T
    generator = np.random.default_rng(seed)
    starts = np.empty((0, len(low)))
    while len(starts) < n:
        drawn = generator.uniform(low, high, size=(max(n, 64), len(low)))
        known = topology.basins[tuple(_nearest(topology, drawn).T)] != NONE
        starts = np.concatenate([starts, drawn[known]])
    return starts[:n]


def descend(topology: Topology, starts: ArrayLike) -> Descents:
    """Follow the steepest descent from each start to the minimum below it.

    From the grid point nearest to the start, each step leads to the lowest neighbor; a plateau is crossed on a shortest
    way to the point beside its lowest neighbor. It ends where no neighbor is lower. That is how `analyze` defines
    basins, so a descent never leaves its own. On the grid, a descent can be trapped in a minimum that does not count,
    too; `topology.merged_basins()` says into which of those that count such a one merges.

    Args:
        topology: What `analyze` found on a surface of `k` axes.
        starts: `[n, k]` coordinates within the window.

    Returns:
        The paths and the minima in which they end.

    Raises:
        ValueError: Starts of another shape, outside the window, or at a point that is not known.
        TypeError: Starts that are no numbers.

    Example:
        >>> from landscape.topology import analyze
        >>> descend(analyze([5, 1, 3, 2, 6]), [[0.2], [4.0]]).minimum.tolist()
        [0, 1]
    """
    expect("topology", topology, Topology, "what `analyze` returns")
    try:
        points = np.asarray(starts, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"starts must be an array of numbers [n, k], got {starts!r}") from error
    k = len(topology.axes)
    if points.ndim != 2 or points.shape[1] != k:
        raise ValueError(f"starts need shape [n, {k}], got {points.shape}")
    low, high = np.array([(axis[0], axis[-1]) for axis in topology.axes.values()], dtype=np.float64).T
    outside = ~((points >= low) & (points <= high)).all(axis=1)
    if outside.any():
        raise ValueError(f"{outside.sum()} of {len(points)} starts lie outside the window, or are NaN")
    cells = _nearest(topology, points)
    minimum = topology.basins[tuple(cells.T)]
    if (minimum == NONE).any():
        raise ValueError(f"{(minimum == NONE).sum()} of {len(points)} starts lie at a point that is not known")
    offsets = _offsets(k, topology.neighborhood)
    return Descents(tuple(_path(topology, offsets, tuple(cell)) for cell in cells.tolist()), minimum)


def _nearest(topology: Topology, points: Array) -> Array:
    """Return the indices `[n, k]` of the grid points nearest to `[n, k]` coordinates."""
    columns = []
    for axis, column in zip(topology.axes.values(), points.T, strict=True):
        columns.append(np.searchsorted((axis[1:] + axis[:-1]) / 2, column))
    return np.stack(columns, axis=1)


def _offsets(k: int, neighborhood: str) -> list[tuple[int, ...]]:
    """Return the steps to the neighbors of a cell."""
    middle = np.zeros((3,) * k, dtype=bool)
    middle[(1,) * k] = True
    beside = np.zeros_like(middle)
    for a, b in neighbor_slices(k, neighborhood):
        beside[a] |= middle[b]
        beside[b] |= middle[a]
    return [tuple(step) for step in (np.argwhere(beside) - 1).tolist()]


def _path(topology: Topology, offsets: list[tuple[int, ...]], cell: tuple[int, ...]) -> Array:
    """Return the cells `[t, k]` from one to the first cell of its minimum that is reached.

    Only cells of the start's own basin are looked at: the lowest neighbor of a plateau that is no minimum always is
    one, and a neighbor just as low in another basin is not the one that `analyze` chose.
    """
    values, basins = topology.values, topology.basins
    own, path = basins[cell], [cell]
    while True:
        start = path[-1]
        before = {start: start}  # the cells of the plateau, each with the one from which it was reached first
        queue, lowest, last = [start], values[start], start
        for here in queue:
            for step in offsets:
                there = tuple(i + j for i, j in zip(here, step, strict=True))
                if there in before or not all(0 <= i < n for i, n in zip(there, values.shape, strict=True)):
                    continue
                if basins[there] != own:
                    continue
                if values[there] == values[start]:
                    before[there] = here
                    queue.append(there)
                elif values[there] < lowest:
                    lowest, last, down = values[there], here, there
        if not lowest < values[start]:
            return np.array(path)
        across = []
        while last != start:
            across.append(last)
            last = before[last]
        path += [*reversed(across), down]

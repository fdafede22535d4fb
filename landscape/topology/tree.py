"""The merge tree of an array: its minima, the saddles at which they merge, and the basins, all in whole-array steps.

1. Cells are ordered by (value, flat index). Connected cells of one value, a plateau, become one node.
2. Each node points to its lowest neighbor. Following the pointers ends in a minimum; the cells that end in the same one
   are its basin. It is the basin that flooding gives: cells are taken in order, and each joins its lowest neighbor.
3. Two basins touch at pairs of neighboring cells, and join at the lowest of the pairs' higher cells. Of all these
   joints, those of the minimum spanning tree of the graph of basins are the saddles (Kruskal's algorithm *is* the
   union-find pass over the cells, with everything left out that changes no component).
4. The saddles are taken in order of value. At each, the component with the higher minimum ends: the elder rule.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

Array = np.ndarray
Slices = tuple[slice, ...]

OUTSIDE = -1
"""In place of a minimum: what lies beyond the border or in unknown cells."""
NONE = -2
"""In place of a minimum: nothing; the label of unknown cells, and the parent of what never merges."""

# of minima, and the one that maxima then have
DUAL = {"full": "axis", "axis": "full"}
BORDERS = ("exclude", "include")


class Tree(NamedTuple):
    """Minima of an array and how they merge, in order of value (then of index), so that a parent has a lower number.

    Attributes:
        cell: `[m]` flat index of the minimum, the first cell of its plateau.
        plateau: `[m]` cells of the plateau.
        on_border: `[m]` whether the plateau touches the border or an unknown cell.
        parent: `[m]` the lowest minimum of the component that it merges into, `OUTSIDE` or `NONE`.
        merge: `[m]` flat index of the cell at which it merges; -1 where it never does.
        between: `[m, 2]` the basins that touch at that cell.
        open: `[nx, ny, ...]` which cells touch the border or an unknown cell.
        basins: `[nx, ny, ...]` the minimum below each cell; `NONE` for unknown cells.
    """

    cell: Array
    plateau: Array
    on_border: Array
    parent: Array
    merge: Array
    between: Array
    open: Array
    basins: Array


def merge_tree(values: Array, neighborhood: str = "full", border: str = "exclude") -> Tree:
    """Find the minima of an array, their basins, and how the components of `{values <= t}` merge as `t` grows.

    Args:
        values: `[nx, ny, ...]`; NaN is unknown, infinities are values.
        neighborhood: `"full"`: the `3^k - 1` cells around a cell are its neighbors; `"axis"`: the `2 k` along the axes.
        border: `"exclude"`: what is unknown (beyond the border, NaN) counts as lower than everything, and whatever
            touches it merges into `OUTSIDE`. `"include"`: it is not there.

    Raises:
        ValueError: Unknown neighborhood or border.
    """
    for name, given, known in (("neighborhood", neighborhood, DUAL), ("border", border, BORDERS)):
        if given not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {given!r}")
    pairs = list(neighbor_slices(values.ndim, neighborhood))
    known = ~np.isnan(values)
    n = int(known.sum())
    order = np.argsort(values, axis=None, kind="stable")  # NaN last
    node = np.full(values.size, n)
    node[order[:n]] = np.arange(n)
    node = _join_plateaus(values, node.reshape(values.shape), pairs, n)

    lowest = node.copy()
    for a, b in pairs:
        np.minimum(lowest[a], node[b], out=lowest[a])
        np.minimum(lowest[b], node[a], out=lowest[b])
    down = np.arange(n)
    np.minimum.at(down, node[known], lowest[known])
    n_cells = np.bincount(node[known], minlength=n)
    minima = np.flatnonzero((down == np.arange(n)) & (n_cells > 0))
    while not np.array_equal(down, further := down[down]):
        down = further

    label = np.full(n, NONE)
    label[minima] = np.arange(len(minima))
    basins = np.full(values.shape, NONE)
    basins[known] = label[down[node[known]]]
    open_ = _open_cells(known, pairs)
    touching = np.zeros(n, dtype=bool)
    touching[node[open_]] = True
    joints = _joints(basins, node, pairs, open_ if border == "exclude" else None)
    parent, saddle, between = _elder_rule(*joints, len(minima), values.ravel()[order])
    return Tree(
        cell=order[minima],
        plateau=n_cells[minima],
        on_border=touching[minima],
        parent=parent,
        merge=np.where(saddle >= 0, order[saddle], -1) if n else saddle,
        between=between,
        open=open_,
        basins=basins,
    )


def neighbor_slices(k: int, neighborhood: str) -> Iterator[tuple[Slices, Slices]]:
    """Yield pairs of slices of a `k`-dimensional array that set every cell beside a neighbor, each two cells once."""
    cut = {0: (slice(None), slice(None)), 1: (slice(None, -1), slice(1, None)), -1: (slice(1, None), slice(None, -1))}
    for offset in itertools.product((0, 1, -1), repeat=k):
        first = next((step for step in offset if step), 0)
        if first == 1 and (neighborhood == "full" or sum(map(abs, offset)) == 1):
            yield tuple(cut[step][0] for step in offset), tuple(cut[step][1] for step in offset)


def _join_plateaus(values: Array, node: Array, pairs: list[tuple[Slices, Slices]], n: int) -> Array:
    """Give all cells of a plateau the number of its first cell."""
    ends = [(node[a][same], node[b][same]) for a, b in pairs if (same := values[a] == values[b]).any()]
    if not ends:
        return node
    i, j = map(np.concatenate, zip(*ends, strict=True))
    n_plateaus, plateau = connected_components(coo_array((np.ones(len(i), dtype=bool), (i, j)), (n, n)), directed=False)
    first = np.full(n_plateaus, n)
    np.minimum.at(first, plateau, np.arange(n))
    return np.append(first[plateau], n)[node]


def _open_cells(known: Array, pairs: list[tuple[Slices, Slices]]) -> Array:
    """Return which known cells touch the border or an unknown cell; an axis of one point has no border."""
    open_ = np.zeros(known.shape, dtype=bool)
    for axis, length in enumerate(known.shape):
        if length > 1:
            ends = np.moveaxis(open_, axis, 0)
            ends[0] = ends[-1] = True
    for a, b in pairs:
        open_[a] |= ~known[b]
        open_[b] |= ~known[a]
    return open_ & known


def _joints(
    basins: Array, node: Array, pairs: list[tuple[Slices, Slices]], open_: Array | None
) -> tuple[Array, Array, Array]:
    """Return for each two basins that touch the lower one, the higher one, and the node at which they join."""
    lower, higher, height = [], [], []
    for a, b in pairs:
        u, v = basins[a], basins[b]
        touch = (u != v) & (u >= 0) & (v >= 0)
        lower.append(np.minimum(u[touch], v[touch]))
        higher.append(np.maximum(u[touch], v[touch]))
        height.append(np.maximum(node[a][touch], node[b][touch]))
    if open_ is not None:
        higher.append(basins[open_])
        lower.append(np.full(len(higher[-1]), OUTSIDE))
        height.append(node[open_])
    u, v, w = (np.concatenate(part) if part else np.empty(0, dtype=int) for part in (lower, higher, height))
    by_height = np.argsort(w, kind="stable")
    two = (u - OUTSIDE) * (int(v.max(initial=0)) + 1) + v
    first = by_height[np.unique(two[by_height], return_index=True)[1]]
    return u[first], v[first], w[first]


def _elder_rule(u: Array, v: Array, height: Array, m: int, sorted_values: Array) -> tuple[Array, Array, Array]:
    """Merge `m` basins over their joints in order of height; return parent, saddle node and the two basins there."""
    ends = [(part - OUTSIDE).astype(np.int32) for part in (u, v)]  # SciPy 1.15 takes no other type
    graph = csr_array((height + 1.0, ends), shape=(m + 1, m + 1))  # a weight of 0 is no edge
    spanning = minimum_spanning_tree(graph).tocoo()
    by_height = np.argsort(spanning.data, kind="stable")
    parent, saddle, between = [NONE] * m, [-1] * m, np.full((m, 2), NONE)
    eldest = list(range(OUTSIDE, m))  # by number + 1: an elder minimum of the same component, itself if it is the first
    joints = zip(*(part[by_height].tolist() for part in (spanning.row, spanning.col, spanning.data)), strict=True)
    for one, other, weight in joints:
        roots = []
        for i in (one, other):
            while eldest[i] + 1 != i:
                eldest[i] = eldest[eldest[i] + 1]
                i = eldest[i] + 1
            roots.append(i - 1)
        elder, younger = sorted(roots)
        eldest[younger + 1] = elder
        parent[younger], saddle[younger] = elder, int(weight) - 1
        between[younger] = one + OUTSIDE, other + OUTSIDE
    level = sorted_values[saddle] if m else sorted_values
    for i in range(m):  # several that merge at one value all merge into the eldest, in whatever order they came
        if parent[i] >= 0 and saddle[parent[i]] >= 0 and level[parent[i]] == level[i]:
            parent[i] = parent[parent[i]]
    return np.array(parent, dtype=int), np.array(saddle, dtype=int), between

"""Barriers between networks as results: what was found along paths, stored and read without torch.

`barrier` of a path: `max_t [L(path(t)) - ((1-t) L(0) + t L(1))]`, zero for a convex loss. Its *height* is the largest
loss on it. Both are upper bounds of what the best path would have, up to the spacing of the points.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from landscape.contents import read_array
from landscape.lock import Lock
from landscape.storage import read_hdf5, read_json, write_hdf5, write_json

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class PathProfile:
    """Losses and other values along a path between two networks.

    Attributes:
        t: `[n]` from 0, the first network, to 1, the second.
        values: `[n]` float64 by metric name, the loss first.
        distance: Euclidean distance of the two networks, in units of theta.
    """

    t: Array
    values: dict[str, Array]
    distance: float

    @property
    def barrier(self) -> float:
        """Barrier of the loss; NaN where a loss on the path is NaN."""
        return self.barrier_of(next(iter(self.values)))

    @property
    def height(self) -> float:
        """Largest loss on the path; NaN where one is NaN."""
        return float(np.max(next(iter(self.values.values()))))

    def barrier_of(self, metric: str) -> float:
        """Return the barrier of a metric; for an accuracy, how far it drops below the line between the ends.

        Raises:
            ValueError: There is no such metric.
        """
        return float(np.max(self.excess(metric)))

    def excess(self, metric: str) -> Array:
        """Return `[n]` how far a metric is worse than on the line between its values at the ends."""
        if metric not in self.values:
            raise ValueError(f"no metric {metric!r}; there are {', '.join(self.values)}")
        above = _above_line(self.t, self.values[metric])
        return -above if metric.endswith("accuracy") else above


@dataclass(frozen=True, eq=False)
class Barriers:
    """Paths between all pairs of networks.

    Attributes:
        t: `[n_points]` positions on each path, 0 to 1.
        profiles: `[n, n, n_points]` losses: `profiles[i, j]` from network `i` to network `j`.
        distances: `[n, n]` Euclidean distances, in units of theta.
        aligned: Whether the symmetric copies were taken that lie closest to each other.
    """

    t: Array
    profiles: Array
    distances: Array
    aligned: bool

    @property
    def losses(self) -> Array:
        """`[n]` losses of the networks."""
        return np.diagonal(self.profiles[:, :, 0]).copy()

    @property
    def barriers(self) -> Array:
        """`[n, n]` barriers; zero on the diagonal, NaN where a network's own loss is not finite."""
        return _above_line(self.t, self.profiles).max(axis=2)

    @property
    def heights(self) -> Array:
        """`[n, n]` largest losses on the paths; the losses of the networks on the diagonal."""
        return self.profiles.max(axis=2)

    def path(self, i: int, j: int) -> PathProfile:
        """Return the path between two of the networks."""
        return PathProfile(self.t, {"loss": self.profiles[i, j]}, float(self.distances[i, j]))

    def save(self, path: str | os.PathLike) -> None:
        """Write an HDF5 file.

        Raises:
            BlockingIOError: Another process is writing it.
        """
        with Lock(path), write_hdf5(path, "barriers") as file:
            for name in ("t", "profiles", "distances"):
                file.create_dataset(name, data=getattr(self, name))
            write_json(file.create_group("record"), "settings", {"aligned": self.aligned})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Barriers":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is none of these files, or damaged.
        """
        with read_hdf5(path, "barriers") as file:
            t = read_array(file, "t", [None], "f")
            distances = read_array(file, "distances", [None, None], "f")
            n = len(distances)
            if not n or not len(t) or distances.shape != (n, n):
                raise ValueError(f"{path} is damaged: there are {len(t)} points and distances {distances.shape}")
            profiles = read_array(file, "profiles", [n, n, len(t)], "f")
            return cls(t, profiles, distances, read_json(file, "record/settings", {"aligned": bool})["aligned"])


def _above_line(t: Array, values: Array) -> Array:
    """Return how far values `[..., n]` at positions t lie above the line between the first and the last."""
    with np.errstate(invalid="ignore"):
        return values - ((1 - t) * values[..., :1] + t * values[..., -1:])


class Disconnectivity(NamedTuple):
    """Which minima are connected below which loss: a tree with the minima as leaves.

    Attributes:
        losses: `[n]` of the minima, nodes `0 .. n - 1`.
        merges: `[m, 2]` the two nodes that join at each merge, lowest first; merge `i` is node `n + i`. `m = n - 1`,
            fewer where paths were infinite or NaN.
        heights: `[m]` the loss at which they join.
        order: `[n]` the minima from left to right, so that no branches cross, lower ones to the left.
    """

    losses: Array
    merges: Array
    heights: Array
    order: Array


def disconnectivity(losses: Array, heights: Array) -> Disconnectivity:
    """Join minima in the order of the heights between them (single linkage; Becker and Karplus 1997).

    Two minima are connected below a loss if a chain of paths between minima stays below it. With the straight paths of
    `connectivity.barrier_matrix` the heights are upper bounds of the true saddles.

    Args:
        losses: `[n]` of the minima.
        heights: `[n, n]` largest loss on the path between each pair; symmetric.

    Raises:
        ValueError: Shapes do not fit, or a height is below a loss at its ends.

    Example:
        >>> tree = disconnectivity(np.array([0.0, 1.0]), np.array([[0.0, 3.0], [3.0, 1.0]]))
        >>> tree.merges.tolist(), tree.heights.tolist()
        ([[0, 1]], [3.0])
    """
    losses, heights = np.asarray(losses, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    n = len(losses)
    if losses.ndim != 1 or heights.shape != (n, n):
        raise ValueError(f"heights need shape ({n}, {n}), one row per loss, got {heights.shape}")
    rows, columns = np.triu_indices(n, 1)
    found = heights[rows, columns]
    ends = np.maximum(losses[rows], losses[columns])
    if (found < ends - 1e-4 * np.abs(ends) - 1e-9).any():
        raise ValueError("a path is lower than one of its ends: are losses and heights of the same networks?")
    found = np.maximum(found, ends)  # they may differ by the rounding of two ways of evaluating
    node = list(range(n))
    members: dict[int, list[int]] = {i: [i] for i in range(n)}
    merges: list[tuple[int, int]] = []
    levels: list[float] = []
    for pair in np.argsort(found, kind="stable"):
        if not np.isfinite(found[pair]):
            break  # infinity and NaN are sorted to the end
        a, b = node[rows[pair]], node[columns[pair]]
        if a == b:
            continue
        first, second = sorted((a, b), key=lambda k: losses[members[k]].min())
        new = n + len(merges)
        merges.append((first, second))
        levels.append(found[pair])
        members[new] = members.pop(first) + members.pop(second)
        for i in members[new]:
            node[i] = new
    roots = sorted(members, key=lambda k: losses[members[k]].min())
    order = [i for root in roots for i in members[root]]
    return Disconnectivity(losses, np.array(merges, dtype=int).reshape(-1, 2), np.array(levels), np.array(order, int))

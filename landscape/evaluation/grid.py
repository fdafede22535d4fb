"""Grids: their coordinates, and the order in which their points are evaluated."""

import numpy as np


def grid_axis(low: float, high: float, n: int) -> np.ndarray:
    """Space `n` coordinates evenly, so that one of them is exactly 0 where the range contains it.

    The trained network, at coordinate 0, is then on every grid; the range moves by at most half a step for it.

    Args:
        low: Lower end.
        high: Upper end, above `low`.
        n: Number of coordinates, at least 1.

    Returns:
        `[n]` float64, increasing. One coordinate alone is 0 if that is in the range, else the middle.

    Example:
        >>> grid_axis(-1.0, 1.0, 5).tolist()
        [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    if n < 1:
        raise ValueError(f"an axis needs at least 1 point, got {n}")
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"an axis needs finite ends low < high, got {low} and {high}")
    contains_zero = low <= 0 <= high
    if n == 1:
        return np.array([0.0 if contains_zero else (low + high) / 2])
    step = (high - low) / (n - 1)
    if not contains_zero:
        return np.linspace(low, high, n)
    return (np.arange(n) - round(-low / step)) * step


def coarse_to_fine(shape: tuple[int, ...]) -> np.ndarray:
    """Order the points of a grid so that every beginning of the order shows the whole picture.

    Along an axis the first level holds the two ends and the middle; each further level halves the gaps. The level of a
    point is the largest of its levels along the axes.

    Args:
        shape: Number of points along each axis.

    Returns:
        `[m, k]` indices, each point once.
    """
    levels = [_levels(n) for n in shape]
    level = np.max(np.stack(np.meshgrid(*levels, indexing="ij")), axis=0)
    order = np.argsort(level.reshape(-1), kind="stable")
    return np.stack(np.unravel_index(order, shape), axis=1)


def _levels(n: int) -> np.ndarray:
    level = np.full(n, -1)
    depth = 0
    while (level < 0).any():
        points = np.round(np.linspace(0, n - 1, 2 ** (depth + 1) + 1)).astype(int)
        level[points[level[points] < 0]] = depth
        depth += 1
    return level

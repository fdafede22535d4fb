"""The reference way: `functional_call` at one point after the other, right for every module and every loss."""

import copy
from collections.abc import Callable

import numpy as np

from landscape.objective import Objective
from landscape.slice import Slice


def reference_values(
    objective: Objective, slice: Slice, chunk_size: int | None
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return the function that evaluates points of a slice through the objective, one at a time.

    Args:
        objective: The loss and its data.
        slice: Where the coordinates lie.
        chunk_size: Samples per forward pass; None for the batches as given.

    Returns:
        Coordinates `[m, k]` -> values `[m]` float64 by metric name.
    """
    objective = copy.copy(objective)
    objective.chunk_size = chunk_size
    interpolated = objective.batch_norm == "interpolated"

    def values(coordinates: np.ndarray) -> dict[str, np.ndarray]:
        points = [
            objective.evaluate(slice.at(c), slice.buffers_at(c, objective.buffers) if interpolated else None)
            for c in coordinates
        ]
        return {name: np.array([point[name] for point in points]) for name in objective.metric_names}

    return values

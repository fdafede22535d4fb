"""The reference plan: `functional_call` at one point after the other, right for every module and every loss."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from landscape.objective import Objective
from landscape.slice import Slice


@dataclass(frozen=True)
class Plan:
    """How the points of a slice are evaluated.

    Attributes:
        name: One word.
        notes: What was matched, what was not and why, in words.
        chunk_size: Samples per forward pass; None for the batches as given.
        group: Points that are best handed over together.
        values: Coordinates `[m, k]` -> values `[m]` float64 by metric name.
    """

    name: str
    notes: tuple[str, ...]
    chunk_size: int | None
    group: int
    values: Callable[[np.ndarray], dict[str, np.ndarray]]

    def describe(self) -> str:
        """Say in a few lines how the points are evaluated."""
        chunk = "the batches given" if self.chunk_size is None else f"chunks of {self.chunk_size} samples"
        return "\n".join([f"plan {self.name}: {chunk}", *(f"- {note}" for note in self.notes)])


def reference_plan(objective: Objective, slice: Slice, chunk_size: int | None = None) -> Plan:
    """Evaluate through the objective, a point at a time.

    Args:
        objective: The loss and its data.
        slice: Where the coordinates lie.
        chunk_size: Samples per forward pass, of an earlier plan that is continued; default: the objective's own.
    """
    if chunk_size is not None:
        objective = copy.copy(objective)
        objective.chunk_size = chunk_size
    interpolated = objective.batch_norm == "interpolated"

    def values(coordinates: np.ndarray) -> dict[str, np.ndarray]:
        points = [
            objective.evaluate(slice.at(c), slice.buffers_at(c, objective.buffers) if interpolated else None)
            for c in coordinates
        ]
        return {name: np.array([point[name] for point in points]) for name in objective.metric_names}

    notes = ("one forward pass per chunk and point, exact for every module", *objective.notes)
    return Plan("reference", notes, objective.chunk_size, 1, values)

"""Choose how the points of a slice are evaluated, on evidence: matched, tuned and checked on the real data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from landscape.data import split_batch
from landscape.evaluation.dense import Dense, NotDenseError
from landscape.evaluation.graph import NotTraceableError, trace
from landscape.evaluation.layered import Layered
from landscape.evaluation.reference import reference_values
from landscape.objective import Objective
from landscape.slice import Slice

ENGINES = ("auto", "reference")
RTOL = 1e-5  # of a fast plan against the reference plan
MEMORY = 1 << 30  # bytes that a plan may keep
Values = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Plan:
    """How the points of a slice are evaluated.

    Attributes:
        name: `"reference"`, `"dense"` or `"layered"`.
        notes: What was matched, what was not and why, in words.
        settings: What was tuned (JSON-able); a plan made again with it gives the same digits. `"chunk_size"` are the
            samples per forward pass, None for the batches as given; `"group"` the points best handed over together.
        values: Coordinates `[m, k]` -> values `[m]` float64 by metric name.
    """

    name: str
    notes: tuple[str, ...]
    settings: dict[str, Any]
    values: Values

    @property
    def group(self) -> int:
        """Points that are best handed over together."""
        return self.settings["group"]

    def describe(self) -> str:
        """Say in a few lines how the points are evaluated."""
        size = self.settings["chunk_size"]
        chunk = "the batches given" if size is None else f"chunks of {size} samples"
        points = f", {self.group} points at a time" if self.group > 1 else ""
        return "\n".join([f"plan {self.name}: {chunk}{points}", *(f"- {note}" for note in self.notes)])

    def stored(self) -> dict:
        """Return what a surface keeps of its plan (JSON-able)."""
        return {"name": self.name, "notes": list(self.notes), **self.settings}


def make_plan(
    objective: Objective,
    slice: Slice,
    *,
    engine: str = "auto",
    ranges: np.ndarray | None = None,
    memory: int = MEMORY,
    stored: dict | None = None,
) -> Plan:
    """Choose the fastest plan that agrees with the reference.

    The dense plan serves chains of linear layers and element-wise functions, the layered plan every network whose
    forward pass can be traced, the reference plan all the others. A fast plan is compared with the reference on all
    data at the origin, at a corner and at two random points; beyond 1e-5 relative it is not used, and the plan says so.

    Args:
        objective: The loss and its data.
        slice: Where the points lie.
        engine: `"auto"`, or `"reference"` for the reference plan.
        ranges: `[k, 2]` low and high coordinate of each axis; default: the slice's extent.
        memory: Bytes that a plan may keep.
        stored: What a surface that is continued kept of its plan: the same plan is made again.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if stored is not None and stored["name"] == "reference":
        engine = "reference"
    if engine == "reference":
        chunk = stored["chunk_size"] if stored is not None else objective.chunk_size
        notes = ("one forward pass per chunk and point, exact for every module", *objective.notes)
        return Plan("reference", notes, {"chunk_size": chunk, "group": 1}, reference_values(objective, slice, chunk))
    fast, refusals = _match(objective, slice, memory)
    if fast is None:
        return _reference(objective, slice, refusals)
    if stored is not None:
        fast.restore(stored)
    elif objective.is_tuned and objective.chunk_size is not None:
        fast.tune()
    else:
        fast.chunk = objective.chunk_size
    difference = check(
        fast.values,
        reference_values(objective, slice, objective.chunk_size),
        np.array(slice.extent if ranges is None else ranges),
    )
    name = type(fast).__name__.lower()
    if not difference <= RTOL:
        refusals.append(f"the {name} plan differs from the reference by {difference:.1e} relative: not used")
        return _reference(objective, slice, refusals)
    notes = (*fast.notes, f"checked against the reference at 4 points: {difference:.0e} relative", *refusals)
    return Plan(name, (*notes, *objective.notes), fast.settings(), fast.values)


def check(values: Values, reference: Values, ranges: np.ndarray) -> float:
    """Compare two ways of evaluating a slice at the origin, at a corner and at two random points.

    Args:
        values: The one to check.
        reference: The one to trust.
        ranges: `[k, 2]` low and high coordinate of each axis.

    Returns:
        Largest relative difference, `|a - b| / max(|b|, 1e-7)`, a thousandth of it for accuracies.
    """
    low, high = ranges[:, 0], ranges[:, 1]
    inside = np.random.default_rng(0).uniform(low, high, (2, len(low)))
    points = np.concatenate([np.zeros((1, len(low))), high[None], inside])
    return relative_difference(values(points), reference(points))


def relative_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return the largest relative difference of values by metric name; infinity where only one is finite."""
    worst = 0.0
    for name in expected:
        for a, b in zip(found[name], expected[name], strict=True):
            if math.isfinite(a) and math.isfinite(b):
                scale = 1e3 if name.endswith("accuracy") else 1.0  # a tie broken by rounding moves a whole sample
                worst = max(worst, abs(a - b) / max(abs(b), 1e-7) / scale)
            elif not (a == b or (math.isnan(a) and math.isnan(b))):
                worst = math.inf
    return worst


def _match(objective: Objective, slice: Slice, memory: int) -> tuple[Dense | Layered | None, list[str]]:
    refusals: list[str] = []
    batch = next(objective.splits[""].chunks(None))
    if objective.batch_norm != "frozen" and objective.has_batch_norm:
        refusals.append(f"batch-norm statistics are {objective.batch_norm}")
    elif objective.has_forward or not isinstance(split_batch(batch)[0], torch.Tensor):
        refusals.append("the model is not called on one tensor")
    else:
        try:
            traced = trace(objective.model)
        except NotTraceableError as error:
            refusals.append(f"the forward pass cannot be traced: {error}")
            return None, refusals
        if objective.chunk_size is not None:
            try:
                return Dense(objective, slice, traced, memory), refusals
            except NotDenseError as error:
                refusals.append(f"not dense: {error}")
        return Layered(objective, slice, traced, memory), refusals
    return None, refusals


def _reference(objective: Objective, slice: Slice, refusals: list[str]) -> Plan:
    plan = make_plan(objective, slice, engine="reference")
    return Plan("reference", (*plan.notes, *refusals), plan.settings, plan.values)

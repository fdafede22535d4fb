"""Choose how the points of a slice are evaluated, on evidence: matched, tuned and checked on the real data."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from landscape.data import split_batch
from landscape.evaluation.dense import Dense, NotDenseError
from landscape.evaluation.graph import NotTraceableError, trace
from landscape.evaluation.layered import Layered
from landscape.evaluation.memory import footprint, memory_budget
from landscape.evaluation.preview import BF16, Values, as_preview, in_bf16, preview_error
from landscape.evaluation.reference import reference_values
from landscape.evaluation.tuning import Needs, choose_sizes, limit_time, needs_of
from landscape.objective import Objective
from landscape.slice import Slice

ENGINES = ("auto", "reference", "preview")
RTOL = 1e-5  # of a fast plan against the reference plan


@dataclass(frozen=True)
class Plan:
    """How the points of a slice are evaluated.

    Attributes:
        name: `"reference"`, `"dense"`, `"layered"` or `"preview"`.
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

    @property
    def rechecked(self) -> bool:
        """Whether its values must agree with the reference plan's while the grid fills."""
        return self.name not in ("reference", "preview")

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
    memory: int | None = None,
    stored: dict | None = None,
    n_points: int = 51 * 51,
) -> Plan:
    """Choose the fastest plan that agrees with the reference.

    The dense plan serves chains of linear layers and element-wise functions, the layered plan every network whose
    forward pass can be traced, the reference plan all the others. A fast plan is compared with the reference on all
    data at the origin, at a corner and at two random points; beyond 1e-5 relative it is not used, and the plan says so.

    The preview computes in bf16 and is not held to that: its error at the center and at a corner is measured and kept
    in `settings["preview_error"]`.

    Args:
        objective: The loss and its data.
        slice: Where the points lie.
        engine: `"auto"`, `"reference"` for the reference plan, or `"preview"`.
        ranges: `[k, 2]` low and high coordinate of each axis; default: the slice's extent.
        memory: Bytes that a fast plan may take, at most those that are free. Default: 2 GiB, or a quarter of what the
            machine (on CUDA: the card) has free where that is less.
        stored: What a surface that is continued kept of its plan: the same plan is made again.
        n_points: Of the whole grid: what takes time to set up is only taken where it pays.

    Raises:
        ValueError: Unknown engine, a preview to be continued as something else or the reverse, or a network that cannot
            be evaluated in bf16 for a preview.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    budget = memory_budget(memory, objective.device)
    ranges = np.array(slice.extent if ranges is None else ranges)
    if stored is not None and (stored["name"] == "preview") != (engine == "preview"):
        begun, remedy = ("", "engine='preview'") if engine != "preview" else ("not ", "another engine")
        raise ValueError(
            f"the surface was {begun}begun as a preview in bf16, and the two cannot be mixed: continue it with "
            f"{remedy}, or choose another file name"
        )
    if engine == "preview":
        return _preview(objective, slice, ranges, budget, stored, n_points)
    if engine == "reference" or (stored is not None and stored["name"] == "reference"):
        return _reference(objective, slice, [], objective.chunk_size if stored is None else stored["chunk_size"])
    refusals = _refusals(objective)
    if not refusals:
        points = _points(ranges)
        expected = reference_values(objective, slice, objective.chunk_size)(points)
        try:
            fast, needs = _match(objective, slice, budget, refusals)
            difference = relative_difference(
                _prepare(fast, objective, needs, budget, points, stored, n_points), expected
            )
        except NotTraceableError as error:
            refusals.append(f"the forward pass cannot be traced: {error}")
        except Exception as error:  # the code of a network may fail in any way when it is called differently
            if stored is not None:  # another plan would give other digits
                raise
            refusals.append(f"the rewritten network fails: {_line(error)}")
        else:
            name = type(fast).__name__.lower()
            if difference <= RTOL:
                checked = f"checked against the reference at 4 points: {difference:.0e} relative"
                notes = (*fast.notes, checked, _memory_note(fast, needs, budget), *refusals, *objective.notes)
                return Plan(name, notes, fast.settings(), with_penalty(fast.values, objective, slice))
            refusals.append(f"the {name} plan differs from the reference by {difference:.1e} relative: not used")
    return _reference(objective, slice, refusals, objective.chunk_size)


def _reference(objective: Objective, slice: Slice, refusals: list[str], chunk: int | None) -> Plan:
    notes = ("one forward pass per chunk and point, exact for every module", *objective.notes, *refusals)
    return Plan("reference", notes, {"chunk_size": chunk, "group": 1}, reference_values(objective, slice, chunk))


def _preview(
    objective: Objective, slice: Slice, ranges: np.ndarray, budget: int, stored: dict | None, n_points: int
) -> Plan:
    """Let the layered plan, where its rewrites are right in float32, or the reference plan compute in bf16."""
    points = _points(ranges)[:2]
    expected = reference_values(objective, slice, objective.chunk_size)(points)
    if objective.dtype == torch.float64:  # which autocast would leave as it is
        objective, slice = objective.to(dtype=torch.float32), slice.to(dtype=torch.float32)
    narrow, device = as_preview(objective), objective.device
    chunk = objective.chunk_size if stored is None else stored["chunk_size"]
    settings: dict[str, Any] = {"chunk_size": chunk, "group": 1, "rewritten": False}
    wide = reference_values(objective, slice, chunk)
    values = in_bf16(reference_values(narrow, slice, chunk), device)
    notes: list[str] = []
    refusals = _refusals(objective)
    if not refusals and (stored is None or stored["rewritten"]):
        try:
            exact = Layered(objective, slice, trace(objective.model), budget // 4)
            exactly = with_penalty(exact.values, objective, slice)
            difference = relative_difference(exactly(points), expected)
            if not difference <= RTOL:
                raise ValueError(f"they differ from the reference by {difference:.1e} relative")
            traced = trace(objective.model)
            size = footprint(traced, objective)  # before the graph is rewritten
            with torch.autocast(device.type, BF16):
                fast = Layered(narrow, slice, traced, budget // 4)
                needs = needs_of(fast, size, objective, slice.k)
                _prepare(fast, narrow, needs, budget, points, stored, n_points)
            wide, settings = exactly, {**fast.settings(), "rewritten": True}
            values = with_penalty(in_bf16(fast.values, device), objective, slice)
            notes = [*fast.notes, _memory_note(fast, needs, budget)]
        except Exception as problem:  # as in `make_plan`
            if stored is not None:
                raise
            refusals.append(f"layers are not rewritten: {_line(problem)}")
    if stored is None:
        error = preview_error(values(points), expected)
        speed = _seconds(wide, points) / _seconds(values, points)
        notes.insert(0, f"{speed:.1f} times as fast as the same in float32")
    else:
        error = stored["preview_error"]
    shown = ", ".join(f"{'not finite' if e is None else f'{e:.1e}'} at the {place}" for place, e in error.items())
    first = (
        "products and convolutions in bf16, a quick look: not held to the reference within 1e-5",
        f"relative error of the loss, measured: {shown}",
    )
    return Plan("preview", (*first, *notes, *refusals, *objective.notes), {**settings, "preview_error": error}, values)


def _seconds(values: Values, points: np.ndarray) -> float:
    start = time.perf_counter()
    values(points)
    return time.perf_counter() - start


def _prepare(
    fast: Dense | Layered,
    objective: Objective,
    needs: Needs,
    budget: int,
    points: np.ndarray,
    stored: dict | None,
    n_points: int,
) -> dict[str, np.ndarray]:
    """Choose how much a fast plan takes at once, or take over what was chosen, and return its values at some points."""
    if stored is not None:
        fast.restore(stored)
    else:
        choose_sizes(fast, objective, needs, budget, n_points)
    start = time.perf_counter()
    values = with_penalty(fast.values, objective, fast.slice)
    parts = [values(points[i : i + fast.group]) for i in range(0, len(points), fast.group)]
    if stored is None:
        limit_time(fast, points, time.perf_counter() - start)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_penalty(values: Values, objective: Objective, slice: Slice) -> Values:
    """Add the weight penalty of an objective, if it has one, to losses that are without."""
    if not objective.penalty:
        return values

    def penalized(coordinates: np.ndarray) -> dict[str, np.ndarray]:
        found = values(coordinates)
        penalties = [objective.penalty_at(slice.at(point)) for point in coordinates]
        return {**found, "loss": found["loss"] + penalties}

    return penalized


def _memory_note(fast: Dense | Layered, needs: Needs, budget: int) -> str:
    most = needs(fast.group, fast.chunk)
    return f"memory: about {most / 1e6:.0f} MB under way, {budget / 1e6:.0f} MB allowed with what is kept"


def _points(ranges: np.ndarray) -> np.ndarray:
    """Return where a plan is compared with the reference: at the origin, a corner and two random points, `[4, k]`."""
    low, high = ranges[:, 0], ranges[:, 1]
    inside = np.random.default_rng(0).uniform(low, high, (2, len(low)))
    return np.concatenate([np.zeros((1, len(low))), high[None], inside])


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


def _refusals(objective: Objective) -> list[str]:
    """Say what makes rewriting pointless before it is tried."""
    if objective.batch_norm != "frozen" and objective.has_batch_norm:
        return [f"batch-norm statistics are {objective.batch_norm}"]
    inputs = split_batch(next(objective.splits[""].chunks(None)))[0]
    if objective.has_forward or not isinstance(inputs, torch.Tensor):
        return ["the model is not called on one tensor"]
    return []


def _match(objective: Objective, slice: Slice, budget: int, refusals: list[str]) -> tuple[Dense | Layered, Needs]:
    """Rewrite the network, as a dense one if it is; half of the budget is for what is kept.

    Raises:
        NotTraceableError: It has no graph.
    """
    traced = trace(objective.model)
    size = footprint(traced, objective)  # before the graph is rewritten
    fast: Dense | Layered | None = None
    if objective.chunk_size is not None:
        try:
            fast = Dense(objective, slice, traced, budget // 2)
        except NotDenseError as error:
            refusals.append(f"not dense: {error}")
    if fast is None:
        fast = Layered(objective, slice, traced, budget // 2)
    return fast, needs_of(fast, size, objective, slice.k)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Tell which of the minima that restarts found are the same.

Two minima are the same if their losses agree and

- `"symmetry"`: one is a symmetric copy of the other, by permutations, signs and scales of hidden units; or
- `"function"`: they compute the same outputs on the data. This serves any network, and also finds what is no symmetry
  of the parameters: units that cancel each other or do nothing.

Everything depends on tolerances, so they are stored with the count, and the count is given as a function of them.

Scales are no symmetry of a loss with a weight penalty; comparing balanced copies does no harm there, since a minimum of
such a loss is balanced. With batch norm, `"symmetry"` compares parameters only, not running statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.arguments import real_number
from landscape.objective import Objective
from landscape.parameters import real_tensor
from landscape.program import Program
from landscape.symmetry import Matcher, Symmetries

Array = np.ndarray
RELATIONS = ("symmetry", "function")
_REACH = 100  # distances are known up to so many tolerances
_FINE = 0.1  # of the tolerance: minima this close to one already known are compared with that one only


@dataclass(frozen=True, eq=False)
class Identification:
    """Which minima are the same.

    Attributes:
        labels: `[n]` number of the distinct minimum, 0 for that with the lowest loss, -1 for none: a loss or parameter
            was not finite.
        representatives: `[m]` index of the member with the lowest loss.
        hits: `[m]` how often each was found.
        distances: `[n]` relative distance of each member to the representative it was compared with.
        relation: What "the same" means, in words.
        tolerance: Largest relative distance of two that are the same.
        atol_loss: Largest difference of their losses.
        heights: Distances at which further minima become one: one less for each that is at most the tolerance.
    """

    labels: Array
    representatives: Array
    hits: Array
    distances: Array
    relation: str
    tolerance: float
    atol_loss: float
    heights: Array

    @property
    def n_minima(self) -> int:
        """Number of distinct minima."""
        return len(self.representatives)

    def count_at(self, tolerances: Array) -> Array:
        """Return the number of distinct minima for other tolerances.

        Single linkage: minima that a chain of steps within the tolerance connects are one. Below a tenth of
        `tolerance` the steps are those to one representative, so that a few may count too many; above
        100 tolerances no distances were computed, which raises.

        Args:
            tolerances: `[k]` relative distances.

        Returns:
            `[k]` counts, not increasing in the tolerance.

        Raises:
            ValueError: A tolerance is out of range.
        """
        tolerances = np.atleast_1d(np.asarray(tolerances, dtype=np.float64))
        if not ((tolerances >= 0) & (tolerances <= self.tolerance * _REACH)).all():
            raise ValueError(
                f"tolerances must be between 0 and {self.tolerance * _REACH:g}, beyond which no distances were "
                f"computed; got {tolerances.min():g} to {tolerances.max():g}. Identify with a larger tolerance"
            )
        return int((self.labels >= 0).sum()) - np.searchsorted(np.sort(self.heights), tolerances, side="right")

    def describe(self) -> str:
        """Say what was counted and how."""
        n, lost = int((self.labels >= 0).sum()), int((self.labels < 0).sum())
        text = f"{self.n_minima} distinct minima among {n} found; {self.relation}"
        return f"{text}; {lost} not finite, left out" if lost else text


def identify(
    thetas: Tensor,
    losses: Array,
    *,
    symmetries: Symmetries | None = None,
    outputs: Array | Tensor | None = None,
    relation: str = "symmetry",
    atol_loss: float = 1e-6,
    tolerance: float = 1e-3,
    softmax: bool = False,
) -> Identification:
    """Find the distinct ones among many minima.

    The distance of two minima is, for `"symmetry"`, that of their nearest symmetric copies (`symmetry.match`, of
    balanced scales) divided by the median norm of all; for `"function"`, the root of the mean squared difference of
    their outputs divided by the median root mean square of all. Those with a distance of at most `tolerance` and losses
    that differ by at most `atol_loss` are joined, chains included (single linkage).

    A minimum within a tenth of the tolerance of one already known is compared with no further one. Pairs whose
    symmetry-invariant numbers differ too much (`symmetry.Matcher.invariants`) are never matched. So thousands of
    minima cost little as long as few are distinct.

    Args:
        thetas: `[n, p]`, polished: their errors have to be below the tolerance.
        losses: `[n]`.
        symmetries: Of the network, for `"symmetry"`.
        outputs: `[n, m, ...]` of the networks on the same m samples, for `"function"`, see `network_outputs`.
        relation: `"symmetry"` or `"function"`.
        atol_loss: Largest difference of losses, in the loss's unit.
        tolerance: Largest relative distance.
        softmax: The outputs are logits, whose softmax does not change if a number is added to all of a sample: they
            are compared after subtracting their mean.

    Raises:
        ValueError: Unknown relation, missing or misshapen arrays, or tolerances that are not positive.

    Example:
        >>> found = identify(thetas, losses, symmetries=symmetries(model, x))  # doctest: +SKIP
        >>> found.n_minima, found.hits  # doctest: +SKIP
        (2, array([310, 190]))
    """
    try:
        losses = np.asarray(losses, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"losses must be numbers [n]: {error}") from error
    if relation not in RELATIONS:
        raise ValueError(f"relation must be one of {', '.join(RELATIONS)}, got {relation!r}")
    if real_tensor("thetas", thetas).ndim != 2 or losses.shape != (len(thetas),):
        raise ValueError(f"expected thetas [n, p] and losses [n], got {tuple(thetas.shape)} and {losses.shape}")
    atol_loss, tolerance = real_number("atol_loss", atol_loss, above=0), real_number("tolerance", tolerance, above=0)
    usable = np.isfinite(losses) & torch.isfinite(thetas).all(dim=1).cpu().numpy()
    chosen = np.flatnonzero(usable)
    reach = _REACH * tolerance
    if relation == "symmetry":
        if symmetries is None:
            raise ValueError("relation='symmetry' needs symmetries=symmetries(model, sample)")
        if thetas.shape[1] != symmetries.layout.p:
            raise ValueError(f"thetas have {thetas.shape[1]} entries, the symmetries are of {symmetries.layout.p}")
        distances = _by_symmetry(symmetries, thetas[chosen].double().cpu(), reach)
        words = "the same up to " + ("permutations" if symmetries.groups else "nothing: no symmetry was derived")
        words += ", signs" * any(gain.signs for gain in symmetries.gains)
        words += ", scales" * any(gain.scales for gain in symmetries.gains)
    else:
        if outputs is None or len(outputs) != len(thetas):
            raise ValueError(f"relation='function' needs outputs [n, m, ...] of all {len(thetas)} networks")
        distances = _by_function(torch.as_tensor(outputs)[chosen], softmax)
        words = "the same outputs on the data" + " up to a constant per sample" * softmax
    words += f", to {tolerance:g} relative, and the same loss to {atol_loss:g}"
    return _linked(losses, chosen, distances, atol_loss, tolerance, words)


Distances = Callable[[int, Array, float], Array]
"""`(i, others, enough)`: distances of minimum i to others; where one is at most `enough`, the rest may be infinite."""


def _by_symmetry(symmetries: Symmetries, thetas: Tensor, reach: float) -> Distances:
    matcher = Matcher(symmetries)
    balanced = torch.stack([symmetries.balance(theta) for theta in thetas]) if len(thetas) else thetas
    scale = float(balanced.norm(dim=1).median()) if len(thetas) else 1.0
    scale = scale or 1.0
    invariants = np.stack([matcher.invariants(theta) for theta in balanced]) if len(thetas) else np.empty((0, 1))

    def distances(i: int, others: Array, enough: float) -> Array:
        found = np.full(len(others), np.inf)
        bounds = np.linalg.norm(invariants[others] - invariants[i], axis=1) / scale
        near = np.argsort(bounds, kind="stable")
        near = near[bounds[near] <= reach * (1 + 1e-9) + 1e-12]
        if matcher.copies is not None:
            found[near] = matcher.distances(balanced[i], balanced[others[near]]) / scale
            return found
        for k in near:
            found[k] = matcher.distances(balanced[i], balanced[others[k] : others[k] + 1])[0] / scale
            if found[k] <= enough:
                break
        return found

    return distances


def _by_function(outputs: Tensor, softmax: bool) -> Distances:
    rows = outputs.double().cpu()
    if softmax:
        if rows.ndim != 3:
            raise ValueError(f"logits need shape [n, m, classes], got {tuple(outputs.shape)}")
        rows = rows - rows.mean(dim=2, keepdim=True)
    rows = rows.reshape(len(rows), -1)
    scale = float(rows.norm(dim=1).median()) if len(rows) else 1.0
    scale = scale or 1.0

    def distances(i: int, others: Array, enough: float) -> Array:
        return np.array([float((rows[j] - rows[i]).norm()) / scale for j in others])

    return distances


def _linked(
    losses: Array, chosen: Array, distances: Distances, atol_loss: float, tolerance: float, words: str
) -> Identification:
    """Link minima in the order of their losses, each with those before it whose loss is close enough."""
    order = np.argsort(losses[chosen], kind="stable")
    known: list[int] = []  # representatives so far, in the order of their losses
    edges: list[tuple[float, int, int]] = []
    nearest = np.zeros(len(chosen))
    home = np.arange(len(chosen))
    heights: list[float] = []
    for i in order:
        first = len(known)
        while first and losses[chosen[i]] - losses[chosen[known[first - 1]]] <= atol_loss:
            first -= 1
        candidates = np.array(known[first:], dtype=int)
        found = distances(i, candidates, _FINE * tolerance) if len(candidates) else np.empty(0)
        if len(found) and found.min() <= _FINE * tolerance:
            home[i], nearest[i] = candidates[found.argmin()], found.min()
            heights.append(float(found.min()))
            continue
        known.append(int(i))
        edges += [(float(d), int(i), int(j)) for d, j in zip(found, candidates, strict=True) if np.isfinite(d)]
    parents = {i: i for i in known}

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    within: dict[int, int] | None = None  # the components at the tolerance
    for distance, i, j in sorted(edges):
        if distance > tolerance and within is None:
            within = {k: root(k) for k in known}
        if root(i) != root(j):
            heights.append(distance)
            parents[root(i)] = root(j)
    within = {k: root(k) for k in known} if within is None else within
    numbers: dict[int, int] = {}
    labels = np.full(len(losses), -1)
    for i in order:  # the lowest loss comes first
        labels[chosen[i]] = numbers.setdefault(within[int(home[i])], len(numbers))
    representatives = np.array([chosen[order[labels[chosen[order]] == k][0]] for k in range(len(numbers))], dtype=int)
    to_home = np.full(len(losses), np.nan)
    to_home[chosen] = nearest
    hits = np.bincount(labels[chosen], minlength=len(numbers))
    return Identification(labels, representatives, hits, to_home, words, tolerance, atol_loss, np.array(heights))


def network_outputs(objective: Objective, thetas: Tensor, n_samples: int | None = None) -> Tensor:
    """Compute what many networks return on the training data.

    Args:
        objective: Its model, called on its training data in its dtype, in evaluation mode.
        thetas: `[n, p]`.
        n_samples: Use the first so many samples. Default: all; mind that the result is held in memory.

    Returns:
        `[n, m, ...]`, of the objective's type.

    Raises:
        ValueError: The objective has its own `forward`, or its data come in batches that do not fit together.
    """
    if objective.has_forward or objective.chunk_size is None:
        raise ValueError("network_outputs needs a model that is called on one tensor; compute the outputs yourself")
    batches = objective.splits[""]
    n = batches.n_samples if n_samples is None else min(n_samples, batches.n_samples)
    program = Program(objective.model, None)
    result = []
    with program.quietly():
        program.set_norm_mode(False)
        for theta in thetas:
            tensors = program.tensors(objective.layout, theta)
            rows: list[Tensor] = []
            for chunk in batches.chunks(objective.chunk_size):
                rows.append(program.output(tensors, chunk)[0])
                if sum(map(len, rows)) >= n:
                    break
            result.append(torch.cat(rows)[:n])
    return torch.stack(result)

"""Pairwise comparison of groups of runs: effect sizes with intervals, tests, and their correction for being many."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from landscape.arguments import expect, real_number, whole_number
from landscape.statistics.samples import one_list, ranked_worst
from landscape.statistics.tables import Estimate, columns

Array = np.ndarray
CORRECTIONS = ("holm", "benjamini-hochberg")
_CHUNK = 100_000  # entries of one block of permutations, few enough for the cache
_ENOUGH = 200  # permutations that reach the observed value, after which the p-value is known well enough


@dataclass(frozen=True)
class Pair:
    """Two groups compared.

    Attributes:
        first: Name of a group.
        second: Name of another.
        n_first: Number of its runs; of pairs, if runs are paired.
        n_second: The other's.
        effect: Probability that a run of `first` is better than one of `second`, ties counting half (A12).
        p: Of the hypothesis that neither is better; NaN where no test is possible.
        p_adjusted: Corrected for the number of comparisons.
        note: Why there is no `p`, or why it cannot be small; else empty.
    """

    first: str
    second: str
    n_first: int
    n_second: int
    effect: Estimate
    p: float
    p_adjusted: float
    note: str = ""

    def describe(self) -> str:
        """Return the comparison in words."""
        tail = f" ({self.note})" if self.note else ""
        return (
            f"{self.first} better than {self.second} with probability {self.effect.describe()}; "
            f"p = {self.p:.3g}, adjusted {self.p_adjusted:.3g}{tail}"
        )


@dataclass(frozen=True)
class Comparison:
    """All groups compared, two at a time.

    Attributes:
        names: Of the groups, in the order given.
        pairs: One per two groups.
        n_diverged: Number of diverged runs by group; they rank worst, tied.
        better: `"lower"` or `"higher"`.
        paired: Whether runs of the same position belong together.
        correction: For multiple comparisons.
    """

    names: tuple[str, ...]
    pairs: tuple[Pair, ...]
    n_diverged: dict[str, int]
    better: str
    paired: bool
    correction: str

    def describe(self) -> str:
        """Return the comparison in words, one pair per line."""
        test = "signed-rank permutation test" if self.paired else "Brunner-Munzel permutation test"
        lost = ", ".join(f"{n} of {name}" for name, n in self.n_diverged.items() if n)
        head = f"{self.better} is better; {test}, {self.correction} correction for {len(self.pairs)} comparison(s)"
        return "\n".join(
            [head + (f"; diverged runs rank worst: {lost}" if lost else ""), *map(Pair.describe, self.pairs)]
        )

    def rows(self) -> list[dict[str, object]]:
        """Return the pairs as rows of a table."""
        return [
            {
                "first": pair.first,
                "second": pair.second,
                "n_first": pair.n_first,
                "n_second": pair.n_second,
                "diverged_first": self.n_diverged[pair.first],
                "diverged_second": self.n_diverged[pair.second],
                **columns("probability_first_better", pair.effect),
                "p": pair.p,
                "p_adjusted": pair.p_adjusted,
                "note": pair.note,
            }
            for pair in self.pairs
        ]


def compare(
    groups: Mapping[str, ArrayLike],
    *,
    better: str = "lower",
    paired: bool = False,
    correction: str = "holm",
    level: float = 0.95,
    n_permutations: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare groups of runs with each other, two at a time, by ranks.

    Losses are skewed and some runs diverge, so nothing here is a mean: the effect is the probability of superiority
    A12 (Vargha and Delaney 2000, doi:10.3102/10769986025002101); Cliff's delta is `2 A12 - 1`. Diverged runs (NaN or
    infinite) are kept: they rank worst and tie with each other. Ties count half.

    - Independent runs: studentized permutation test of A12 = 1/2 (Brunner and Munzel's statistic, Neubert and Brunner
      2007, doi:10.1016/j.csda.2006.05.024): exact if both groups follow one law, and, unlike Mann and Whitney's test,
      asymptotically right if they differ in spread only. Interval of A12: Newcombe 2006, method 5
      (doi:10.1002/sim.2324), which does not collapse where one group always wins.
    - Paired runs (same initialization at the same position): Wilcoxon's signed ranks with zeros in Pratt's way, by
      random signs, which is exact with ties, too. Effect: the share of pairs in which `first` is better, with Wilson's
      interval.

    Args:
        groups: `[runs]` values by the name of the group; of one length if paired.
        better: `"lower"` for losses, `"higher"` for accuracies.
        paired: Whether runs of the same position share their initialization.
        correction: `"holm"` bounds the probability of any false claim, `"benjamini-hochberg"` the share of false ones.
        level: Of the intervals.
        n_permutations: At most so many random ones; no p-value is below `1 / (n_permutations + 1)`.
        seed: Of the permutations.

    Raises:
        ValueError: Fewer than two groups; lengths differ though paired; unknown option.

    Example:
        >>> print(compare({"sgd": [0.3, 0.4, 0.5, 0.45], "adam": [0.1, 0.2, 0.15, 0.25]}).describe())  # doctest: +SKIP
    """
    expect("groups", groups, Mapping, "values by the name of the group")
    level = real_number("level", level)
    n_permutations, seed = whole_number("n_permutations", n_permutations, 1), whole_number("seed", seed, 0)
    if len(groups) < 2:
        raise ValueError(f"a comparison needs at least two groups, got {len(groups)}")
    if correction not in CORRECTIONS:
        raise ValueError(f"correction must be one of {', '.join(CORRECTIONS)}, got {correction!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}")
    raw = {name: one_list(values, name) for name, values in groups.items()}
    n_diverged = {name: int((~np.isfinite(x)).sum()) for name, x in raw.items()}
    sign = 1.0 if better == "lower" else -1.0
    costs = {name: sign * ranked_worst(x, better) for name, x in raw.items()}  # lower is better from here on
    if paired and len({len(x) for x in costs.values()}) > 1:
        lengths = ", ".join(f"{name} {len(x)}" for name, x in costs.items())
        raise ValueError(f"paired groups need one run per initialization each, got {lengths}")
    found = []
    for i, (first, second) in enumerate(combinations(costs, 2)):
        a, b = costs[first], costs[second]
        rng = np.random.default_rng([seed, i])
        compared = _compare_paired if paired else _compare_independent
        found.append((first, second, len(a), len(b), *compared(a, b, level, n_permutations, rng)))
    adjusted = adjust(np.array([row[5] for row in found]), correction)
    pairs = tuple(Pair(*row[:6], p_adjusted=float(p), note=row[6]) for row, p in zip(found, adjusted, strict=True))
    return Comparison(tuple(costs), pairs, n_diverged, better, paired, correction)


def adjust(p: ArrayLike, correction: str = "holm") -> Array:
    """Correct p-values for being many.

    Holm 1979 (doi:10.2307/4615733) bounds the probability of at least one false rejection, whatever the dependence;
    Benjamini and Hochberg 1995 (doi:10.1111/j.2517-6161.1995.tb02031.x) the expected share of false ones.

    Args:
        p: `[m]` p-values; NaN (no test was possible) stays NaN and is not counted.
        correction: `"holm"` or `"benjamini-hochberg"`.

    Example:
        >>> adjust([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    values = np.asarray(p, dtype=np.float64)
    result = np.full(values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    if correction == "benjamini-hochberg":
        result[tested] = stats.false_discovery_control(values[tested]) if len(tested) else []
    else:
        order = tested[np.argsort(values[tested], kind="stable")]
        steps = values[order] * np.arange(len(order), 0, -1)
        result[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return result


def _compare_independent(
    a: Array, b: Array, level: float, n_permutations: int, rng: np.random.Generator
) -> tuple[Estimate, float, str]:
    if min(len(a), len(b)) < 2:
        return Estimate(np.nan, np.nan, np.nan, level), np.nan, "a group of fewer than 2 runs"
    pooled = np.sort(np.concatenate([a, b]))
    last_of_tie = np.append(np.flatnonzero(pooled[1:] != pooled[:-1]), len(pooled) - 1)
    # how many runs of the first group are among the smallest 1, 2, ... of both, at the end of each tie
    smaller = np.searchsorted(np.sort(a), pooled[last_of_tie], side="right")
    observed = abs(float(_brunner_munzel(smaller[None], last_of_tie + 1)[0]))
    members = np.zeros((_n_rows(len(pooled), n_permutations), len(pooled)), dtype=np.int8)
    members[:, : len(a)] = 1

    def draw() -> Array:
        rng.permuted(members, axis=1, out=members)
        counts = members.cumsum(axis=1, dtype=np.int32)[:, last_of_tie]
        return np.abs(_brunner_munzel(counts, last_of_tie + 1))

    p = _permutation_p(draw, observed, n_permutations)
    below, ties = (a[:, None] < b).mean(), (a[:, None] == b).mean()
    smallest = 2 / math.comb(len(a) + len(b), len(a))
    note = f"with so few runs, no p-value can be below {smallest:.2g}" if smallest > 0.05 else ""
    return _newcombe(float(below + ties / 2), len(a), len(b), level), p, note


def _n_rows(n_runs: int, n_permutations: int) -> int:
    """Return how many permutations are drawn at once."""
    return max(1, min(n_permutations, _CHUNK // n_runs))


def _permutation_p(draw: Callable[[], Array], observed: float, n_permutations: int) -> float:
    """Return the p-value of an observed statistic, after fewer permutations where it is plainly not small.

    Stopping at the `h`-th permutation that reaches the observed value, `p = h / (number drawn)` keeps the level
    (Besag and Clifford 1991, doi:10.1093/biomet/78.2.301).

    Args:
        draw: Returns the statistics of the next permutations.
        observed: The statistic to compare with.
        n_permutations: Number of permutations where it does not stop before.
    """
    n_drawn = n_reached = 0
    while n_drawn < n_permutations:
        # rounding must not part arrangements that tie with the observed one
        drawn = draw()[: n_permutations - n_drawn]
        reached = np.flatnonzero(drawn >= observed * (1 - 1e-9))
        if n_reached + len(reached) >= _ENOUGH:
            return _ENOUGH / (n_drawn + int(reached[_ENOUGH - n_reached - 1]) + 1)
        n_drawn, n_reached = n_drawn + len(drawn), n_reached + len(reached)
    return (1 + n_reached) / (1 + n_permutations)


def _brunner_munzel(first: Array, both: Array) -> Array:
    """Return the statistic of arrangements.

    Args:
        first: `[b, u]` number of runs of the first group that do not exceed each distinct value.
        both: `[u]` the same of both groups.
    """
    n = first[:, -1:].astype(np.float64)
    m = both[-1] - n
    up_to_one, up_to_two = first / n, (both - first) / m
    share_one, share_two = (np.diff(x, axis=1, prepend=0) for x in (up_to_one, up_to_two))
    # placements: the share of the other group below each value, ties half
    among_one, among_two = up_to_one - share_one / 2, up_to_two - share_two / 2
    mean_one, mean_two = (share_one * among_two).sum(axis=1), (share_two * among_one).sum(axis=1)
    variance_one = (share_one * among_two**2).sum(axis=1) - mean_one**2
    variance_two = (share_two * among_one**2).sum(axis=1) - mean_two**2
    # complete separation has no variance: the floor keeps it the most extreme, and a full tie at zero
    error = np.sqrt(np.maximum(variance_one / (n[:, 0] - 1) + variance_two / (m[:, 0] - 1), 1e-12))
    return (mean_two - mean_one) / (2 * error)


def _newcombe(a12: float, n: int, m: int, level: float) -> Estimate:
    """Return A12 with its score-type interval: where `|a12 - t|` is `z` standard errors at `t`."""
    z, half = stats.norm.ppf((1 + level) / 2), (n + m) / 2 - 1

    def excess(t: float) -> float:
        variance = t * (1 - t) * (1 + half * (1 - t) / (2 - t) + half * t / (1 + t)) / (n * m)
        return (a12 - t) ** 2 - z**2 * variance

    inside = min(max(a12, 1e-9), 1 - 1e-9)  # at 0 and 1 the excess has a second root
    low = 0.0 if a12 == 0 else optimize.brentq(excess, 0, inside)
    high = 1.0 if a12 == 1 else optimize.brentq(excess, inside, 1)
    return Estimate(a12, float(low), float(high), level)


def _compare_paired(
    a: Array, b: Array, level: float, n_permutations: int, rng: np.random.Generator
) -> tuple[Estimate, float, str]:
    if len(a) < 2:
        return Estimate(np.nan, np.nan, np.nan, level), np.nan, "fewer than 2 pairs"
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, b - a)  # two diverged runs tie
    ranks = np.where(difference == 0, 0.0, stats.rankdata(np.abs(difference)))
    observed = abs(float((np.sign(difference) * ranks).sum()))
    rows = _n_rows(len(a), n_permutations)

    def draw() -> Array:
        return np.abs((rng.integers(0, 2, size=(rows, len(a)), dtype=np.int8) * 2.0 - 1) @ ranks)

    share = float((difference > 0).mean() + (difference == 0).mean() / 2)
    n_decided = int((difference != 0).sum())
    smallest = 2.0 ** (1 - n_decided)
    note = f"with so few pairs that differ, no p-value can be below {smallest:.2g}" if smallest > 0.05 else ""
    z = stats.norm.ppf((1 + level) / 2)
    n = len(a)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    interval = Estimate(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)), level)
    return interval, _permutation_p(draw, observed, n_permutations), note

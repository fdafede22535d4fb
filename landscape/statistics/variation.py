"""Are the minima nearly equal, and do they become so with width?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from landscape.statistics.samples import BETTER, bootstrap_paired, finite_values, one_list, quartile_range
from landscape.statistics.tables import Estimate, columns

Array = np.ndarray


@dataclass(frozen=True)
class Spread:
    """How far final values lie apart, in units of what training gained.

    Attributes:
        n_runs: Number of runs.
        n_diverged: Number of runs with a non-finite initial or final value: in none of the numbers below.
        gain: Median initial value to best final one.
        quartiles: Distance of the quartiles of the final values, over the gain.
        central: Distance of their 5 % and 95 % quantiles, over the gain.
        full: Distance of their extremes, over the gain; without interval, since it grows with the number of runs.
    """

    n_runs: int
    n_diverged: int
    gain: float
    quartiles: Estimate
    central: Estimate
    full: float

    def describe(self) -> str:
        """Return the spread in words."""
        lost = f" ({self.n_diverged} diverged, left out)" if self.n_diverged else ""
        return (
            f"of the gain {self.gain:.4g}, the final values of {self.n_runs} runs{lost} lie apart: quartiles "
            f"{self.quartiles.describe()}, 5 % to 95 % {self.central.describe()}, all {self.full:.4g}"
        )

    def row(self) -> dict[str, object]:
        """Return the spread as one row of a table."""
        counted = {"n_runs": self.n_runs, "n_diverged": self.n_diverged, "gain": self.gain}
        return {
            **counted,
            **columns("quartiles", self.quartiles),
            **columns("central", self.central),
            "full": self.full,
        }


@dataclass(frozen=True)
class Trend:
    """Spread of the final values against width.

    Attributes:
        width: `[w]` ascending.
        n_runs: `[w]` number of finite runs.
        n_diverged: `[w]` number of diverged runs, left out.
        spread: Distance of the quartiles at each width.
        slope: Exponent of `spread ~ width^slope`.
        rho: Spearman's correlation of width and distance from the median of that width.
        p: Of the hypothesis that the spread is the same at all widths.
    """

    width: Array
    n_runs: Array
    n_diverged: Array
    spread: tuple[Estimate, ...]
    slope: Estimate
    rho: float
    p: float

    def describe(self) -> str:
        """Return the trend in words."""
        word = "shrinks" if self.rho < 0 else "grows"
        return (
            f"the spread {word} with width: spread ~ width^a with a = {self.slope.describe()}; "
            f"Spearman's rho {self.rho:.3f}, p = {self.p:.3g}, {len(self.width)} widths, {self.n_runs.sum()} runs"
        )

    def rows(self) -> list[dict[str, object]]:
        """Return one row per width."""
        return [
            {"width": float(w), "n_runs": int(n), "n_diverged": int(d), **columns("quartile_range", s)}
            for w, n, d, s in zip(self.width, self.n_runs, self.n_diverged, self.spread, strict=True)
        ]


def spread(
    initial: ArrayLike,
    final: ArrayLike,
    *,
    better: str = "lower",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Spread:
    """Measure how nearly equal the ends of training runs are.

    The unit is the gain `|median(initial) - best(final)|`: a spread of 0.01 says that where a run ends matters a
    hundred times less than that it was trained. Intervals: BCa bootstrap over runs, initial and final values together.

    Args:
        initial: `[n]` loss (or accuracy) of each run before training.
        final: `[n]` the same after training.
        better: `"lower"` for losses, `"higher"` for accuracies.
        level: Of the intervals.
        n_resamples: Number of bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: Lengths differ, fewer than two finite runs, unknown `better`, or training gained nothing.

    Example:
        >>> round(spread([2.3, 2.3, 2.3], [0.1, 0.2, 0.3]).full, 6)
        0.090909
    """
    start, end = one_list(initial, "initial"), one_list(final, "final")
    if len(start) != len(end):
        raise ValueError(f"one initial and one final value per run, got {len(start)} and {len(end)}")
    if better not in BETTER:
        raise ValueError(f"better must be one of {', '.join(BETTER)}, got {better!r}")
    finite = np.isfinite(start) & np.isfinite(end)
    if finite.sum() < 2:
        raise ValueError(f"only {finite.sum()} of {len(end)} runs have finite values: at least 2 are needed")
    sign = 1.0 if better == "lower" else -1.0
    start_cost, end_cost = sign * start[finite], sign * end[finite]

    def gain(first: Array, last: Array, axis: int = -1) -> Array:
        return np.median(first, axis=axis) - np.min(last, axis=axis)

    if gain(start_cost, end_cost) <= 0:
        raise ValueError("no run ended better than the median initial value: there is no gain to compare with")

    def over_gain(low: float, high: float) -> Estimate:
        def share(first: Array, last: Array, axis: int = -1) -> Array:
            ends = np.quantile(last, [low, high], axis=axis)
            return (ends[1] - ends[0]) / gain(first, last, axis)

        return bootstrap_paired((start_cost, end_cost), share, level, n_resamples, seed)

    total = float(gain(start_cost, end_cost))
    quartiles, central = over_gain(0.25, 0.75), over_gain(0.05, 0.95)
    return Spread(len(end), int((~finite).sum()), total, quartiles, central, float(np.ptp(end_cost)) / total)


def trend(
    groups: Mapping[float, ArrayLike],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    n_permutations: int = 9999,
    seed: int = 0,
) -> Trend:
    """Test whether the spread of final values changes with width (the claim of Choromanska et al., arXiv:1412.0233).

    Test: Spearman's correlation over runs of width and distance from the median of that width, as in Brown and
    Forsythe's test, by permutation; a shift of the values with width does not matter, only their spread does. The
    exponent is the least-squares slope of log spread against log width, with percentiles of a bootstrap within
    widths; both are NaN where a spread is zero.

    Args:
        groups: `[runs]` final values by width.
        level: Of the intervals.
        n_resamples: Number of bootstrap samples.
        n_permutations: Random ones.
        seed: Of bootstrap and permutations.

    Raises:
        ValueError: Fewer than three widths, a width not positive, or fewer than five finite runs at one.

    Example:
        >>> print(trend({10: wide_spread, 100: medium, 1000: narrow}).describe())  # doctest: +SKIP
    """
    if len(groups) < 3 or min(groups) <= 0:
        raise ValueError(f"a trend needs at least 3 positive widths, got {', '.join(map(str, groups)) or 'none'}")
    widths = np.array(sorted(groups), dtype=np.float64)
    raw = [one_list(groups[w], f"width {w}") for w in sorted(groups)]
    finite = [finite_values(x, f"width {w:g}") for w, x in zip(widths, raw, strict=True)]
    for w, x in zip(widths, finite, strict=True):
        if len(x) < 5:
            raise ValueError(f"width {w:g} has {len(x)} finite run(s): at least 5 are needed for a spread")
    rng = np.random.default_rng(seed)
    spreads = tuple(bootstrap_paired((x,), quartile_range, level, n_resamples, seed + i) for i, x in enumerate(finite))
    drawn = np.stack([quartile_range(rng.choice(x, (n_resamples, len(x)))) for x in finite], axis=1)
    slope = float(_slopes(widths, np.array([[s.value for s in spreads]]))[0])
    low, high = np.quantile(_slopes(widths, drawn), [(1 - level) / 2, (1 + level) / 2])

    distance = np.concatenate([np.abs(x - np.median(x)) for x in finite])
    of_width, of_distance = (
        (r - r.mean()) / max(r.std(), 1e-300)
        for r in map(stats.rankdata, (np.repeat(widths, [len(x) for x in finite]), distance))
    )
    rho = float((of_width * of_distance).mean())
    permuted = np.array([(rng.permutation(of_distance) * of_width).mean() for _ in range(n_permutations)])
    p = (1 + int((np.abs(permuted) >= abs(rho) * (1 - 1e-9)).sum())) / (1 + n_permutations)
    n_runs = np.array([len(x) for x in finite])
    n_diverged = np.array([len(x) for x in raw]) - n_runs
    return Trend(widths, n_runs, n_diverged, spreads, Estimate(slope, float(low), float(high), level), rho, p)


def _slopes(widths: Array, spreads: Array) -> Array:
    """Return the slopes `[b]` of log spread `[b, w]` against log width; NaN where a spread is zero."""
    x = np.log(widths) - np.log(widths).mean()
    y = np.log(np.where(spreads > 0, spreads, np.nan))
    return y @ x / (x @ x)

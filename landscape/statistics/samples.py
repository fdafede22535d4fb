"""Samples of runs: their middle and spread with bootstrap intervals; what becomes of runs that diverged."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from landscape.arguments import expect
from landscape.statistics.tables import Estimate, columns

Array = np.ndarray
BETTER = ("lower", "higher")


def quartile_range(values: Array, axis: int = -1) -> Array:
    """Return the distance between the quartiles, a spread that outliers do not change."""
    low, high = np.quantile(values, [0.25, 0.75], axis=axis)
    return high - low


STATISTICS: Mapping[str, Callable] = {"mean": np.mean, "median": np.median, "quartile range": quartile_range}


@dataclass(frozen=True)
class Sample:
    """One group of runs in numbers.

    Attributes:
        name: Of the group.
        n_runs: Number of runs, diverged ones included.
        n_diverged: Number of runs whose value is NaN or infinite; they are in none of the numbers below.
        median: With its interval.
        mean: With its interval.
        quartile_range: With its interval.
        lowest: Smallest finite value.
        highest: Largest finite value.
    """

    name: str
    n_runs: int
    n_diverged: int
    median: Estimate
    mean: Estimate
    quartile_range: Estimate
    lowest: float
    highest: float

    def describe(self) -> str:
        """Return the sample in words."""
        lost = f", {self.n_diverged} of them diverged and left out" if self.n_diverged else ""
        return (
            f"{self.name}: {self.n_runs} runs{lost}; median {self.median.describe()}, "
            f"range {self.lowest:.4g} to {self.highest:.4g}"
        )

    def row(self) -> dict[str, object]:
        """Return the sample as one row of a table."""
        counted = {"group": self.name, "n_runs": self.n_runs, "n_diverged": self.n_diverged}
        middle = {**columns("median", self.median), **columns("mean", self.mean)}
        spread = {**columns("quartile_range", self.quartile_range), "lowest": self.lowest, "highest": self.highest}
        return {**counted, **middle, **spread}


def summarize(groups: Mapping[str, ArrayLike], *, level: float = 0.95, seed: int = 0) -> list[Sample]:
    """Summarize each group of runs with bootstrap intervals.

    Diverged runs (NaN or infinite) are counted apart and enter no other number: read the count first.

    Args:
        groups: `[runs]` values by the name of the group.
        level: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        ValueError: A group is not one list of numbers, or has no finite value.
    """
    expect("groups", groups, Mapping, "values by the name of the group")
    result = []
    for name, values in groups.items():
        x = one_list(values, name)
        finite = finite_values(x, name)
        sample = Sample(
            name,
            n_runs=len(x),
            n_diverged=len(x) - len(finite),
            median=bootstrap(finite, "median", level=level, seed=seed),
            mean=bootstrap(finite, "mean", level=level, seed=seed),
            quartile_range=bootstrap(finite, "quartile range", level=level, seed=seed),
            lowest=float(finite.min()),
            highest=float(finite.max()),
        )
        result.append(sample)
    return result


def bootstrap(
    values: ArrayLike,
    statistic: str | Callable = "median",
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic of a sample with its bootstrap interval, bias-corrected and accelerated.

    BCa (Efron 1987, doi:10.1080/01621459.1987.10478410) by `scipy.stats.bootstrap`; plain percentiles where it is
    undefined, since leaving out any one value changes nothing (a median among ties). Either is too short for small
    samples. One value alone has no interval: the ends are NaN.

    Args:
        values: `[n]` finite values.
        statistic: `"mean"`, `"median"`, `"quartile range"`, or a function of an array and `axis`.
        level: Of the interval.
        n_resamples: Number of bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: No value or one that is not finite; unknown statistic; level not in (0, 1).

    Example:
        >>> bootstrap([1.0, 2.0, 3.0], "mean").value
        2.0
    """
    x = one_list(values, "the sample")
    if not len(x) or not np.all(np.isfinite(x)):
        raise ValueError("a bootstrap needs finite values: take out and count the runs that diverged")
    if isinstance(statistic, str) and statistic not in STATISTICS:
        raise ValueError(f"statistic must be a function or one of {', '.join(STATISTICS)}, got {statistic!r}")
    function = STATISTICS[statistic] if isinstance(statistic, str) else statistic
    return bootstrap_paired((x,), function, level, n_resamples, seed)


def bootstrap_paired(
    data: tuple[Array, ...], function: Callable, level: float, n_resamples: int, seed: int
) -> Estimate:
    """Estimate a statistic of several arrays whose entries belong together: one draw of runs serves all arrays.

    Args:
        data: Arrays of one length `[n]`.
        function: Of these arrays and `axis`.
        level: Of the interval.
        n_resamples: Number of bootstrap samples.
        seed: Of the bootstrap.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}")
    value = float(function(*data, axis=-1))
    if len(data[0]) < 2:
        return Estimate(value, np.nan, np.nan, level)
    if all(np.all(x == x[0]) for x in data):
        return Estimate(value, value, value, level)
    options = {"n_resamples": n_resamples, "confidence_level": level, "paired": True, "vectorized": True}
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(data, function, method="BCa", rng=np.random.default_rng(seed), **options)
    low, high = drawn.confidence_interval
    if np.isnan(low) or np.isnan(high):
        low, high = np.quantile(drawn.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), level)


def one_list(values: ArrayLike, name: str) -> Array:
    """Return values as a float64 array of one axis.

    Raises:
        ValueError: They have another number of axes.
    """
    try:
        x = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be one list of numbers, one per run: {error}") from error
    if x.ndim != 1:
        raise ValueError(f"{name} must be one list of numbers, one per run, got shape {x.shape}")
    return x


def finite_values(values: Array, name: str) -> Array:
    """Return the values of runs that did not diverge.

    Raises:
        ValueError: There is none.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise ValueError(f"{name} has no finite value among {len(values)} runs: nothing to describe")
    return finite


def ranked_worst(values: Array, better: str) -> Array:
    """Return values with those of diverged runs (NaN, or infinite to either side) replaced by the worst there can be.

    Args:
        values: Any shape.
        better: `"lower"` for losses, `"higher"` for accuracies.

    Raises:
        ValueError: Neither of these.
    """
    if better not in BETTER:
        raise ValueError(f"better must be one of {', '.join(BETTER)}, got {better!r}")
    return np.where(np.isfinite(values), values, np.inf if better == "lower" else -np.inf)

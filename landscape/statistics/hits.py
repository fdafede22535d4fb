r"""How many minima there are, seen and not yet seen, from how often each was hit.

`n` independent runs end in minima; minimum `i` is hit with an unknown probability `p_i` (the volume of its basin under
the law of the starting points), `X_i` times. `f_k` is the number of minima hit exactly `k` times. Minima with tiny
basins leave no trace, so that no method gives an upper limit for the number without an assumption on the volumes;
a lower limit needs none (Chao 1984).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from landscape.statistics.tables import Estimate, columns
from landscape.statistics.volumes import likelihood_limit

Array = np.ndarray
INTERVALS = ("likelihood", "log-normal", "bootstrap")


@dataclass(frozen=True)
class Unseen:
    """What the hits tell about the minima that were not found.

    Attributes:
        n_runs: Number of runs that ended in a counted minimum.
        observed: Number of distinct minima found.
        singletons: Number of minima hit once.
        doubletons: Number of minima hit twice.
        coverage: Probability that the next run ends in a minimum already found.
        number: Estimated number of all minima, a lower bound in expectation.
        interval: How the interval of `number` was made.
    """

    n_runs: int
    observed: int
    singletons: int
    doubletons: int
    coverage: Estimate
    number: Estimate
    interval: str

    def describe(self) -> str:
        """Return the result in words."""
        limit = ", no upper limit, since too few minima were hit again" if np.isinf(self.number.upper) else ""
        return (
            f"{self.observed} distinct minima in {self.n_runs} runs, {self.singletons} of them hit once, "
            f"{self.doubletons} twice; coverage {self.coverage.describe()}; "
            f"all minima by Chao1 {self.number.describe()}, {self.interval}{limit}"
        )

    def row(self) -> dict[str, object]:
        """Return the result as one row of a table."""
        counted = {name: getattr(self, name) for name in ("n_runs", "observed", "singletons", "doubletons")}
        return {**counted, **columns("coverage", self.coverage), **columns("number", self.number)}


@dataclass(frozen=True)
class Rarefaction:
    """Expected number of distinct minima against the number of runs.

    Attributes:
        size: `[m]` numbers of runs.
        expected: `[m]` expected numbers of distinct minima.
        lower: `[m]` lower end of the pointwise interval.
        upper: `[m]` upper end.
        n_runs: Number of runs there were; beyond it the curve is extrapolated.
        observed: Number of distinct minima found in them.
        level: Of the intervals.
    """

    size: Array
    expected: Array
    lower: Array
    upper: Array
    n_runs: int
    observed: int
    level: float

    def describe(self) -> str:
        """Return the ends of the curve in words."""
        last = Estimate(float(self.expected[-1]), float(self.lower[-1]), float(self.upper[-1]), self.level)
        how = "extrapolated" if self.size[-1] > self.n_runs else "rarefied"
        return f"{self.observed} distinct minima in {self.n_runs} runs; {how} to {self.size[-1]}: {last.describe()}"

    def rows(self) -> list[dict[str, object]]:
        """Return the curve as rows of a table."""
        return [
            {
                "runs": int(m),
                "minima": float(s),
                "lower": float(a),
                "upper": float(b),
                "extrapolated": bool(m > self.n_runs),
            }
            for m, s, a, b in zip(self.size, self.expected, self.lower, self.upper, strict=True)
        ]


def unseen(
    hits: ArrayLike,
    *,
    level: float = 0.95,
    interval: str = "likelihood",
    n_resamples: int = 1000,
    seed: int = 0,
) -> Unseen:
    r"""Estimate the number of minima and how much of the landscape those found cover.

    Coverage, with the doubletons' correction (Chao and Jost 2012, doi:10.1890/11-1952.1, eq. 4a):
    `C = 1 - f1/n (n-1) f1 / ((n-1) f1 + 2 f2)`. Its interval: bootstrap of the error `C* - sum of p_i over the minima
    hit` in the completed assemblage of Chao et al. 2014 (doi:10.1890/13-0133.1), in which the probabilities of the
    minima found are lowered and the rest is divided among the unseen ones. It is a little short: right in 88 to 97 % of
    repetitions at 95 % claimed.

    Number, bias-corrected Chao1: `D + (n-1)/n f1 (f1-1) / (2 (f2+1))` with `D` distinct minima. It is near the truth
    only if the rarest minima have about equal basins, and below it otherwise. Intervals:

    - `"likelihood"` (default): the lower end is that of `"log-normal"`, which holds whatever the volumes are. The
      upper end assumes that the volumes follow a gamma or a log-normal law, of unknown width: it is the largest number
      whose profile likelihood, the better of both laws, lies within `chi2(level, 2 degrees of freedom) / 2` of the
      maximum; infinity where none is ruled out, as is common below a few hundred runs. One degree of freedom would be
      the asymptotic choice; with it 8 to 10 % of the upper ends lay below the 343 minima of the three-dimensional
      Schwefel function at 200 to 350 runs, with two 2 to 4 %. In `results/statistics/unseen_minima.md` the interval
      contains the number in 96 to 100 % of repetitions at 95 % claimed, for six laws of the volumes.
    - `"log-normal"`: of Chao1 (Chao 1987, doi:10.2307/2531532). As an interval for the *number* it is much too short
      where basins are unequal (right in 22 to 44 % for the Schwefel function): it is one for Chao1's lower bound.
    - `"bootstrap"`: percentiles of Chao1 in the completed assemblage. The same reservation.

    Args:
        hits: `[minima]` how often each was hit; zeros are ignored.
        level: Of both intervals.
        interval: One of the three.
        n_resamples: Number of bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: Hits are not whole and non-negative, fewer than two runs, unknown interval, or level not in (0, 1).

    Example:
        >>> unseen([10, 4, 1, 1, 2, 1]).observed
        6
    """
    x = _hits(hits)
    _require_level(level)
    if interval not in INTERVALS:
        raise ValueError(f"interval must be one of {', '.join(INTERVALS)}, got {interval!r}")
    n, observed = int(x.sum()), len(x)
    f1, f2 = int((x == 1).sum()), int((x == 2).sum())
    p = completed_assemblage(x)
    resampled = np.random.default_rng(seed).multinomial(n, p, size=n_resamples)
    tails = np.array([1 - level, 1 + level]) / 2

    covered = _coverage(n, f1, f2)
    singles, doubles = (resampled == 1).sum(axis=1), (resampled == 2).sum(axis=1)
    errors = _coverage(n, singles, doubles) - (resampled > 0) @ p
    lower, upper = np.clip(covered - np.quantile(errors, tails[::-1]), 0, 1)
    coverage = Estimate(float(covered), float(min(lower, covered)), float(max(upper, covered)), level)

    number = observed + float(_n_unseen(n, f1, f2))
    if interval == "bootstrap":
        low, high = np.quantile((resampled > 0).sum(axis=1) + _n_unseen(n, singles, doubles), tails)
    else:
        low, high = _log_normal_interval(n, observed, f1, f2, level)
        if interval == "likelihood":
            high = max(likelihood_limit(x, level), number)
    return Unseen(n, observed, f1, f2, coverage, Estimate(number, float(low), float(high), level), interval)


def rarefaction(
    hits: ArrayLike, sizes: ArrayLike | None = None, *, level: float = 0.95, n_resamples: int = 200, seed: int = 0
) -> Rarefaction:
    r"""Compute how many distinct minima fewer runs, or more, would have found.

    For `m <= n` runs, drawn without replacement from those there are: `sum_i [1 - C(n - X_i, m) / C(n, m)]`, exact
    (Hurlbert 1971, doi:10.2307/1934145). Beyond, with `f0` unseen minima by Chao1 (Colwell et al. 2012,
    doi:10.1093/jpe/rtr044): `D + f0 [1 - (1 - f1 / (n f0 + f1))^(m - n)]`, of use up to about twice `n`. Two optimizers
    are compared at one `m` that both reach.

    The interval is normal with the standard deviation of the curve over samples of `n` runs from the completed
    assemblage (Chao et al. 2014): other runs of the same optimizer, not other subsets of these runs.

    Args:
        hits: `[minima]` how often each was hit; zeros are ignored.
        sizes: `[m]` numbers of runs, at least 1. Default: about fifty, from 1 to `2 n`, with `n` among them.
        level: Of the pointwise intervals.
        n_resamples: Number of bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: Hits as for `unseen`; a size below 1 or not whole; level not in (0, 1).

    Example:
        >>> rarefaction([3, 1, 1], [1, 5]).expected.round(6)
        array([1., 3.])
    """
    x = _hits(hits)
    _require_level(level)
    n = int(x.sum())
    m = _sizes(n) if sizes is None else np.atleast_1d(np.asarray(sizes))
    if m.ndim != 1 or not m.size or np.any(m < 1) or np.any(m != np.round(m)):
        raise ValueError(f"sizes must be whole numbers of runs, at least 1, got {sizes!r}")
    m = m.astype(np.int64)
    resampled = np.random.default_rng(seed).multinomial(n, completed_assemblage(x), size=n_resamples)
    expected = np.minimum(_curves(x[None], n, m)[0], m)  # rounding exceeds 1 for one run
    margin = stats.norm.ppf((1 + level) / 2) * _curves(resampled, n, m).std(axis=0, ddof=1)
    lower, upper = np.maximum(expected - margin, np.minimum(1, expected)), np.minimum(expected + margin, m)
    return Rarefaction(m, expected, lower, np.maximum(upper, expected), n, len(x), level)


def completed_assemblage(hits: ArrayLike) -> Array:
    r"""Return hit probabilities of the minima found and of the unseen ones (Chao et al. 2014, appendix G).

    With coverage `C`, `p_i = X_i/n (1 - w (1 - X_i/n)^n)`, with `w` such that those of the minima found sum to `C`;
    the rest is divided equally among Chao1's unseen minima.

    Args:
        hits: `[minima]` how often each was hit; zeros are ignored.

    Returns:
        `[found + unseen]` probabilities: of those found, most hit first, then of the unseen ones.
    """
    x = _hits(hits)
    n = x.sum()
    f1, f2 = int((x == 1).sum()), int((x == 2).sum())
    missing = 1 - float(_coverage(n, f1, f2))
    if missing <= 0:
        return x / n
    shares = x / n
    lowered = shares * (1 - shares) ** n
    # with very few runs the weight may exceed what a minimum has; none may become negative
    found = np.maximum(shares - missing * lowered / lowered.sum(), 0)
    n_unseen = max(1, int(np.ceil(_n_unseen(n, f1, f2))))
    p = np.concatenate([found, np.full(n_unseen, missing / n_unseen)])
    return p / p.sum()


def _hits(hits: ArrayLike) -> Array:
    x = np.asarray(hits)
    if x.ndim != 1 or x.dtype.kind not in "iuf" or not np.all(np.isfinite(x)) or np.any((x < 0) | (x != np.round(x))):
        raise ValueError("hits must be one list of whole numbers, how often each minimum was hit")
    x = np.sort(x[x > 0].astype(np.int64))[::-1]  # so that the order given does not matter to the bootstrap
    if x.sum() < 2:
        raise ValueError(f"{x.sum()} run(s) cannot tell about unseen minima: at least 2 are needed")
    return x


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}")


def _coverage(n: int, f1: ArrayLike, f2: ArrayLike) -> Array:
    single, double = np.asarray(f1, dtype=np.float64), np.asarray(f2, dtype=np.float64)
    pairs = np.where(double > 0, (n - 1) * single, (n - 1) * np.maximum(single - 1, 0))
    return 1 - single / n * pairs / (pairs + np.where(double > 0, 2 * double, 2))


def _n_unseen(n: int, f1: ArrayLike, f2: ArrayLike) -> Array:
    single, double = np.asarray(f1, dtype=np.float64), np.asarray(f2, dtype=np.float64)
    return (n - 1) / n * single * (single - 1) / (2 * (double + 1))


def _log_normal_interval(n: int, observed: int, f1: int, f2: int, level: float) -> tuple[float, float]:
    """Return Chao's interval for the number; the variance is that of the bias-corrected form."""
    k = (n - 1) / n
    unseen = float(_n_unseen(n, f1, f2))
    if unseen == 0:
        return observed, observed
    if f2 > 0:
        g = f2 + 1
        variance = unseen + k**2 * f1 * (2 * f1 - 1) ** 2 / (4 * g**2) + k**2 * f1**2 * f2 * (f1 - 1) ** 2 / (4 * g**4)
    else:
        variance = unseen + k**2 * f1 * (2 * f1 - 1) ** 2 / 4 - k**2 * f1**4 / (4 * (observed + unseen))
    factor = np.exp(stats.norm.ppf((1 + level) / 2) * np.sqrt(np.log1p(variance / unseen**2)))
    return observed + unseen / factor, observed + unseen * factor


def _sizes(n: int) -> Array:
    parts = np.geomspace(1, n, 21), np.linspace(1, n, 21), np.linspace(n, 2 * n, 21)  # close where the curve bends
    return np.unique(np.concatenate(parts).round().astype(np.int64))


def _curves(samples: Array, n: int, m: Array) -> Array:
    """Return the expected numbers `[b, m]` of distinct minima for samples of hits `[b, minima]` with `n` runs each."""
    top = int(samples.max())
    width = top + 1
    rows = np.arange(len(samples))[:, None] * width
    frequency = np.bincount((samples + rows).ravel(), minlength=len(samples) * width).reshape(len(samples), width)
    frequency[:, 0] = 0
    hit, log_factorial = np.arange(width)[:, None], special.gammaln(np.arange(n + 1) + 1.0)
    inside = np.minimum(m, n)
    left = n - hit - inside  # runs neither in the minimum nor in the subset
    missed = log_factorial[n - hit] + log_factorial[n - inside] - log_factorial[np.maximum(left, 0)] - log_factorial[n]
    curves = frequency @ np.where(left < 0, 1.0, -np.expm1(np.minimum(missed, 0)))
    f1, f2 = frequency[:, 1:2], frequency[:, 2:3] if width > 2 else np.zeros((len(samples), 1))
    unseen = _n_unseen(n, f1, f2)
    rate = np.divide(f1, n * unseen + f1, out=np.zeros_like(unseen), where=unseen > 0)
    return curves + unseen * -np.expm1((m - inside) * np.log1p(-rate))

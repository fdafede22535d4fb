"""An upper limit for the number of minima, if their hit probabilities follow a gamma or a log-normal law.

Given the number `N` of minima, their expected hits have mean `n / N` and relative standard deviation `w`, unknown.
The hits are then independent and mixed-Poisson, and the likelihood of what was seen, `D` minima with hits `k`, is

    N! / (N - D)!  P(0 | N, w)^(N - D)  prod_k P(k | N, w)^(f_k).
"""

import numpy as np
from scipy import special, stats

Array = np.ndarray
_STEP = 0.1  # of the quadrature over the standard normal variable of the log-normal law
_NODES = np.arange(-60, 61) * _STEP
_LOG_WEIGHTS = -(_NODES**2) / 2 - special.logsumexp(-(_NODES**2) / 2)


def likelihood_limit(hits: Array, level: float) -> float:
    """Return the largest number of minima that the profile likelihood does not rule out; infinity if none is.

    Args:
        hits: `[minima]` how often each was hit, positive.
        level: Numbers within `chi2(level, 2 degrees of freedom) / 2` of the largest log-likelihood are kept.
    """
    found = len(hits)
    unseen = np.concatenate([[0], np.geomspace(0.01 * found, 1000 * found, 60)])
    profile = np.maximum(*(_profile(hits, found + unseen, law) for law in (_log_gamma_mixed, _log_normal_mixed)))
    excess = profile - profile.max() + stats.chi2.ppf(level, 2) / 2
    last = int(np.flatnonzero(excess >= 0)[-1])
    if last == len(unseen) - 1:
        return np.inf
    part = excess[last] / (excess[last] - excess[last + 1])
    return float(found + (1 - part) * unseen[last] + part * unseen[last + 1])


def _profile(hits: Array, numbers: Array, law) -> Array:
    """Return the log-likelihood of each number of minima, at the best width of the law."""
    hit, frequency = np.unique(hits, return_counts=True)
    k = np.concatenate([[0], hit])
    found, mean = len(hits), hits.sum() / numbers
    combinatorial = special.gammaln(numbers + 1) - special.gammaln(numbers - found + 1)
    center, half = np.full(len(numbers), np.log(1.2)), np.log(25)
    best = np.full(len(numbers), -np.inf)
    for n_points in (15, 9, 9, 9):
        offsets = np.linspace(-half, half, n_points)
        values = np.empty((n_points, len(numbers)))
        for i, offset in enumerate(offsets):
            log_p = law(k, mean, np.exp(center + offset))
            values[i] = combinatorial + (numbers - found) * log_p[:, 0] + log_p[:, 1:] @ frequency
        center = center + offsets[values.argmax(axis=0)]
        best, half = np.maximum(best, values.max(axis=0)), offsets[1] - offsets[0]
    return best


def _log_gamma_mixed(k: Array, mean: Array, width: Array) -> Array:
    """Return `log P(k)` `[numbers, k]` of the negative binomial law."""
    shape, m = (1 / width**2)[:, None], mean[:, None]
    rising = special.gammaln(k + shape) - special.gammaln(shape) - special.gammaln(k + 1.0)
    return rising - shape * np.log1p(m / shape) - k * np.log1p(shape / m)


def _log_normal_mixed(k: Array, mean: Array, width: Array) -> Array:
    """Return `log P(k)` `[numbers, k]` of the Poisson-log-normal law."""
    s = np.sqrt(np.log1p(width**2))[:, None]
    center = np.log(mean)[:, None] - s**2 / 2
    log_rate = center + s * _NODES  # [numbers, nodes]
    base = _LOG_WEIGHTS - np.exp(log_rate)
    result = np.empty((len(mean), len(k)))
    for j, hit in enumerate(k):
        terms = np.exp(base + (hit * log_rate - special.gammaln(hit + 1.0)))
        result[:, j] = np.log(np.maximum(terms.sum(axis=1), 1e-300))
        # where the Poisson factor is narrower than the step, the sum is coarse; the density of the law itself is not
        narrow = s[:, 0] * np.sqrt(hit) * _STEP > 1
        if narrow.any():
            z = (np.log(hit) - center[narrow, 0]) / s[narrow, 0]
            result[narrow, j] = -(z**2) / 2 - np.log(s[narrow, 0] * hit * np.sqrt(2 * np.pi))
    return result

"""Which minima several optimizers share, and how alike their distributions over the minima are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from landscape.statistics.tables import Estimate, columns

Array = np.ndarray


@dataclass(frozen=True)
class Overlap:
    """Two optimizers and the minima that both found.

    Attributes:
        first: Name of an optimizer.
        second: Name of another.
        n_shared: Number of minima that both found.
        only_first: Number of minima found by `first` and not by `second`.
        only_second: The reverse.
        morisita: Morisita's index: 0 nothing in common, 1 the same hit probabilities.
    """

    first: str
    second: str
    n_shared: int
    only_first: int
    only_second: int
    morisita: Estimate

    def describe(self) -> str:
        """Return the overlap in words."""
        return (
            f"{self.first} and {self.second} share {self.n_shared} minima, {self.only_first} and {self.only_second} "
            f"found by one of them only; Morisita's index {self.morisita.describe()}"
        )


@dataclass(frozen=True)
class Shared:
    """Minima by the optimizers that found them.

    Attributes:
        minima: `[minima]` labels, in ascending order.
        groups: Names of the optimizers, in order of appearance.
        hits: `[minima, groups]` how often each was hit.
        not_counted: `[groups]` number of runs that ended in no minimum.
        overlaps: One per two optimizers.
    """

    minima: Array
    groups: tuple[str, ...]
    hits: Array
    not_counted: Array
    overlaps: tuple[Overlap, ...]

    def found_by_all(self) -> Array:
        """Return the labels of minima that every optimizer found."""
        return self.minima[np.all(self.hits > 0, axis=1)]

    def only_in(self, group: str) -> Array:
        """Return the labels of minima that only this optimizer found."""
        if group not in self.groups:
            raise ValueError(f"no group {group!r}, there are {', '.join(self.groups)}")
        alone = (self.hits > 0).sum(axis=1) == 1
        return self.minima[alone & (self.hits[:, self.groups.index(group)] > 0)]

    def describe(self) -> str:
        """Return the result in words, one pair of optimizers per line."""
        alone = ", ".join(f"{len(self.only_in(group))} by {group} only" for group in self.groups)
        head = f"{len(self.minima)} distinct minima, {len(self.found_by_all())} found by all, {alone}"
        return "\n".join([head, *map(Overlap.describe, self.overlaps)])

    def rows(self) -> list[dict[str, object]]:
        """Return one row per minimum: hits of each optimizer."""
        return [
            {"minimum": int(label), **{f"hits_{g}": int(n) for g, n in zip(self.groups, hits, strict=True)}}
            for label, hits in zip(self.minima, self.hits, strict=True)
        ]

    def overlap_rows(self) -> list[dict[str, object]]:
        """Return one row per two optimizers."""
        return [
            {
                **{name: getattr(o, name) for name in ("first", "second", "n_shared", "only_first", "only_second")},
                **columns("morisita", o.morisita),
            }
            for o in self.overlaps
        ]


def shared(labels: ArrayLike, groups: Sequence[str], *, level: float = 0.95) -> Shared:
    """Find which minima optimizers share, with an index of overlap that the number of runs does not bias much.

    Few runs share few minima, however alike the optimizers are. So the overlap is measured by Morisita's index, with
    hit probabilities `p` and `q` of two optimizers `2 sum p_i q_i / (sum p_i^2 + sum q_i^2)`: how much likelier two
    runs of both meet in one minimum than two of the same. Each sum has an unbiased estimator, `sum X Y / (n m)` and
    `sum X (X-1) / (n (n-1))` (Morisita 1959; Horn 1966, doi:10.1086/282436). It is ruled by the minima that are hit
    often; of rare ones it says little. The interval is normal with the standard error of the delete-one-run jackknife,
    cut at 0 but not at 1, which the estimate itself exceeds by chance. A bootstrap of the runs is too short here, and
    Chao and Jaccard's index (Chao et al. 2005, doi:10.1111/j.1461-0248.2004.00707.x) far too low at a hundred runs.

    Args:
        labels: `[runs]` number of the minimum; negative for runs that ended in none: counted apart.
        groups: `[runs]` name of each run's optimizer.
        level: Of the intervals; their ends are NaN where nothing is shared or an optimizer has fewer than three runs.

    Raises:
        ValueError: Lengths differ, labels are not whole, or no run ended in a minimum.

    Example:
        >>> shared([0, 0, 1, 0, 2, 2], ["sgd"] * 3 + ["adam"] * 3).only_in("adam")
        array([2])
    """
    label, group = np.asarray(labels), [str(name) for name in groups]
    if label.ndim != 1 or label.dtype.kind not in "iu" or len(label) != len(group):
        raise ValueError(
            f"labels must be one whole number per run, got {label.dtype} {label.shape} for {len(group)} runs"
        )
    if not np.any(label >= 0):
        raise ValueError("no run ended in a minimum: nothing to compare")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}")
    names = tuple(dict.fromkeys(group))
    index = np.array([names.index(name) for name in group])
    counted = label >= 0
    minima, position = np.unique(label[counted], return_inverse=True)
    hits = np.zeros((len(minima), len(names)), dtype=np.int64)
    np.add.at(hits, (position, index[counted]), 1)
    not_counted = np.bincount(index[~counted], minlength=len(names))
    pairs = []
    for i, j in combinations(range(len(names)), 2):
        x, y = hits[:, i], hits[:, j]
        numbers = int(((x > 0) & (y > 0)).sum()), int(((x > 0) & (y == 0)).sum()), int(((y > 0) & (x == 0)).sum())
        pairs.append(Overlap(names[i], names[j], *numbers, _overlap_index(x, y, level)))
    return Shared(minima, names, hits, not_counted, tuple(pairs))


def _overlap_index(x: Array, y: Array, level: float) -> Estimate:
    if min(x.sum(), y.sum()) < 2:
        return Estimate(np.nan, np.nan, np.nan, level)
    value = float(_morisita(x[None], y[None])[0])
    if not value > 0 or min(x.sum(), y.sum()) < 3:
        return Estimate(value, np.nan, np.nan, level)
    variance = _jackknife_variance(x, lambda left: _morisita(left, y[None]))
    variance += _jackknife_variance(y, lambda left: _morisita(x[None], left))
    margin = float(stats.norm.ppf((1 + level) / 2) * np.sqrt(variance))
    return Estimate(value, max(0.0, value - margin), value + margin, level)


def _jackknife_variance(hits: Array, index: Callable[[Array], Array]) -> float:
    """Return the part of an index's variance that is due to one optimizer: runs in one minimum are alike."""
    hit = np.flatnonzero(hits)
    left = np.repeat(hits[None], len(hit), axis=0)
    left[np.arange(len(hit)), hit] -= 1
    values, shares = index(left), hits[hit] / hits.sum()
    return float((hits.sum() - 1) * (shares * (values - (shares * values).sum()) ** 2).sum())


def _morisita(x: Array, y: Array) -> Array:
    """Return the index of `[b, minima]` hits; NaN if no minimum was hit twice by either."""
    n, m = x.sum(axis=1), y.sum(axis=1)
    both = 2 * (x * y).sum(axis=1) / (n * m)
    own = (x * (x - 1)).sum(axis=1) / (n * (n - 1)) + (y * (y - 1)).sum(axis=1) / (m * (m - 1))
    return np.divide(both, own, out=np.full(len(own), np.nan), where=own > 0)

"""The runs of one study or of several as one table: their groups, their seeds, and the quantities to compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from landscape.catalog import Catalog
from landscape.figures.style import is_share
from landscape.study import Study

Array = np.ndarray
_PAIRED = 0.9  # share of a group's runs that must have a partner in all groups
_DIGITS = 8  # of values at polished minima; further ones are rounding, which a test by ranks would take for real

# at minima: column of a catalog, what is better, what it is
_CURVATURE = {
    "loss_at_minimum": ("loss", "lower", "The loss with its penalty"),
    "sharpness": ("largest", None, "The largest eigenvalue of the Hessian"),
    "trace": ("trace", None, "The trace of the Hessian"),
}


class Quantity(NamedTuple):
    """A number of each run.

    Attributes:
        name: Such as `"test_loss"`.
        words: What it is and of which runs.
        better: `"lower"`, `"higher"`, or None where neither is.
        values: `[n]`, NaN where a run diverged.
        counted: `[n]` whether a run has such a value.
    """

    name: str
    words: str
    better: str | None
    values: Array
    counted: Array


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of all studies, one after the other.

    Attributes:
        studies: By name.
        groups: Names: those of the settings, with the study's before where there are several.
        group: `[n]` number of the group of each run.
        seed: `[n]`.
        initial: `[n]` by metric, before training; NaN where a study has no such metric.
        quantities: What is compared, in the order of the page.
        at_minima: Metrics at the certified minima that runs descended to, by the metric's name, without the penalty.
    """

    studies: dict[str, Study]
    groups: tuple[str, ...]
    group: Array
    seed: Array
    initial: dict[str, Array]
    quantities: tuple[Quantity, ...]
    at_minima: dict[str, Quantity]

    def values(self, quantity: Quantity) -> dict[str, Array]:
        """Return the values by group, of the runs that have one; groups without a finite value are left out."""
        found = {name: self._of(quantity, i)[1] for i, name in enumerate(self.groups)}
        return {name: values for name, values in found.items() if np.isfinite(values).any()}

    def paired(self, quantity: Quantity) -> dict[str, Array] | None:
        """Return the values by group at the seeds that all groups share, or None where runs are no pairs.

        Runs of one seed are pairs if they start from one network: if their losses before training agree. Pairs are
        taken where at least nine in ten runs of each group have a partner in every other.
        """
        chosen = [self._of(quantity, self.groups.index(name)) for name in self.values(quantity)]
        seeds = [self.seed[rows] for rows, _ in chosen]
        if len(chosen) < 2 or any(len(np.unique(each)) < len(each) for each in seeds):
            return None
        common = seeds[0]
        for each in seeds[1:]:
            common = np.intersect1d(common, each)
        if len(common) < _PAIRED * max(map(len, seeds)):
            return None
        result, starts = {}, []
        for name, (rows, values), each in zip(self.values(quantity), chosen, seeds, strict=True):
            order = np.argsort(each)[np.searchsorted(np.sort(each), common)]
            result[name] = values[order]
            starts.append(self.initial["loss"][rows[order]])
        same = all(np.allclose(start, starts[0], rtol=1e-4) for start in starts)
        return result if same else None

    def rows(self) -> list[dict[str, object]]:
        """Return one row per run, with all quantities."""
        columns = {q.name: np.where(q.counted, q.values, np.nan) for q in self.quantities}
        return [
            {
                "group": self.groups[self.group[i]],
                "seed": int(self.seed[i]),
                **{f"initial_{name}": float(values[i]) for name, values in self.initial.items()},
                **{name: float(values[i]) for name, values in columns.items()},
            }
            for i in range(len(self.seed))
        ]

    def _of(self, quantity: Quantity, group: int) -> tuple[Array, Array]:
        rows = np.flatnonzero((self.group == group) & quantity.counted)
        return rows, quantity.values[rows]


def gather_runs(studies: Mapping[str, Study], catalogs: Sequence[Catalog] = ()) -> Runs:
    """Put the runs of studies into one table, with the curvature at the minima that catalogs hold.

    Args:
        studies: By name.
        catalogs: Of some of these studies.

    Raises:
        ValueError: No study, or a catalog of another one.
    """
    if not studies:
        raise ValueError("give at least one study")
    several = len(studies) > 1
    groups: list[str] = []
    group, first, n = [], {}, 0
    for name, study in studies.items():
        group.append(study.setting + len(groups))
        groups += [f"{name}: {setting}" if several else setting for setting in study.settings]
        first[name], n = n, n + len(study)
    every = list(studies.values())
    metrics = list(dict.fromkeys(metric for study in every for metric in study.curves))
    lost = np.concatenate([study.diverged for study in every])
    has = {m: np.concatenate([np.full(len(s), m in s.curves) for s in every]) for m in metrics}
    blank = [np.full(len(study), np.nan) for study in every]
    initial = {
        m: np.concatenate([s.initial(m) if m in s.curves else no for s, no in zip(every, blank, strict=True)])
        for m in metrics
    }
    quantities = [
        Quantity(
            m,
            f"The {m.replace('_', ' ')} when training ended{', without the penalty' if m == 'loss' else ''}.",
            _better(m),
            np.concatenate([s.final(m) if m in s.curves else no for s, no in zip(every, blank, strict=True)]),
            has[m],
        )
        for m in metrics
    ]
    travelled = np.concatenate([study.travelled for study in every])
    words = "Euclidean distance in parameter space from the initial network to the trained one."
    quantities.append(Quantity("distance_travelled", words, None, travelled, ~lost))
    places = [(catalog, first[study_of(catalog, studies)]) for catalog in catalogs]
    if any(catalog.n_minima for catalog in catalogs):
        for name, (column, better, what) in _CURVATURE.items():
            words = f"{what} at the certified minimum that a run descended to."
            columns = [catalog.columns[column] for catalog in catalogs]
            quantities.append(_at_minima(places, name, words, better, columns, n))
    at_minima = {
        m: _at_minima(places, f"{m}_at_minimum", "", _better(m), [c.metrics.get(m) for c in catalogs], n)
        for m in metrics
    }
    seed = np.concatenate([study.seed for study in every])
    return Runs(dict(studies), tuple(groups), np.concatenate(group), seed, initial, tuple(quantities), at_minima)


def study_of(catalog: Catalog, studies: Mapping[str, Study]) -> str:
    """Return the name of the study whose runs a catalog holds.

    Raises:
        ValueError: None of them.
    """
    run, seed = catalog.columns["run"], catalog.columns["seed"]
    for name, study in studies.items():
        known = catalog.provenance["question"]["study"] == study.fingerprint and run.max(initial=-1) < len(study)
        if known and (study.seed[run] == seed).all() and (study.names[run] == catalog.names).all():
            return name
    raise ValueError(f"{catalog.path} holds the minima of another study than {', '.join(studies)}")


def _better(metric: str) -> str | None:
    if is_share(metric):
        return "higher"
    return "lower" if metric.endswith("loss") else None


def _at_minima(
    places: Sequence[tuple[Catalog, int]],
    name: str,
    words: str,
    better: str | None,
    columns: Sequence[Array | None],
    n: int,
) -> Quantity:
    """Return one column of each catalog for all runs; those that ended in the same minimum have the same value."""
    values, counted = np.full(n, np.nan), np.zeros(n, dtype=bool)
    for (catalog, first), found in zip(places, columns, strict=True):
        if found is None or not catalog.n_minima:
            continue
        certified = catalog.labels >= 0
        rows = first + catalog.columns["run"][certified]
        typical = found[catalog.representatives()][catalog.labels[certified]]
        values[rows] = [float(f"{value:.{_DIGITS}g}") for value in typical]
        counted[rows] = True
    return Quantity(name, words, better, values, counted)

"""The critical points that the runs of a study descend to, and which of them are the same: one HDF5 file.

    /run [n], /setting [n], /seed [n]             which run of the study; its number is that at the time
    /kind [n] text                                minimum, flat minimum, saddle, at infinity, ..., see `minima.certify`
    /loss [n], /gradient_norm [n]                 of the training objective there, float64
    /n_steps [n], /n_escapes [n], /moved [n]      of the descent: steps, saddles left on the way, distance covered
    /n_negative [n], /n_flat [n]                  eigenvalues of the Hessian below and within the tolerance, -1 unknown
    /smallest [n], /largest [n], /trace [n]       eigenvalues and trace of the Hessian
    /tol [n]                                      below which an eigenvalue counts as zero
    /metric/NAME [n]                              loss without penalty, accuracy, ... of training and test data
    /theta [n, p] float64, /buffers [n, q]
    /record/shared                                JSON text: settings, provenance, identification

It grows from parts, see `rows`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landscape.contents import Number, check_value
from landscape.rows import read_column, read_rows

KIND = "minima"
KEYS = ("setting", "seed")  # columns that tell runs apart
_COLUMNS = {
    **{"run": "iu", "setting": "iu", "seed": "iu", "kind": "U", "loss": "f", "gradient_norm": "f"},
    **{"smallest": "f", "largest": "f", "trace": "f", "n_flat": "iu"},
}
_RECORD = {"settings": [str], "provenance": dict, "identification": object}
_IDENTIFICATION = {"labels": [int], "relation": str, "tolerance": Number, "heights": [Number]}
MINIMA = ("minimum", "flat minimum")
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Catalog:
    """What runs descended to.

    Attributes:
        settings: Names of the settings of the study, in order.
        columns: `[n]` by name, see the layout of the file; `"kind"` is text.
        metrics: `[n]` by name: `"loss"` without the penalty, `"accuracy"`, `"test_loss"`, ...
        labels: `[n]` number of the distinct minimum, 0 for that with the lowest loss; -1 for what is no certified
            minimum.
        relation: What "the same" means, in words, tolerances included.
        tolerance: Relative distance up to which two minima are the same.
        heights: Distances at which further minima become one: one less for each that is at most the tolerance.
        provenance: Model, data, study, versions (JSON-able).
        path: The file it came from.
    """

    settings: tuple[str, ...]
    columns: dict[str, Array]
    metrics: dict[str, Array]
    labels: Array
    relation: str
    tolerance: float
    heights: Array
    provenance: dict
    path: Path

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> Array:
        """`[n]` the name of the settings of each run."""
        return np.array(self.settings)[self.columns["setting"]]

    @property
    def n_minima(self) -> int:
        """Number of distinct minima."""
        return int(self.labels.max(initial=-1)) + 1

    def hits(self, name: str | None = None) -> Array:
        """Return how often each distinct minimum was found, `[n_minima]`, by all runs or those of some settings."""
        chosen = self.labels if name is None else self.labels[self.names == name]
        return np.bincount(chosen[chosen >= 0], minlength=self.n_minima)

    def representatives(self) -> Array:
        """Return the row of the member of each distinct minimum that has the lowest loss, `[n_minima]`."""
        loss = self.columns["loss"]
        members = [np.flatnonzero(self.labels == label) for label in range(self.n_minima)]
        return np.array([rows[np.argmin(loss[rows])] for rows in members], dtype=int)

    def count_at(self, tolerances: Array) -> Array:
        """Return the number of distinct minima for other tolerances, at most 100 times that used (single linkage)."""
        n = int((self.labels >= 0).sum())
        return n - np.searchsorted(np.sort(self.heights), tolerances, side="right")

    def kinds(self, name: str | None = None) -> dict[str, int]:
        """Return how many runs ended at each kind of point, the most frequent first."""
        chosen = self.columns["kind"] if name is None else self.columns["kind"][self.names == name]
        kinds, counts = np.unique(chosen, return_counts=True)
        return {str(kinds[i]): int(counts[i]) for i in np.argsort(-counts, kind="stable")}

    def table(self) -> list[dict]:
        """Return a row for each distinct minimum: losses, curvature, and how often which settings found it."""
        rows = []
        for label, i in enumerate(self.representatives()):
            row = {"minimum": label, "kind": str(self.columns["kind"][i]), "objective": float(self.columns["loss"][i])}
            row |= {name.replace("_", " "): float(values[i]) for name, values in self.metrics.items()}
            row |= {
                "gradient norm": float(self.columns["gradient_norm"][i]),
                "smallest eigenvalue": float(self.columns["smallest"][i]),
                "largest eigenvalue": float(self.columns["largest"][i]),
                "trace": float(self.columns["trace"][i]),
                "flat directions": int(self.columns["n_flat"][i]),
                "hits": int((self.labels == label).sum()),
            }
            row |= {f"hits of {name}": int(self.hits(name)[label]) for name in self.settings}
            rows.append(row)
        return rows

    def describe(self) -> str:
        """Say what was found in a few lines."""
        certified = int((self.labels >= 0).sum())
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds().items())
        return f"{len(self)} runs: {kinds}\n{self.n_minima} distinct minima among {certified}; {self.relation}"

    def thetas(self, rows: Array | slice = slice(None)) -> Array:
        """Read the critical points, `[n, p]` float64, of all rows or of those chosen."""
        chosen = np.arange(len(self))[rows]
        return read_column(self.path, KIND, "theta", {name: self.columns[name][chosen] for name in KEYS})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Catalog":
        """Read a catalog.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, no catalog, or not finished.
        """
        columns, record = read_rows(path, KIND, but=("theta", "buffers"), pattern=_RECORD)
        found = record["identification"]
        if found is None:
            raise ValueError(f"{path} is not finished: run the same command again to go on")
        check_value(found, _IDENTIFICATION, f"{path}: identification")
        for name, kinds in _COLUMNS.items():
            if name not in columns or columns[name].ndim != 1 or columns[name].dtype.kind not in kinds:
                raise ValueError(f"{path} is damaged: its column {name} is missing or of another type")
        if len(found["labels"]) != len(columns["run"]):
            raise ValueError(f"{path} is not finished: run the same command again to go on")
        labels, setting = found["labels"], columns["setting"]
        if {*labels} - {-1} != {*range(max(labels, default=-1) + 1)}:
            raise ValueError(f"{path} is damaged: its minima are not numbered 0, 1, 2, ...")
        if len(setting) and not 0 <= setting.min() <= setting.max() < len(record["settings"]):
            raise ValueError(f"{path} is damaged: there are runs of settings it does not have")
        return cls(
            settings=tuple(record["settings"]),
            metrics={n.removeprefix("metric/"): columns.pop(n) for n in list(columns) if n.startswith("metric/")},
            columns=columns,
            labels=np.array(found["labels"], dtype=int),
            relation=found["relation"],
            tolerance=found["tolerance"],
            heights=np.array(found["heights"], dtype=np.float64),
            provenance=record["provenance"],
            path=Path(path),
        )

"""A restart study: many trainings of one network from many seeds by several optimizers, in one HDF5 file.

    /setting [n] int64, /seed [n] int64     which settings, see `Study.settings`, and which seed
    /steps [n] int64, /diverged [n] bool    training steps done, and whether the loss stopped being finite
    /gradient_norm [n], /travelled [n]      norm of the gradient at the end; distance from the initial parameters
    /curve/NAME [n, e]                      loss and metrics during training; NaN where there was no evaluation
    /theta [n, p], /buffers [n, q]          the networks at the end
    /record/shared                          JSON text: settings, provenance, fingerprint

It grows from parts, see `rows`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landscape.rows import RowsWriter, find_files, parts_folder, read_column, read_rows
from landscape.storage import without_known_code

KIND = "study"
Array = np.ndarray
_COLUMNS = {
    **{"setting": "iu", "seed": "iu", "steps": "iu", "diverged": "b"},
    **{"gradient_norm": "f", "travelled": "f"},
}
_RECORD = {
    "settings": [{"name": str, "epochs evaluated": [int], "batch_size?": (int, type(None)), "options?": dict}],
    "provenance": dict,
    "fingerprint": {"*": object},
}


@dataclass(frozen=True, eq=False)
class Study:
    """Many runs of one network.

    Attributes:
        settings: How each group of runs was trained (optimizer, learning rate, ...), by its name, in order; with
            `"epochs evaluated"`, the epochs that the columns of its curves belong to.
        setting: `[n]` number of the settings of each run.
        seed: `[n]` of initial parameters and batch order.
        steps: `[n]` training steps.
        diverged: `[n]` whether the loss stopped being finite.
        gradient_norm: `[n]` Euclidean norm of the gradient of the training objective at the end.
        travelled: `[n]` Euclidean distance from the parameters before training to those at the end.
        curves: `[n, e]` by metric name, `"loss"` first, before training in column 0; NaN after the last evaluation.
        provenance: Model, data, versions (JSON-able).
        fingerprint: What identifies network, data and loss, by part.
        path: The file it came from.
    """

    settings: dict[str, dict]
    setting: Array
    seed: Array
    steps: Array
    diverged: Array
    gradient_norm: Array
    travelled: Array
    curves: dict[str, Array]
    provenance: dict
    fingerprint: dict[str, str]
    path: Path

    def __len__(self) -> int:
        return len(self.seed)

    @property
    def names(self) -> Array:
        """`[n]` the name of the settings of each run."""
        return np.array(list(self.settings))[self.setting]

    def final(self, metric: str = "loss") -> Array:
        """Return the last value of a metric for each run, `[n]` float64; NaN where it diverged.

        Raises:
            ValueError: There is no such metric.
        """
        curve = self._curve(metric)
        columns = np.array([len(s["epochs evaluated"]) for s in self.settings.values()], dtype=int)[self.setting]
        return np.where(self.diverged, np.nan, curve[np.arange(len(curve)), columns - 1])

    def initial(self, metric: str = "loss") -> Array:
        """Return the value of a metric before training, `[n]` float64."""
        return self._curve(metric)[:, 0]

    def groups(self, metric: str = "loss") -> dict[str, Array]:
        """Return the last values of a metric by the name of the settings."""
        values, names = self.final(metric), self.names
        return {name: values[names == name] for name in self.settings}

    def thetas(self, runs: Array | slice = slice(None)) -> Array:
        """Read the parameters at the end, `[n, p]`, of all runs or of those chosen by their numbers.

        Raises:
            FileNotFoundError, ValueError: The file is gone, damaged, or has not these runs any more.
        """
        return self._column("theta", runs)

    def buffers(self, runs: Array | slice = slice(None)) -> Array:
        """Read the flat buffers at the end, `[n, q]`; see `thetas`."""
        return self._column("buffers", runs)

    def _column(self, name: str, runs: Array | slice) -> Array:
        chosen = np.arange(len(self))[runs]
        return read_column(self.path, KIND, name, {"setting": self.setting[chosen], "seed": self.seed[chosen]})

    def _curve(self, metric: str) -> Array:
        if metric not in self.curves:
            raise ValueError(f"no metric {metric!r}; the study has {', '.join(self.curves)}")
        return self.curves[metric]

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Study":
        """Read a study, finished or not; the networks stay on the disk until `thetas` is called.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged or no study.
        """
        columns, record = read_rows(path, KIND, but=("theta", "buffers"), pattern=_RECORD)
        settings = {entry.pop("name"): entry for entry in record["settings"]}
        curves = {n.removeprefix("curve/"): columns.pop(n) for n in list(columns) if n.startswith("curve/")}
        if problem := _problem(settings, curves, columns):
            raise ValueError(f"{path} is damaged: {problem}")
        return cls(
            settings=settings,
            curves=curves,
            provenance=record["provenance"],
            fingerprint=without_known_code(record["fingerprint"]),
            path=Path(path),
            **{name: columns[name] for name in _COLUMNS},
        )


def _problem(settings: Mapping[str, dict], curves: Mapping[str, Array], columns: Mapping[str, Array]) -> str | None:
    """Say what of a study does not fit together; None if all does."""
    for name, kinds in _COLUMNS.items():
        if name not in columns or columns[name].ndim != 1 or columns[name].dtype.kind not in kinds:
            return f"its column {name} is missing or of another type"
    if next(iter(curves), None) != "loss" or any(c.ndim != 2 or c.dtype.kind != "f" for c in curves.values()):
        return f"its curves are {', '.join(curves) or 'none'}, expected numbers [n, e], loss first"
    width = min(curve.shape[1] for curve in curves.values())
    for name, entry in settings.items():
        if not 1 <= len(entry["epochs evaluated"]) <= width:
            return f"{name} was evaluated {len(entry['epochs evaluated'])} times, but its curves are {width} long"
    setting = columns["setting"]
    if len(setting) and not 0 <= setting.min() <= setting.max() < len(settings):
        return f"it has {len(settings)} settings, but runs of the numbers {setting.min()} to {setting.max()}"
    return None


class StudyWriter(RowsWriter):
    """Add runs to a study.

    Args:
        path: The file; an unfinished or finished study there is extended.
        settings: By name; those of the file come first and stay.
        provenance: Model, data, versions (JSON-able).
        fingerprint: What identifies network, data and loss, by part.

    Attributes:
        number: Of the settings, by name.
        done: Name of the settings and seed of all runs that are there.

    Raises:
        ValueError: The file holds the study of another network or other data, or other settings by the same name.
        BlockingIOError: Another process is writing the file.
    """

    def __init__(
        self, path: str | os.PathLike, settings: Mapping[str, dict], provenance: dict, fingerprint: Mapping[str, str]
    ) -> None:
        super().__init__(path, KIND, None)  # first, so that no other process adds runs after they were read
        settings = dict(settings)
        self.done: set[tuple[str, int]] = set()
        try:
            if find_files(self.path, KIND):
                old = Study.load(path)
                _check_extends(self.path, old, settings, fingerprint)
                settings = {**old.settings, **settings}
                self.done = set(zip(old.names.tolist(), old.seed.tolist(), strict=True))
        except BaseException:
            self.close()
            raise
        self.number = {name: i for i, name in enumerate(settings)}
        entries = [{"name": name, **entry} for name, entry in settings.items()]
        self.record = {"settings": entries, "provenance": provenance, "fingerprint": dict(fingerprint)}


def _check_extends(path: Path, old: Study, settings: Mapping[str, dict], fingerprint: Mapping[str, str]) -> None:
    differing = [key for key in fingerprint if old.fingerprint.get(key) != fingerprint[key]]
    if differing:
        raise ValueError(
            f"{path} holds another study; what differs: {', '.join(differing)}. Choose another file name, or delete it "
            f"and {parts_folder(path).name} to start anew"
        )
    for name in old.settings.keys() & settings.keys():
        mine, theirs = settings[name], old.settings[name]
        if wrong := sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)):
            raise ValueError(
                f"{path} has runs named {name!r} with other settings ({', '.join(wrong)}): choose another name"
            )

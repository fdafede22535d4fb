"""What every lecture figure is given, and what it returns."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from landscape.data import Dataset, load
from landscape.storage import replacing

CHOICES = ("found", "digits", "download")


@dataclass(frozen=True)
class Drawn:
    """A lecture figure.

    Attributes:
        figures: By a short name in lower case, the main one first; each has a title of its own.
        caption: Two or three sentences: what is to be seen, with what settings and data, the number that proves it.
        numbers: What was measured (JSON-able), by the words that name it.
    """

    figures: dict[str, go.Figure]
    caption: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How a figure is to be made.

    Attributes:
        folder: For what the figure stores to continue from: surfaces, studies, trajectories. It exists.
        quick: Small: does everything run?
        data: `"found"`: each figure's own data set where its files are, else digits. `"digits"`: those that ship with
            scikit-learn, everywhere. `"download"`: what is not found is downloaded.
        report: Called with the share of the work that is done, 0 to 1.
    """

    folder: Path
    quick: bool = False
    data: str = "found"
    report: Callable[[float], None] = field(default=lambda share: None)

    def choose(self, wanted: str) -> str:
        """Return the name of the data set to use: the one wanted, or `"digits"`. A caption has to say which."""
        if self.data == "digits":
            return "digits"
        try:
            load(wanted, "test", limit=1, download=self.data == "download")
            load(wanted, limit=1, download=self.data == "download")
        except FileNotFoundError:
            if self.data == "download":
                raise
            return "digits"
        return wanted

    def load(self, wanted: str, split: str = "train", limit: int | None = None) -> Dataset:
        """Load the data set wanted, or digits, see `choose`; its `name` says which."""
        return load(self.choose(wanted), split, limit=limit)

    def keep(self, name: str, settings: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """Return what was computed with the same settings before, or compute and store it.

        Args:
            name: Of the file, in `folder`.
            settings: All that the value depends on (JSON-able).
            compute: Returns the value (JSON-able; NaN and infinity are stored as such).
        """
        path = self.folder / f"{name}.json"
        settings = json.loads(json.dumps(settings))
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                if kept["settings"] == settings:
                    return kept["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error}): remove it, and it is computed anew") from error
        value = json.loads(json.dumps(compute()))
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"settings": settings, "value": value}), encoding="utf-8")
        return value

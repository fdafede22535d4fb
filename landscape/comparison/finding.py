"""One paragraph of what is to be said about a study, with its figure and its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from landscape.statistics import Estimate

Row = Mapping[str, object]
CHAPTERS = (
    "What was run",
    "How the runs ended",
    "What they found",
    "How the settings compare",
    "How the minima are connected",
)


@dataclass(frozen=True)
class Finding:
    """A result of a study.

    Attributes:
        chapter: One of `CHAPTERS`.
        name: Short, good for a file.
        title: Its heading.
        text: The method and the number that proves it.
        figure: A plotly figure.
        shown: Rows of the table on the page, as text by heading.
        tables: What lies behind figure and table, all digits and all rows, by name of a CSV file.
        summary: A line or a few for the terminal.
    """

    chapter: str
    name: str
    title: str
    text: str
    figure: go.Figure | None = None
    shown: Sequence[Mapping[str, str]] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    summary: str = ""


def number(value: float, digits: int = 4) -> str:
    """Return a number as text; what is not known is a dash."""
    return "-" if value != value else f"{value:.{digits}g}"


def with_interval(estimate: Estimate, digits: int = 3) -> str:
    """Return an estimate as text, `"0.12 (0.1 to 0.15)"`."""
    if estimate.lower != estimate.lower:
        return number(estimate.value, digits)
    upper = "no limit" if estimate.upper == float("inf") else number(estimate.upper, digits)
    return f"{number(estimate.value, digits)} ({number(estimate.lower, digits)} to {upper})"


def p_value(p: float) -> str:
    """Return a p-value as text, with its relation."""
    if p != p:
        return "no test"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"

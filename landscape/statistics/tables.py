"""Results as numbers: an estimate with its interval, and tables that a spreadsheet reads."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from landscape.storage import replacing

Row = Mapping[str, object]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The estimate.
        lower: Lower end of the interval; NaN where there is none.
        upper: Upper end; infinity where the data set no upper limit.
        level: The share of repetitions in which such an interval is meant to contain the truth.
    """

    value: float
    lower: float
    upper: float
    level: float = 0.95

    def describe(self) -> str:
        """Return the estimate in words: `"12.3 (95 % interval 10.1 to 15.9)"`."""
        return f"{self.value:.4g} ({100 * self.level:.4g} % interval {self.lower:.4g} to {self.upper:.4g})"


def columns(name: str, estimate: Estimate) -> dict[str, float]:
    """Return an estimate as three entries of a table's row: `name`, `name_lower`, `name_upper`."""
    return {name: estimate.value, f"{name}_lower": estimate.lower, f"{name}_upper": estimate.upper}


def write_csv(path: str | os.PathLike, rows: Sequence[Row]) -> None:
    """Write a table as CSV (UTF-8, header first); floats keep all their digits.

    Args:
        path: The file to write; an existing one is replaced as a whole.
        rows: One mapping per row, all with the same keys, which become the header in their order.

    Raises:
        ValueError: There is no row, or the keys differ between rows.

    Example:
        >>> write_csv("pairs.csv", compare({"sgd": a, "adam": b}).rows())  # doctest: +SKIP
    """
    if not rows:
        raise ValueError("a table needs at least one row")
    header = list(rows[0])
    for i, row in enumerate(rows):
        if set(row) != set(header):
            raise ValueError(f"row {i} has the columns {', '.join(row)}, the first row {', '.join(header)}")
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)

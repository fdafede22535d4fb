"""Estimators and tests: unseen minima, comparisons between optimizers, with intervals.

Works on plain numbers, such as those of a study of many restarts, and needs no torch.
"""

from landscape.statistics.comparison import Comparison, Pair, adjust, compare
from landscape.statistics.hits import Rarefaction, Unseen, rarefaction, unseen
from landscape.statistics.overlap import Overlap, Shared, shared
from landscape.statistics.samples import Sample, bootstrap, summarize
from landscape.statistics.tables import Estimate, write_csv
from landscape.statistics.variation import Spread, Trend, spread, trend

__all__ = [
    "Comparison",
    "Estimate",
    "Overlap",
    "Pair",
    "Rarefaction",
    "Sample",
    "Shared",
    "Spread",
    "Trend",
    "Unseen",
    "adjust",
    "bootstrap",
    "compare",
    "rarefaction",
    "shared",
    "spread",
    "summarize",
    "trend",
    "unseen",
    "write_csv",
]

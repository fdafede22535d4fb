"""Minima, maxima, saddles, basins and persistence of a stored surface of any dimension."""

from landscape.topology.analysis import analyze
from landscape.topology.descents import Descents, descend, random_starts
from landscape.topology.result import Extrema, Saddles, Topology
from landscape.topology.tree import NONE, OUTSIDE

__all__ = ["NONE", "OUTSIDE", "Descents", "Extrema", "Saddles", "Topology", "analyze", "descend", "random_starts"]

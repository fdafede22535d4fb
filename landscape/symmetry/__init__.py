"""The symmetries of a network, derived from its forward pass, and the alignment of networks by them."""

from landscape.symmetry.alignment import Matcher, align, match
from landscape.symmetry.group import Symmetries, Transformation, symmetries

__all__ = ["Matcher", "Symmetries", "Transformation", "align", "match", "symmetries"]

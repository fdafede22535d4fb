"""Fill a surface: the loss on a grid of a slice.

`evaluate` asks a plan for values at coordinates; the reference plan serves every module, faster ones take its place
behind the same call.
"""

from landscape.evaluation.grid import coarse_to_fine, grid_axis
from landscape.evaluation.reference import reference_plan
from landscape.evaluation.run import evaluate

__all__ = ["coarse_to_fine", "evaluate", "grid_axis", "reference_plan"]

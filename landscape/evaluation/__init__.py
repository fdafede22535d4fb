"""Fill a surface: the loss on a grid of a slice.

`evaluate` asks a plan for values at coordinates. The reference plan serves every module; the dense and the layered plan
are exact rewrites that are matched to the network, tuned and checked on the real data, and take its place behind the
same call.
"""

from landscape.evaluation.grid import coarse_to_fine, grid_axis
from landscape.evaluation.plan import Plan, make_plan
from landscape.evaluation.run import evaluate

__all__ = ["Plan", "coarse_to_fine", "evaluate", "grid_axis", "make_plan"]

"""Make the lecture's figures L1 to L12 and the page that shows them.

    python scripts/lecture_figures.py [--only L7 L8] [--data found|digits|download] [--quick] [--out results/lecture]

Every figure is computed. What takes long is stored below `OUT/_runs` and continued after a stop. Written are
`index.html` with all figures that have been made, each figure as HTML, PNG and SVG, and `lecture.json` and
`lecture.md` with captions and numbers.
"""

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import plotly.graph_objects as go
import plotly.io as pio
from lecture.setting import CHOICES, Drawn, Setting
from tqdm import tqdm

from landscape import report
from landscape.figures import browser_missing, save_figures
from landscape.storage import replacing

MODULES = {
    "L1": "activations",
    "L2": "step_cost",
    "L3": "vanishing_gradient",
    "L4": "computational_graph",
    "L5": "local_gradients",
    "L6": "differentiation",
    "L7": "two_landscapes",
    "L8": "convexity",
    "L9": "alike_minima",
    "L10": "optimizers",
    "L11": "regularization",
    "L12": "layer_families",
}

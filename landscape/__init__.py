"""Loss landscapes of PyTorch networks: from a trained network to a surface you can look at.

Importing this package imports nothing heavy: every public name is loaded on first use, so that stored
surfaces can be read, analysed and drawn on a machine without torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("landscape")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

# public name -> module that defines it
_HOME = {
    "Objective": "landscape.objective",
    "gradient_norms": "landscape.gradients",
    "activation_slopes": "landscape.gradients",
    "computational_graph": "landscape.backpropagation",
    "compare_gradients": "landscape.differences",
    "difference_gradient": "landscape.differences",
    "Recorder": "landscape.recorder",
    "Trajectory": "landscape.trajectory",
    "train": "landscape.training",
    "train_many": "landscape.ensemble",
    "random_directions": "landscape.directions",
    "pca_directions": "landscape.directions",
    "directions_between": "landscape.directions",
    "given_directions": "landscape.directions",
    "eigenvector_directions": "landscape.curvature",
    "Hessian": "landscape.hessian",
    "extreme_eigenpairs": "landscape.curvature",
    "trace": "landscape.curvature",
    "spectral_density": "landscape.curvature",
    "curvature_map": "landscape.curvature",
    "Surface": "landscape.surface",
    "evaluate": "landscape.evaluation",
    "audit": "landscape.evaluation.audit",
    "run_restarts": "landscape.restarts",
    "Study": "landscape.study",
    "analyze": "landscape.topology",
    "index": "landscape.critical",
    "polish": "landscape.minima.polish",
    "polish_many": "landscape.minima.polish",
    "certify": "landscape.minima.certify",
    "find_minimum": "landscape.minima.certify",
    "find_minima": "landscape.minima.certify",
    "symmetries": "landscape.symmetry",
    "align": "landscape.symmetry",
    "barrier": "landscape.connectivity",
    "barrier_matrix": "landscape.connectivity",
    "identify": "landscape.minima.identify",
    "survey_minima": "landscape.minima.survey",
    "Catalog": "landscape.catalog",
    "compare_studies": "landscape.comparison",
    "findings": "landscape.sanity",
    "plot": "landscape.figures",
    "save_figures": "landscape.figures",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

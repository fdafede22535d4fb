"""The main job in one function: train on embedded data, evaluate four surfaces, draw them, write a page."""

import logging
import os
import time
from pathlib import Path

from landscape import figures, report
from landscape.data import load
from landscape.directions import directions_between, pca_directions, random_directions
from landscape.evaluation import evaluate
from landscape.models import build
from landscape.objective import Objective
from landscape.training import train
from landscape.trajectory import Trajectory

log = logging.getLogger(__name__)

_NETWORK = {"input_shape": [1, 8, 8], "classes": 10, "activation": "relu"}
_CAPTIONS = {
    "training": "LeNet on the 8 x 8 digits of scikit-learn, trained twice from one initialization: by Adam and by "
    "gradient descent with momentum.",
}
_OPTIMIZERS = {"adam": 0.003, "momentum": 0.03}  # learning rates


def demo(folder: str | os.PathLike = "results/demo", progress: bool = True) -> Path:
    """Train two networks on the embedded digits and draw the landscape around them.

    LeNet is trained twice from one initialization, by Adam and by gradient descent with momentum. Evaluated are a line
    between the two, a plane in filter-normalized random directions, the plane of the principal components of both
    trajectories, and a volume in three random directions. Started again, it continues where it stopped.

    Args:
        folder: For the HDF5 files, the figures (HTML; PNG and SVG where a browser is found) and `index.html`.
        progress: Show progress bars.

    Returns:
        Path of `index.html`.
    """
    folder = Path(folder)
    begin = time.perf_counter()
    data, test = load("digits"), load("digits", "test")
    start = build("lenet", seed=0, **_NETWORK)
    runs = {
        name: train(
            start,
            data,
            test=test,
            optimizer=name,
            learning_rate=rate,
            batch_size=64,
            epochs=15,
            folder=folder / "runs" / name,
            name="lenet",
            arguments=_NETWORK,
            record_every=4,
            record_unit="step",
            progress=progress,
        )
        for name, rate in _OPTIMIZERS.items()
    }
    trajectories = {name: Trajectory.load(folder / "runs" / name / "trajectory.h5") for name in runs}
    objective = Objective(runs["adam"].model, data, test=test)
    jobs = [
        ("line", directions_between(objective, runs["momentum"].model), (81,), {}),
        ("random_plane", random_directions(objective, 2, seed=0), (35, 35), {}),
        ("pca_plane", pca_directions(objective, list(trajectories.values())), (41, 33), trajectories),
        ("volume", random_directions(objective, 3, seed=0), (13, 13, 13), {}),
    ]
    drawn = {"training": figures.plot_history({name: run.history for name, run in runs.items()})}
    sections = [report.Section("Training", _CAPTIONS["training"], drawn["training"])]
    for name, slice, resolution, shown in jobs:
        path = folder / f"{name}.h5"
        surface = evaluate(objective, slice, resolution=resolution, trajectories=shown, path=path, progress=progress)
        scale = "linear" if name == "line" else "log"
        kinds = figures.figures_of(surface, scale=scale)
        drawn |= {name if kind == name else f"{name}_{kind}": figure for kind, figure in kinds.items()}
        title = name.replace("_", " ").replace("pca", "PCA").capitalize().replace("Pca", "PCA")
        sections += report.surface_sections(surface, title, scale)
    files = [(path.name, path.name) for path in figures.save_figures(drawn, folder)]
    missing = figures.browser_missing()
    if missing:
        log.info(missing)
    seconds = time.perf_counter() - begin
    caption = f"Made in {seconds:.0f} s. The .h5 files hold the numbers: see `landscape info FILE`."
    sections.append(
        report.Section("Files", caption, links=[*files, *((f"{job[0]}.h5", f"{job[0]}.h5") for job in jobs)])
    )
    return report.page("The landscape of a small network", sections, folder / "index.html")

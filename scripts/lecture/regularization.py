"""Overfitting, and what a penalty on the weights does about it.

A network with many more parameters than there are training images is trained from several seeds (full batches, Adam)
with weight penalties `penalty/2 ||theta||^2` of several strengths, none among them. Shown are training and validation
cost without the penalty and with the strength that ends at the lowest validation cost, and the surfaces around one
network of each kind, on random filter-normalized planes (Li et al. 2018, arXiv:1712.09913). All costs are those of the
data: the penalty itself is never added, so that both kinds are compared by the same quantity on one scale.
"""

from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import nn

from landscape.data import Dataset
from landscape.directions import random_directions
from landscape.evaluation import evaluate
from landscape.figures import plot_comparison, plot_loss_curves
from landscape.models import build
from landscape.objective import Objective
from landscape.restarts import run_restarts
from landscape.statistics import bootstrap
from landscape.study import Study
from landscape.surface import Surface
from lecture.setting import Drawn, Setting

TITLE = "Regularization"
SECONDS = (87.0, 4.5)

LABEL = "cost of the data (nats)"
WIDTH = 64
EVERY = 5  # epochs between two evaluations
SEED = 0  # of the network and the plane of the surfaces


def draw(setting: Setting) -> Drawn:
    """Train with penalties of several strengths, and evaluate two surfaces."""
    penalties = (0.0, 0.03) if setting.quick else (0.0, 0.003, 0.01, 0.03, 0.1)
    runs, epochs, resolution = (3, 150, 15) if setting.quick else (10, 600, 41)
    training, validation = setting.load("mnist", limit=300), setting.load("mnist", "test", limit=2000)
    make = partial(network, training)
    settings = {"adam": {"learning_rate": 2e-3, "epochs": epochs, "evaluate_every": EVERY}}
    studies: dict[float, Study] = {}
    for i, penalty in enumerate(penalties, 1):
        path = setting.folder / f"penalty_{penalty:g}.h5"
        studies[penalty] = run_restarts(
            make, training, path, settings=settings, seeds=runs, test=validation, penalty=penalty, progress=False
        )
        setting.report(0.8 * i / len(penalties))
    best = min(penalties[1:], key=lambda penalty: float(np.median(studies[penalty].final("test_loss"))))
    chosen = {named(penalty): studies[penalty] for penalty in (0.0, best)}
    surfaces = {}
    for i, (name, study) in enumerate(chosen.items(), 1):
        model = make(SEED)
        theta = torch.from_numpy(study.thetas([study.seed.tolist().index(SEED)])[0])
        nn.utils.vector_to_parameters(theta, model.parameters())
        objective = Objective(model, training, test=validation)
        plane, path = random_directions(objective, seed=SEED), setting.folder / f"surface_{i}.h5"
        surfaces[name] = evaluate(objective, plane, resolution=resolution, path=path, progress=False)
        setting.report(0.8 + 0.1 * i)
    numbers = measure(studies, chosen, surfaces)
    parameters = sum(tensor.numel() for tensor in make(SEED).parameters())
    numbers["settings"] = {
        **{"data": training.name, "training images": len(training), "validation images": len(validation)},
        **{"parameters": parameters, "hidden units": WIDTH, "runs per penalty": runs, "epochs": epochs},
        **{"penalties": list(penalties), "best penalty": best},
    }
    figures = {
        "cost": draw_costs(chosen),
        "validation": draw_strengths(studies),
        "training_surface": draw_surfaces(surfaces, "loss", "training cost"),
        "validation_surface": draw_surfaces(surfaces, "test_loss", "validation cost"),
    }
    return Drawn(figures, caption(numbers), numbers)


def network(data: Dataset, seed: int) -> nn.Module:
    """Return an untrained network with one hidden layer of ReLU units."""
    shape = list(data.inputs.shape[1:])
    return build("mlp", seed=seed, input_shape=shape, classes=data.classes, widths=[WIDTH], activation="relu")


def measure(studies: dict[float, Study], chosen: dict[str, Study], surfaces: dict[str, Surface]) -> dict[str, Any]:
    """Return the numbers: medians over the seeds, what the penalty changes, and whether the claims hold."""
    groups: dict[str, dict[str, Any]] = {}
    for name, study in chosen.items():
        curve = study.curves["test_loss"]
        final, surface = study.final("test_loss"), surfaces[name]
        center = tuple(int(np.abs(axis).argmin()) for axis in surface.axes.values())
        values = {
            "training cost, final": study.final("loss"),
            "validation cost, lowest": curve.min(axis=1),
            "epoch of the lowest validation cost": epochs_of(study)[curve.argmin(axis=1)],
            "validation cost, final": final,
            "gap, final": final - study.final("loss"),
            "training accuracy, final": study.final("accuracy"),
            "validation accuracy, final": study.final("test_accuracy"),
            "norm of the parameters": np.linalg.norm(study.thetas().astype(np.float64), axis=1),
        }
        groups[name] = {key: float(np.median(value)) for key, value in values.items()} | {
            f"{label}, {where}": float(value)
            for label, metric in (("training cost", "loss"), ("validation cost", "test_loss"))
            for where, value in (
                ("at the network of the surface", surface.metric(metric)[center]),
                ("lowest of the surface", surface.metric(metric).min()),
                ("highest of the surface", surface.metric(metric).max()),
            )
        }
    without, with_ = chosen.values()  # paired by seed
    both = np.array([study.final("test_loss") for study in (without, with_)])
    accuracy = np.array([study.final("test_accuracy") for study in (without, with_)])
    saved, gained = bootstrap(both[0] - both[1]), bootstrap(accuracy[1] - accuracy[0])
    lowest, final = without.curves["test_loss"].min(axis=1), both[0]
    return {
        "groups": groups,
        "final validation cost by penalty": {
            f"{penalty:g}": float(np.median(study.final("test_loss"))) for penalty, study in studies.items()
        },
        "validation cost saved": {"median": saved.value, "lower": saved.lower, "upper": saved.upper},
        "validation accuracy gained": {"median": gained.value, "lower": gained.lower, "upper": gained.upper},
        "claims": {
            "without the penalty the network fits all training images": bool((without.final("accuracy") == 1).all()),
            "without the penalty the validation cost rises by over 10 % after its lowest, in every run": bool(
                (final > 1.1 * lowest).all()
            ),
            "with the penalty the final validation cost is lower, in every run": bool((both[1] < both[0]).all()),
            "with the penalty it is lower even than the lowest without, in every run": bool((both[1] < lowest).all()),
            "with the penalty it stays within 10 % of its lowest, in every run": bool(
                (both[1] <= 1.1 * with_.curves["test_loss"].min(axis=1)).all()
            ),
            "with the penalty the validation accuracy is higher, in the median": gained.value > 0,
        },
    }


def draw_costs(chosen: dict[str, Study]) -> go.Figure:
    """Draw training and validation cost against epochs, without and with the penalty."""
    curves = {
        f"{split}, {name}": (epochs_of(study), study.curves[metric])
        for name, study in chosen.items()
        for split, metric in (("training", "loss"), ("validation", "test_loss"))
    }
    figure = plot_loss_curves(curves, scale="log")
    return figure.update_layout(title_text="Training and validation cost").update_yaxes(title_text=LABEL)


def draw_strengths(studies: dict[float, Study]) -> go.Figure:
    """Draw the validation cost against epochs by the strength of the penalty."""
    curves = {named(penalty): (epochs_of(study), study.curves["test_loss"]) for penalty, study in studies.items()}
    figure = plot_loss_curves(curves, scale="log")
    return figure.update_layout(title_text="Validation cost by penalty").update_yaxes(title_text=LABEL)


def draw_surfaces(surfaces: dict[str, Surface], metric: str, what: str) -> go.Figure:
    """Draw a metric around both networks, on one scale."""
    figure = plot_comparison(surfaces, metric, "log")
    figure.update_layout(title_text=f"{what.capitalize()} near the network")
    figure.update_coloraxes(colorbar_title_text=f"{what} (nats)")
    figure.update_xaxes(title_text="direction 1", tickangle=0, nticks=3)
    figure.update_yaxes(title_text="direction 2", col=1)
    return figure.update_yaxes(showticklabels=False, col=2)  # those of the left panel, no room on a phone


def epochs_of(study: Study) -> np.ndarray:
    """Return the epochs that the columns of a study's curves belong to."""
    return np.array(study.settings["adam"]["epochs evaluated"])


def named(penalty: float) -> str:
    """Return a penalty in words."""
    return f"penalty {penalty:g}" if penalty else "no penalty"


def caption(numbers: dict[str, Any]) -> str:
    """Say what was found."""
    used = numbers["settings"]
    without, with_ = numbers["groups"].values()
    saved, gained = numbers["validation cost saved"], numbers["validation accuracy gained"]
    lowest, epoch = without["validation cost, lowest"], without["epoch of the lowest validation cost"]
    return (
        f"{used['runs per penalty']} networks of {used['hidden units']} ReLU units ({used['parameters']:,} "
        f"parameters) on {used['training images']} images of {used['data']}, medians. Without a penalty the validation "
        f"cost falls to {lowest:.3f} by epoch {epoch:.0f} and rises to {without['validation cost, final']:.3f}, while "
        f"the training cost goes on to {without['training cost, final']:.1e}; with penalty {used['best penalty']:g}, "
        f"the best of those tried on the same images, it ends at {with_['validation cost, final']:.3f}, seed by seed "
        f"lower by {saved['median']:.3f} (95 % interval {saved['lower']:.3f} to {saved['upper']:.3f}), with "
        f"{100 * with_['validation accuracy, final']:.1f} % instead of "
        f"{100 * without['validation accuracy, final']:.1f} % of the validation images right (gain in points, 95 % "
        f"interval: {100 * gained['lower']:.1f} to {100 * gained['upper']:.1f}). The surfaces show the "
        "cost of the data, without the penalty, on planes scaled by the norms of the network's filters."
    )

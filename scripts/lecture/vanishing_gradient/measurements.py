"""Train deep dense networks from many starts, and measure what reaches each layer."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape import Objective, Trajectory, activation_slopes, gradient_norms, run_restarts, train
from landscape.data import Dataset
from landscape.models import build

ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU", "maxout": "maxout"}
SCALES = (0.5, 1.0, 2.0, 4.0)
DESCENT = {"optimizer": "gd", "learning_rate": 0.02}
NOTHING = 1e-8  # an entry of the gradient that is as good as none, in the lecture's words


@dataclass(frozen=True)
class Plan:
    """Networks, data, length of the training, and the biases to try, some of them with training."""

    depth: int = 20
    width: int = 50
    images: int = 2000
    batch_size: int = 100
    epochs: int = 15
    seeds: int = 5
    biases: tuple[float, ...] = (-2.0, -1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
    trained: tuple[float, ...] = (-1.0, -0.25, 0.0, 0.25)

    @property
    def descent(self) -> dict[str, Any]:
        """Arguments of `train`."""
        return {**DESCENT, "batch_size": self.batch_size, "epochs": self.epochs}


QUICK = Plan(12, 30, 200, 25, 8, 2, (-1.0, 0.0, 1.0), (-1.0, 0.0))


@dataclass(frozen=True)
class Start:
    """Where networks start: the activation, the scale of the initial weights, the hidden biases."""

    activation: str
    scale: float = 1.0
    bias: float = 0.0


def network(start: Start, plan: Plan, data: Dataset, seed: int) -> nn.Sequential:
    """Build the network of one seed."""
    model = build(
        "mlp",
        seed=seed,
        input_shape=list(data.inputs.shape[1:]),
        classes=data.classes,
        widths=[plan.width] * plan.depth,
        activation=start.activation,
        init_scale=start.scale,
    )
    for module in model[:-1].modules():
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, start.bias)
    return model


def layers(objective: Objective) -> dict[str, list[str]]:
    """Return the names of the weights of each layer, front first: one, or the two pieces of maxout."""
    found: dict[str, list[str]] = {}
    for name in objective.layout.names:
        if name.endswith("weight"):
            found.setdefault(name.split(".")[0], []).append(name)
    return found


def measure(objective: Objective, theta: Tensor) -> dict[str, Any]:
    """Return the entries of the gradient by layer (RMS), the share of dead hidden units and their mean slope.

    Maxout is no function of one number: there a dead unit is one without any gradient in its weights, and the slope,
    that of the larger piece, is not measured.
    """
    names = layers(objective)
    entries = gradient_norms(objective, theta, by=names).rms.tolist()
    if not any(len(pieces) > 1 for pieces in names.values()):
        slopes = activation_slopes(objective, theta).values()
        dead, slope = ([getattr(each, value).mean() for each in slopes] for value in ("dead", "mean"))
        return {"entries": entries, "dead": float(np.mean(dead)), "slope": float(np.mean(slope))}
    gradient = objective.layout.unflatten(objective.gradient(theta))
    units = [torch.stack([(gradient[name] == 0).all(dim=1) for name in pieces]).all(dim=0) for pieces in names.values()]
    return {"entries": entries, "dead": float(torch.cat(units[:-1]).double().mean()), "slope": None}


def moved(objective: Objective, a: Tensor, b: Tensor) -> float:
    """Return the share of the first layer's weights that differ between two points."""
    x, y = objective.layout.unflatten(a), objective.layout.unflatten(b)
    first = next(iter(layers(objective).values()))
    return float(torch.cat([(x[name] != y[name]).reshape(-1) for name in first]).double().mean())


def study(start: Start, plan: Plan, data: Dataset, path: Path) -> dict[str, Any]:
    """Measure the networks of one start, over the seeds, and train them where the plan says so.

    Returns:
        `start` and `end`: what `measure` returns, a list over seeds for each name; `loss`: `[seeds, epochs + 1]`;
        `moved`: share of the first layer's weights that training changed, `[seeds]`.
    """
    networks = [network(start, plan, data, seed) for seed in range(plan.seeds)]
    objective = Objective(networks[0], data, metrics={}, chunk_size=min(500, len(data)))
    begin = [objective.layout.flatten(dict(model.named_parameters())) for model in networks]
    result: dict[str, Any] = {"start": [measure(objective, theta) for theta in begin]}
    if start.bias not in plan.trained:
        return result
    runs = run_restarts(
        partial(network, start, plan, data),
        data,
        path,
        settings={"gd": plan.descent},
        seeds=plan.seeds,
        metrics={},
        progress=False,
    )
    end = [torch.from_numpy(runs.thetas()[i]) for i in np.argsort(runs.seed)]
    result["end"] = [measure(objective, theta) for theta in end]
    result["loss"] = runs.curves["loss"][np.argsort(runs.seed)].tolist()
    result["moved"] = [moved(objective, *ends) for ends in zip(begin, end, strict=True)]
    return result


def follow(start: Start, plan: Plan, data: Dataset, folder: Path) -> dict[str, Any]:
    """Train the network of seed 0; returns the epochs and the entries of the gradient, `[epochs + 1, layers]`."""
    model = network(start, plan, data, 0)
    train(model, data, metrics={}, folder=folder, progress=False, **plan.descent)
    objective = Objective(model, data, metrics={}, chunk_size=min(500, len(data)))
    run = Trajectory.load(folder / "trajectory.h5")
    entries = [gradient_norms(objective, run.theta(i), by=layers(objective)).rms.tolist() for i in range(len(run))]
    return {"epochs": (run.step / run.step[-1] * plan.epochs).tolist(), "entries": entries}


def values(result: dict[str, Any], when: str, name: str) -> np.ndarray:
    """Return a measurement over the seeds, `[seeds, ...]`; NaN where there is none."""
    return np.array([each[name] for each in result[when]], dtype=np.float64)

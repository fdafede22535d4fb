"""L12: layer families. The surface of a dense, a convolutional and a recurrent network and of a transformer.

All learn the same digits with the same optimizer; the recurrent network and the transformer read an image as the
sequence of its rows. Each is moved along two random directions, normalized filter by filter (Li et al. 2018,
arXiv:1712.09913), on one grid, and all are drawn on one scale.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import nn

from landscape import Objective, Surface, evaluate, random_directions, train
from landscape.data import Dataset
from landscape.figures import plot_surface
from landscape.figures.contour import color_bar, contour_trace
from landscape.figures.grid import Levels, drawn, find_levels
from landscape.figures.marks import find_marks, point_traces
from landscape.figures.style import color_scale, new_figure
from landscape.models import build
from lecture.setting import Drawn, Setting

TITLE = "Layer families"
SECONDS = (100.0, 5.0)

FAMILIES = {
    "dense": ("mlp", {"widths": [64, 64]}),
    "convolutional": ("lenet", {}),
    "recurrent": ("recurrent", {"hidden": 64}),
    "transformer": ("transformer", {}),
}
TRAINING = {"optimizer": "adam", "learning_rate": 0.003, "schedule": "cosine", "batch_size": 64}
NOTE = "random filter-normalized directions; one log scale"


class Family(NamedTuple):
    """A trained network and its surroundings."""

    model: nn.Module
    n_parameters: int
    accuracy: float  # of the test images
    surface: Surface

    def title(self) -> str:
        """Return what a figure says of the network."""
        return f"{self.n_parameters:,} parameters, {100 * self.accuracy:.1f} % right"

    def numbers(self, guessing: float) -> dict[str, Any]:
        """Return what is known of the network; `guessing` is the cost of the same share for every class."""
        cost = self.surface.metric("loss")
        return {
            "parameters": self.n_parameters,
            "accuracy on test images": self.accuracy,
            "cost of the trained network": float(cost[tuple(n // 2 for n in cost.shape)]),
            "lowest cost on the plane": float(cost.min()),
            "highest cost on the plane": float(cost.max()),
            "share of the plane with a cost below that of guessing": float((cost < guessing).mean()),
        }


def learn(setting: Setting, name: str, data: Dataset, test: Dataset, seen: Dataset) -> Family:
    """Train a network and evaluate the plane around it, or read what was stored."""
    kind, arguments = FAMILIES[name]
    model = build(kind, seed=0, input_shape=tuple(data.inputs.shape[1:]), classes=data.classes, **arguments)
    epochs = 3 if setting.quick else 10
    result = train(model, data, test=test, epochs=epochs, folder=setting.folder / name, progress=False, **TRAINING)
    objective = Objective(result.model, seen)
    surface = evaluate(
        objective,
        random_directions(objective, 2, seed=0),
        resolution=9 if setting.quick else 25,
        path=setting.folder / f"{name}.h5",
        progress=False,
    )
    return Family(result.model, objective.layout.p, float(result.history["test_accuracy"][-1]), surface)


def counterparts(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Count the parameters of a network's convolutions, and of dense layers that would take their places.

    A dense layer from `n` numbers to `m` has `m (n + 1)` parameters.

    Args:
        model: The network, which stays as it is.
        x: `[1, c, h, w]` an image.
    """
    own = dense = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal own, dense
        own += sum(parameter.numel() for parameter in layer.parameters())
        dense += output.numel() * (inputs[0].numel() + 1)

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return own, dense


def plot_one(name: str, family: Family, levels: Levels, camera: go.layout.scene.Camera) -> go.Figure:
    """Draw a surface in 3-D, with colors, height and camera that are the same for all."""
    figure = plot_surface(family.surface, scale="log")
    new_figure(
        f"{name} network".capitalize() if name != "transformer" else "Transformer", [family.title(), NOTE], figure
    )
    bowl = next(trace for trace in figure.data if trace.type == "surface")
    bowl.update(cmin=levels.low, cmax=levels.high, colorbar=color_bar(levels, "cost") | {"len": 0.7})
    bowl.contours.z.update(start=levels.values[0], end=levels.values[-1], size=levels.step)
    every = slice(0, None, max(1, len(levels.values) // 4))
    figure.update_layout(
        scene={
            "camera": camera,
            "xaxis": {"title": {"text": "direction 1"}},
            "yaxis": {"title": {"text": "direction 2"}},
            "zaxis": {
                "title": {"text": ""},  # the color bar says it
                "range": [levels.low, levels.high],
                "tickvals": levels.values[every],
                "ticktext": levels.text[every],
            },
        },
    )
    return figure


def plot_all(families: dict[str, Family], levels: Levels, notes: list[str]) -> go.Figure:
    """Draw the contours of all surfaces with one color bar."""
    panels = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=[  # short enough for a phone
            f"{name}<br>{family.n_parameters:,}; {100 * family.accuracy:.1f} %" for name, family in families.items()
        ],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.06,
        vertical_spacing=0.16,
    )
    figure = new_figure("Cost around a network", [*notes, "above each: parameters, test images right"], panels)
    for i, family in enumerate(families.values()):
        place = {"row": 1 + i // 2, "col": 1 + i % 2}
        contours = contour_trace(drawn(family.surface, "loss", "log"), levels, "cost", ["direction 1", "direction 2"])
        contours.update(coloraxis="coloraxis", colorbar=None, colorscale=None, zmin=None, zmax=None)
        figure.add_trace(contours, **place)
        for trace in point_traces(family.surface, find_marks(family.surface, "loss"), "loss"):
            figure.add_trace(trace.update(showlegend=i == 0), **place)
    figure.update_annotations(font_size=13)
    figure.update_xaxes(title_text="direction 1", row=2)
    figure.update_yaxes(title_text="direction 2", col=1)
    figure.update_layout(
        coloraxis={
            "cmin": levels.low,
            "cmax": levels.high,
            "colorscale": color_scale("loss"),
            "colorbar": color_bar(levels, "cost"),
        },
        margin={"t": figure.layout.margin.t + 50},
    )
    return figure


def describe(numbers: dict[str, Any]) -> str:
    """Return the caption."""
    share = "share of the plane with a cost below that of guessing"
    own = {name: numbers[name] for name in FAMILIES}
    listed = ", ".join(f"{name} {100 * one['accuracy on test images']:.1f} %" for name, one in own.items())
    below = ", ".join(f"{name} {100 * one[share]:.0f} %" for name, one in own.items())
    return (
        f"One network of each family, trained with Adam on the same {numbers['training images']:,} images of "
        f"{numbers['data']} (test images right: {listed}), and the cost on a plane of two random filter-normalized "
        f"directions around each, on one scale. The share of the plane where the cost is below that of guessing is "
        f"{below}. "
        f"The convolutions have {numbers['parameters of the convolutions']:,} parameters; dense layers in their places "
        f"would have {numbers['parameters of dense layers in their places']:,}."
    )


def draw(setting: Setting) -> Drawn:
    """Train one network of each family and draw its surface."""
    data = setting.load("mnist", limit=500 if setting.quick else 5_000)
    test = setting.load("mnist", "test", limit=300 if setting.quick else 2_000)
    seen = setting.load("mnist", limit=200 if setting.quick else 500)
    families = {}
    for name in FAMILIES:
        families[name] = learn(setting, name, data, test, seen)
        setting.report(len(families) / len(FAMILIES))
    heights = np.concatenate([drawn(family.surface, "loss", "log").heights.ravel() for family in families.values()])
    levels = find_levels(heights, "loss", "log")
    notes = [
        f"{data.name}, {len(data):,} images; cost of the first {len(seen)} of them",
        NOTE,
    ]
    camera = plot_surface(families["dense"].surface, scale="log").layout.scene.camera
    camera.eye.z *= 1.8  # to look into the narrow ones
    figures = {"contours": plot_all(families, levels, notes)}
    figures |= {name: plot_one(name, family, levels, camera) for name, family in families.items()}
    own, dense = counterparts(families["convolutional"].model, data.inputs[:1])
    guessing = math.log(data.classes)
    numbers = {
        **{
            "data": data.name,
            "training images": len(data),
            "test images": len(test),
            "images of the surfaces": len(seen),
        },
        **{name: family.numbers(guessing) for name, family in families.items()},
        "parameters of the convolutions": own,
        "parameters of dense layers in their places": dense,
        "claims": {
            "convolutions have far fewer parameters (under a tenth of dense layers in their places)": own < 0.1 * dense
        },
    }
    return Drawn(figures, describe(numbers), numbers)

"""The cost of a linear classifier with a step, with a sigmoid, and with the cross-entropy.

Two parameters, so that the surface is the whole cost and no slice of it: a point x belongs to class 1 where
w0 + w1 x > 0. Ten points on a line, which no threshold separates. The step counts the wrong answers; least squares
take the square of sigmoid minus class; the cross-entropy is that of the sigmoid. Gradient norm and Hessian eigenvalues
over the plane tell where training gets a signal and which cost is convex.
"""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import Objective, Surface, analyze, curvature_map, evaluate, given_directions
from landscape.figures import plot_surface
from landscape.figures.style import INK, PALETTE, log_axis, new_figure
from landscape.models.mlp import Step
from landscape.slice import Slice
from lecture.setting import Drawn, Setting

TITLE = "Step, sigmoid and cross-entropy as a cost"
SECONDS = (33.0, 2.0)

POSITIONS = torch.linspace(-2.25, 2.25, 10, dtype=torch.float64)
CLASSES = torch.tensor([0, 0, 1, 0, 0, 1, 0, 1, 1, 1], dtype=torch.float64)
EXTENT = ((-20.0, 20.0), (-10.0, 10.0))  # of w0 and w1
CUT = 8.0  # w1 on the line along which minima are counted
FLAT = 1e-3  # a gradient norm below it is nearly zero
ROUNDING = 1e-12  # an eigenvalue counts as negative below minus this
STEP = Step()


def counting(output: Tensor, target: Tensor) -> Tensor:
    """Return 1 for each wrong answer of the step, `[b]`."""
    return (STEP(output) - target).square().mean(dim=1)


def least_squares(output: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of the sigmoid, `[b]`."""
    return (torch.sigmoid(output) - target).square().mean(dim=1)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of the sigmoid, `[b]`, in nats."""
    return F.binary_cross_entropy_with_logits(output, target, reduction="none").mean(dim=1)


COSTS = {"step": counting, "least squares": least_squares, "cross-entropy": cross_entropy}


def classifier(cost: str, w1: float = 0.0) -> tuple[Objective, Slice, Slice]:
    """Return a cost of the classifier with w0 = 0, the plane of all its parameters, and the line along w0."""
    model = nn.Linear(1, 1, dtype=torch.float64)
    nn.init.constant_(model.weight, w1)
    nn.init.zeros_(model.bias)
    objective = Objective(model, (POSITIONS[:, None], CLASSES[:, None]), loss=COSTS[cost])
    along_w0 = {"weight": torch.zeros(1, 1), "bias": torch.ones(1)}
    along_w1 = {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}
    info = {"labels": ["w0", "w1"], "unit": "distance in parameter space"}
    plane = given_directions(objective, [along_w0, along_w1], info=info)
    line = given_directions(objective, [along_w0], info={"labels": ["w0"]})
    return objective, plane, line


def gradient_norms(cost: str, axes: tuple[np.ndarray, np.ndarray]) -> list[list[float]]:
    """Return the Euclidean norm of the gradient over the plane, `[nx, ny]`."""
    objective, plane, _ = classifier(cost)
    return [[float(objective.gradient(plane.at([a, b])).norm()) for b in axes[1]] for a in axes[0]]


def draw(setting: Setting) -> Drawn:
    """Evaluate the three costs over the plane and along a line, with gradients and curvature."""
    # even numbers: at w = 0 all plateaus of the step meet
    n_plane, n_gradient, n_curvature = (40, 16, 9) if setting.quick else (160, 80, 41)
    axes = [np.linspace(*extent, n_gradient) for extent in EXTENT]
    surfaces, profiles, norms, numbers = {}, {}, {}, {}
    for i, cost in enumerate(COSTS):
        name = _file_name(cost)
        objective, plane, _ = classifier(cost)
        surfaces[cost] = evaluate(
            *(objective, plane),
            resolution=n_plane,
            extent=EXTENT,
            path=setting.folder / f"{name}.h5",
            progress=False,
        )
        cut, _, line = classifier(cost, CUT)
        profiles[cost] = evaluate(
            *(cut, line), resolution=400, extent=EXTENT[:1], path=setting.folder / f"{name}_cut.h5", progress=False
        )
        setting.report((i + 0.2) / len(COSTS))
        settings = {"positions": POSITIONS.tolist(), "classes": CLASSES.tolist(), "extent": EXTENT, "n": n_gradient}
        norms[cost] = np.array(
            setting.keep(f"{name}_gradient", settings, lambda cost=cost: gradient_norms(cost, (axes[0], axes[1])))
        )
        setting.report((i + 0.6) / len(COSTS))
        numbers[cost] = _measure(surfaces[cost], profiles[cost], norms[cost])
        if cost != "step":  # its Hessian is zero wherever it exists
            curvature = curvature_map(
                *(objective, plane),
                resolution=n_curvature,
                extent=EXTENT,
                path=setting.folder / f"{name}_curvature.h5",
                progress=False,
            )
            smallest, largest = curvature.values["lambda_min"], curvature.values["lambda_max"]
            numbers[cost] |= {
                "minima of the surface": analyze(surfaces[cost]).count(),
                "smallest Hessian eigenvalue": float(smallest.min()),
                "largest Hessian eigenvalue": float(largest.max()),
                "share of the area with a negative Hessian eigenvalue": float((smallest < -ROUNDING).mean()),
            }
        setting.report((i + 1) / len(COSTS))
    reliefs = {cost: _relief(cost, surfaces[cost], numbers[cost]) for cost in COSTS}
    eye = reliefs["cross-entropy"].layout.scene.camera.eye
    for figure in reliefs.values():  # one view of all three, into the valley
        figure.update_layout(scene_camera_eye={axis: 0.85 * eye[axis] for axis in "xyz"})
    figures = {_file_name(cost): figure for cost, figure in reliefs.items()}
    figures["slopes"] = _slopes(axes, norms, profiles, numbers)
    return Drawn(figures, _caption(numbers), _claims(numbers))


def _file_name(cost: str) -> str:
    return cost.replace(" ", "_").replace("-", "_")


def _measure(surface: Surface, profile: Surface, norms: np.ndarray) -> dict[str, Any]:
    loss = surface.metric()
    along = analyze(profile)
    corners = np.stack([loss[i : len(loss) - 1 + i, j : loss.shape[1] - 1 + j] for i in (0, 1) for j in (0, 1)])
    return {
        "distinct values on the grid": len(np.unique(loss.round(9))),
        "points on the grid": loss.size,
        "lowest on the grid": float(loss.min()),
        "highest on the grid": float(loss.max()),
        "share of the grid's cells with one value at all corners": float((np.ptp(corners, axis=0) == 0).mean()),
        "share of the area with a gradient of exactly zero, by autograd": float((norms == 0).mean()),
        f"share of the area with a gradient norm below {FLAT:g}": float((norms < FLAT).mean()),
        "largest gradient norm": float(norms.max()),
        f"minima along w0 at w1 = {CUT:g}": along.count(),
        f"values of these minima at w1 = {CUT:g}": along.minima.value[along.counts_as(along.minima)].tolist(),
    }


def _claims(numbers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    step, squares, entropy = (numbers[cost] for cost in COSTS)
    minima = f"minima along w0 at w1 = {CUT:g}"
    negative = "share of the area with a negative Hessian eigenvalue"
    constant = "share of the grid's cells with one value at all corners"
    return {
        "points": len(POSITIONS),
        "w0 and w1": EXTENT,
        **numbers,
        "the cost of the step is flat between jumps": step[constant] > 0.5 > squares[constant],
        "the step takes at most one value more than there are points": step["distinct values on the grid"]
        <= len(POSITIONS) + 1,
        "least squares of the sigmoid are not convex": squares[negative] > 0,
        "the cross-entropy is convex on the grid": entropy[negative] == 0,
        "the cross-entropy has one minimum": entropy["minima of the surface"] == entropy[minima] == 1,
    }


def _caption(numbers: dict[str, dict[str, Any]]) -> str:
    step, squares, entropy = (numbers[cost] for cost in COSTS)
    flat, minima = f"share of the area with a gradient norm below {FLAT:g}", f"minima along w0 at w1 = {CUT:g}"
    negative = "share of the area with a negative Hessian eigenvalue"
    constant = "share of the grid's cells with one value at all corners"
    return (
        f"The cost of a classifier with two parameters on {len(POSITIONS)} points of a line that no threshold "
        f"separates. With the step it takes {step['distinct values on the grid']} values, with a gradient of zero "
        f"between jumps ({step[constant]:.0%} of the grid's cells have one value at all corners); least squares of the "
        f"sigmoid are smooth, but nearly flat (gradient norm below {FLAT:g}) on {squares[flat]:.0%} of the area and "
        f"have a negative Hessian eigenvalue on {squares[negative]:.0%} of it; the cross-entropy is nearly flat on "
        f"{entropy[flat]:.0%} of it, and its smallest Hessian eigenvalue over the grid is "
        f"{entropy['smallest Hessian eigenvalue']:.1e}. Along w0 at w1 = {CUT:g} there are {step[minima]}, "
        f"{squares[minima]} and {entropy[minima]} minima."
    )


def _relief(cost: str, surface: Surface, measured: dict[str, Any]) -> go.Figure:
    figure = plot_surface(surface)
    kept = ("lowest grid point",) if cost == "cross-entropy" else ()  # elsewhere it is one of many, or on the border
    figure.data = [trace for trace in figure.data if trace.type == "surface" or trace.name in kept]
    flat = measured[f"share of the area with a gradient norm below {FLAT:g}"]
    notes = [f"gradient norm below {FLAT:g} on {flat:.0%} of the area"]
    if cost == "step":
        constant = measured["share of the grid's cells with one value at all corners"]
        notes = [
            f"share of wrong answers: {measured['distinct values on the grid']} values",
            f"flat: {constant:.0%} of the grid's cells have one value at all corners",
        ]
    elif measured["share of the area with a negative Hessian eigenvalue"]:
        notes.insert(0, f"not convex: Hessian eigenvalues down to {measured['smallest Hessian eigenvalue']:.2g}")
    else:
        n = measured["minima of the surface"]
        notes.insert(0, f"no Hessian eigenvalue negative; {n} {'minimum' if n == 1 else 'minima'}")
    title = {"step": "Step: wrong answers", "least squares": "Sigmoid: least squares"}.get(
        cost, "Sigmoid: cross-entropy"
    )
    new_figure(title, notes, figure)
    figure.data[0].update(
        showscale=False,  # the axis has the same numbers
        contours_z_show=cost != "step",  # between two plateaus there is nothing
        hovertemplate="w0: %{x:.3g}<br>w1: %{y:.3g}<br>cost: %{customdata:.4g}<extra></extra>",
    )
    figure.update_layout(scene_zaxis_title_text="cost")
    if cost == "step":  # the lowest tick would stand on one of another axis
        ticks = [0.4, 0.6, 0.8]
        figure.update_layout(scene_zaxis={"tickvals": ticks, "ticktext": list(map(str, ticks))})
    return figure


def _slopes(
    axes: list[np.ndarray], norms: dict[str, np.ndarray], profiles: dict[str, Surface], numbers: dict[str, dict]
) -> go.Figure:
    figure = make_subplots(
        *(2, 2),
        subplot_titles=[*COSTS, "cost (log scale)"],
        vertical_spacing=0.17,
        horizontal_spacing=0.14,
    )
    notes = [
        f"colors: gradient norm over w0, w1; gray: below {FLAT:g}",
        f"last panel: along the dashed line, w1 = {CUT:g}",
    ]
    new_figure("Where the cost has a slope", notes, figure)
    low, high = np.log10(FLAT), np.log10(max(norm.max() for norm in norms.values()))
    ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    for i, norm in enumerate(norms.values()):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        with np.errstate(divide="ignore"):
            shown = np.where(norm < FLAT, np.nan, np.log10(norm))
        figure.add_trace(
            go.Heatmap(
                x=axes[0],
                y=axes[1],
                z=shown.T,  # [nx, ny] becomes plotly's [ny, nx]
                customdata=norm.T,
                coloraxis="coloraxis",
                hovertemplate="w0: %{x:.3g}<br>w1: %{y:.3g}<br>gradient norm: %{customdata:.3g}<extra></extra>",
            ),
            **place,
        )
        figure.add_shape(
            type="line", x0=EXTENT[0][0], x1=EXTENT[0][1], y0=CUT, y1=CUT, line={"dash": "dash", "color": "white"}
        )
        figure.layout.shapes[-1].update(xref=f"x{i + 1}" if i else "x", yref=f"y{i + 1}" if i else "y")
        figure.update_xaxes(range=EXTENT[0], tickvals=[-20, 0, 20], showgrid=False, **place)
        figure.update_yaxes(range=EXTENT[1], tickvals=[-10, 0, 10], showgrid=False, **place)
        figure.add_shape(
            type="rect",
            xref="x domain" if not i else f"x{i + 1} domain",
            yref="y domain" if not i else f"y{i + 1} domain",
            **{"x0": 0, "x1": 1, "y0": 0, "y1": 1, "fillcolor": "#b5b5b5", "line_width": 0, "layer": "below"},
        )
    for color, (cost, profile) in zip((INK, *PALETTE), profiles.items(), strict=False):
        figure.add_trace(
            go.Scatter(
                x=profile.axes["x"],
                y=profile.metric(),
                mode="lines",
                line={"color": color, "width": 3, "simplify": False, "shape": "hvh" if cost == "step" else "linear"},
                name=cost,
                hovertemplate=f"w0 = %{{x:.3g}}<br>{cost}: %{{y:.4g}}<extra></extra>",
            ),
            row=2,
            col=2,
        )
    figure.update_xaxes(range=EXTENT[0], tickvals=[-20, 0, 20], row=2, col=2)
    figure.update_xaxes(title_text="w0", row=2)
    figure.update_yaxes(title_text="w1", col=1)
    figure.update_yaxes(log_axis([profile.metric() for profile in profiles.values()]), row=2, col=2)
    figure.update_annotations(font={"size": 15})
    figure.update_layout(
        margin={"t": figure.layout.margin.t + 24, "b": 70},
        coloraxis={
            "colorscale": "Viridis",
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "tickvals": ticks,
                "ticktext": [f"{10**tick:g}" for tick in ticks],
                "thickness": 14,
                "outlinewidth": 0,
                "len": 1.0,
            },
        },
    )
    return figure

"""Activation functions, their derivatives, and where those vanish.

Step, sigmoid, tanh, ReLU and maxout as the networks use them (`landscape.models`), each with its derivative by autograd
on one grid. What flows back through a unit is multiplied with the derivative: where it is (nearly) zero, shaded, the
weights below get no signal.
"""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from landscape.figures.style import INK, PALETTE, new_figure
from landscape.models.mlp import ACTIVATIONS, Maxout
from lecture.setting import Drawn, Setting

TITLE = "Activation functions"
SECONDS = (0.39, 0.3)

REACH = 8.0  # the axis shown is [-REACH, REACH]
N_POINTS = 1600  # even: they lie to both sides of 0, where step and ReLU have no derivative
SMALL = 0.01  # a derivative below it is nearly zero
PIECES = ((0.5, -0.5), (0.0, 1.0))  # of maxout: (w0, w1) and (v0, v1)
ZONE = "rgba(0,0,0,0.13)"
# left of 0 and right of 0: where the lecture says that the derivative is (nearly) zero
CLAIMED = {
    "step": (True, True),
    "sigmoid": (True, True),
    "tanh": (True, True),
    "ReLU": (True, False),
    "maxout": (False, False),
}


def units() -> dict[str, nn.Module]:
    """Return a unit of each kind, from `[m, 1]` to `[m, 1]`."""
    maxout = Maxout(1, 1)
    with torch.no_grad():
        for layer, (bias, weight) in zip((maxout.first, maxout.second), PIECES, strict=True):
            layer.bias.fill_(bias)
            layer.weight.fill_(weight)
    plain = {name: ACTIVATIONS[name.lower()]() for name in CLAIMED if name != "maxout"}
    return {**plain, "maxout": maxout.double()}


def value_and_derivative(unit: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a unit at points `[m]` and differentiate it there by autograd, `[m]` each."""
    points = x.detach().clone().requires_grad_()
    values = unit(points[:, None])[:, 0]
    (derivative,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), derivative


def intervals(x: np.ndarray, inside: np.ndarray) -> list[tuple[float, float]]:
    """Return the stretches of evenly spaced points `[m]` that are inside, each up to half-way to the next point."""
    half = (x[1] - x[0]) / 2
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(int)))
    return [(float(x[a] - half), float(x[b - 1] + half)) for a, b in edges.reshape(-1, 2)]


def draw(setting: Setting) -> Drawn:
    """Draw a panel per function, and the share of the axis on which each passes nothing on."""
    step = 2 * REACH / N_POINTS
    x = -REACH + step * (torch.arange(N_POINTS, dtype=torch.float64) + 0.5)
    zero = torch.zeros(1, dtype=torch.float64)
    figure = make_subplots(
        *(3, 2),
        subplot_titles=[*CLAIMED, "share shaded (%)"],
        vertical_spacing=0.12,
        horizontal_spacing=0.12,
    )
    new_figure(TITLE, [f"shaded: derivative nearly zero, |f'| < {SMALL:g}"], figure)
    numbers: dict[str, Any] = {"axis": [-REACH, REACH], "points": N_POINTS, "nearly zero below": SMALL}
    shares = {}
    for i, (name, unit) in enumerate(units().items()):
        values, derivative = (array.numpy() for array in value_and_derivative(unit, x))
        at_zero = [float(array) for array in value_and_derivative(unit, zero)]
        flat = np.abs(derivative) < SMALL
        shares[name] = float(flat.mean())
        sides = bool(flat[0]), bool(flat[-1])
        numbers[name] = {
            "share of the axis with a nearly zero derivative": shares[name],
            "share of the axis with a derivative of exactly zero": float((derivative == 0).mean()),
            "zones of nearly zero derivative": intervals(x.numpy(), flat),
            "largest derivative": float(np.abs(derivative).max()),
            "smallest derivative": float(np.abs(derivative).min()),
            "value at 0": at_zero[0],
            "derivative at 0 by autograd": at_zero[1],
            "nearly zero on the sides that the lecture names": sides == CLAIMED[name],
        }
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        _panel(figure, place, x.numpy(), values, derivative, numbers[name]["zones of nearly zero derivative"])
        if name == "step":
            _jump(figure, place, at_zero[0], 1 - at_zero[0])
    numbers["maxout"]["pieces"] = [{"constant": a, "slope": b} for a, b in PIECES]
    # what autograd calls 0 at the jump of the step is no derivative: the difference quotient grows without bound
    numbers["step"]["difference quotient at 0"] = {
        f"h = {h:g}": float((units()["step"](zero + h) - units()["step"](zero - h)) / (2 * h))
        for h in (0.1, 0.01, 1e-3)
    }
    figure.add_trace(
        go.Bar(
            x=[100 * share for share in shares.values()],
            y=list(shares),
            orientation="h",
            marker={"color": "#8a8a8a"},
            text=[f"{name} {100 * share:.0f}" for name, share in shares.items()],
            textposition="outside",
            cliponaxis=False,
            showlegend=False,
            hovertemplate="%{y}: %{x:.1f} % of the axis<extra></extra>",
        ),
        row=3,
        col=2,
    )
    # names beside the bars: on a phone there is no room to the left of them
    figure.update_xaxes(range=[0, 195], tickvals=[0, 50, 100], row=3, col=2)
    figure.update_yaxes(autorange="reversed", showticklabels=False, ticks="", showgrid=False, row=3, col=2)
    figure.update_annotations(font={"size": 15})
    figure.update_layout(margin={"t": figure.layout.margin.t + 24, "b": 60})
    setting.report(1.0)
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    steepest = numbers["sigmoid"]["largest derivative"]
    held = all(numbers[name]["nearly zero on the sides that the lecture names"] for name in CLAIMED)
    verdict = "as the lecture says" if held else "not on the sides that the lecture names"
    caption = (
        f"Each activation function f (blue) and its derivative f' (orange, by autograd at {N_POINTS:,} points); shaded "
        f"where |f'| < {SMALL:g}, {verdict}. Share of the axis from {-REACH:g} to {REACH:g} that is shaded: {parts}; "
        f"the slope of the sigmoid is at most {steepest:.2f}. At its jump the step has no derivative; autograd returns "
        f"{numbers['step']['derivative at 0 by autograd']:g} there, as everywhere, and so gives no hint of the jump."
    )
    return Drawn({"activations": figure}, caption, numbers)


def _panel(
    figure: go.Figure,
    place: dict[str, int],
    x: np.ndarray,
    values: np.ndarray,
    derivative: np.ndarray,
    zones: list[tuple[float, float]],
) -> None:
    first = place == {"row": 1, "col": 1}
    for label, y, color, dash in (("f", values, PALETTE[0], "solid"), ("f'", derivative, PALETTE[1], "dash")):
        # a gap where the step jumps: no line belongs there
        broken = np.where(np.abs(np.diff(y, append=y[-1])) > 0.5, np.nan, y)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=broken,
                mode="lines",
                line={"color": color, "width": 3, "dash": dash, "simplify": False},
                name=label,
                legendgroup=label,
                showlegend=first,
                hovertemplate=f"x = %{{x:.3g}}<br>{label} = %{{y:.4g}}<extra></extra>",
            ),
            **place,
        )
    for low, high in zones:
        figure.add_vrect(low, high, fillcolor=ZONE, line_width=0, layer="below", **place)
    figure.add_hline(0, line={"color": INK, "width": 1}, layer="below", **place)
    low, high = min(values.min(), derivative.min(), 0.0), max(values.max(), derivative.max())
    margin = 0.08 * (high - low)
    figure.update_xaxes(range=[-REACH, REACH], tickvals=[-8, -4, 0, 4, 8], **place)
    figure.update_yaxes(range=[low - margin, high + margin], nticks=5, **place)


def _jump(figure: go.Figure, place: dict[str, int], value: float, other: float) -> None:
    """Mark the value of the step at 0, and the one that it does not have there."""
    for y, fill in ((value, PALETTE[0]), (other, "white")):
        figure.add_trace(
            go.Scatter(
                x=[0.0],
                y=[y],
                mode="markers",
                marker={"size": 9, "color": fill, "line": {"color": PALETTE[0], "width": 2}},
                showlegend=False,
                hoverinfo="skip",
            ),
            **place,
        )

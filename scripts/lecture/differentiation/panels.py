"""Draw what was measured."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.differences import KINDS, GradientErrors
from landscape.figures.style import INK, PALETTE, log_axis, new_figure


class Curve(NamedTuple):
    """A line of a figure."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    color: str
    dash: str = "solid"
    markers: bool = True
    in_legend: bool = True


def plot_errors(errors: GradientErrors, notes: Sequence[str]) -> go.Figure:
    """Draw the error of the gradient against the step, with the prediction, and autograd's error."""
    colors = {"float32": (PALETTE[1], PALETTE[4]), "float64": (PALETTE[0], PALETTE[5])}
    curves, ends = [], errors.steps[[0, -1]]
    for d, dtype in enumerate(errors.dtypes):
        for k, kind in enumerate(KINDS):
            color = colors[dtype][k]
            curves.append(Curve(f"{kind}, {dtype}", errors.steps, errors.errors[k, d], color))
            curves.append(
                Curve(
                    f"theory, {kind}, {dtype}", errors.steps, errors.predicted(kind, dtype), color, "dot", False, False
                )
            )
        floor = [errors.autograd[d]] * 2
        curves.append(Curve(f"autograd, {dtype}", ends, floor, colors[dtype][0], "dash", False))
    curves.append(Curve("theory", [None], [None], INK, "dot", False))
    figure = lines("Error of the gradient", notes, "step h", "relative error of the gradient", curves)
    low = np.log10(min(errors.autograd.min(), errors.errors.min()))
    figure.update_yaxes(range=[low - 0.7, 1.5], dtick=2)
    figure.update_xaxes(dtick=4)
    return figure


def plot_depth(by_depth: dict[int, list[GradientErrors]], notes: Sequence[str]) -> go.Figure:
    """Draw the smallest errors against the number of layers."""
    depths, curves = list(by_depth), []
    for kind, color in zip(KINDS, (PALETTE[1], PALETTE[4]), strict=True):
        best = np.array([[one.best(kind, "float32")[1] for one in found] for found in by_depth.values()])
        curves.append(Curve(f"{kind}, best h", depths, np.median(best, axis=1), color))
    exact = np.array([[one.autograd[0] for one in found] for found in by_depth.values()])
    curves.append(Curve("autograd", depths, np.median(exact, axis=1), PALETTE[0], "dash"))
    figure = lines("Errors add up through layers", notes, "hidden layers", "relative error of the gradient", curves)
    figure.update_xaxes(tickvals=depths)
    return figure


def plot_cost(seconds: dict[int, dict[str, float]], notes: Sequence[str]) -> go.Figure:
    """Draw the time of a gradient against the number of parameters."""
    looks = {
        "differences": ("forward differences", PALETTE[1], "solid"),
        "forward mode": ("forward mode", PALETTE[2], "solid"),
        "reverse mode": ("reverse mode", PALETTE[0], "solid"),
        "cost": ("the cost itself, once", INK, "dash"),
    }
    curves = []
    for key, (name, color, dash) in looks.items():
        own = {p: found[key] for p, found in seconds.items() if key in found}
        curves.append(Curve(name, list(own), list(own.values()), color, dash))
    return lines("Time of one gradient", notes, "parameters", "processor time (s)", curves)


def plot_operations(operations: dict[int, dict[str, int]], notes: Sequence[str]) -> go.Figure:
    """Draw the operations of formula, symbolic and automatic derivative against depth."""
    looks = {
        "derivative by one weight": ("SymPy: by one weight", PALETTE[1], "solid"),
        "formula": ("SymPy: the function", PALETTE[4], "dash"),
        "automatic, all weights": ("autograd: by all weights", PALETTE[0], "solid"),
    }
    depths = list(operations)
    curves = [
        Curve(name, depths, [found[key] for found in operations.values()], color, dash)
        for key, (name, color, dash) in looks.items()
    ]
    figure = lines("Size of the derivative", notes, "layers", "operations", curves)
    figure.update_xaxes(type="linear", dtick=1)
    return figure


def plot_training(runs: dict[float, list[float]], notes: Sequence[str]) -> go.Figure:
    """Draw the cost against the step of gradient descent."""
    curves = [
        Curve(f"h = {h:g}" if h else "autograd", np.arange(len(costs)), costs, color, "solid" if h else "dash", False)
        for (h, costs), color in zip(runs.items(), (INK, *PALETTE[:6]), strict=False)
    ]
    # autograd last, so that it is seen on the quotients that follow it
    curves = [*curves[1:], curves[0]]
    figure = lines("Training with difference quotients", notes, "step", "cost (nats)", curves)
    figure.update_xaxes(type="linear", dtick=None)
    figure.update_yaxes(log_axis([curve.y for curve in curves]))
    return figure


def lines(title: str, notes: Sequence[str], x_title: str, y_title: str, curves: Sequence[Curve]) -> go.Figure:
    """Draw curves on two logarithmic axes."""
    figure = new_figure(title, notes)
    for curve in curves:
        figure.add_scatter(
            name=curve.name,
            x=curve.x,
            y=curve.y,
            mode="lines+markers" if curve.markers else "lines",
            line={"color": curve.color, "dash": curve.dash, "width": 1.5 if curve.dash == "dot" else 2.5},
            marker={"size": 5},
            showlegend=curve.in_legend,
        )
    figure.update_xaxes(title_text=x_title, type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title_text=y_title, type="log", dtick=1, exponentformat="power")
    return figure

"""A descent as an animation."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.contour import plot_contour
from landscape.figures.marks import run_colors
from landscape.figures.style import INK
from landscape.surface import ProjectedTrajectory, Surface

Array = np.ndarray


class _DescentInfo(NamedTuple):
    runs: dict[str, ProjectedTrajectory]
    steps: Array


def plot_descent(
    surface: Surface,
    metric: str = "loss",
    scale: str = "linear",
    ceiling: float | None = None,
    n_frames: int = 60,
) -> go.Figure:
    """Draw the contours and let the training runs descend on them, with buttons and a slider.

    As a still image it shows the whole runs.

    Args:
        surface: Of two axes, with trajectories.
        metric: A key of its values.
        scale: `"linear"` or `"log"`.
        ceiling: All above has one color; in the metric's unit.
        n_frames: At most so many training steps are shown, evenly chosen among the recorded ones.

    Raises:
        ValueError: No trajectory, fewer than two frames, or as for `plot_contour`.
    """
    info = _descent_info(surface, n_frames)
    figure = plot_contour(surface, metric, scale, ceiling=ceiling)
    # of each run the edge, the line and the marker of the end move; the marker of the start stays
    moving = [i for i, trace in enumerate(figure.data) if trace.legendgroup and trace.marker.symbol != "circle"]
    figure.frames = [go.Frame(name=str(step), data=_frame_data(info.runs, step), traces=moving) for step in info.steps]
    # without a redraw, plotly drops the contours
    timing = {"frame": {"duration": 80, "redraw": True}, "transition": {"duration": 0}}
    figure.update_layout(
        margin={"t": figure.layout.margin.t + 74},
        updatemenus=[
            {
                "type": "buttons",
                "direction": "left",
                "showactive": False,
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": 16},
                "buttons": [
                    {"label": "▶", "method": "animate", "args": [None, {**timing, "fromcurrent": True}]},
                    {"label": "❚❚", "method": "animate", "args": [[None], {**timing, "mode": "immediate"}]},
                ],
            }
        ],
        sliders=[
            {
                "active": len(info.steps) - 1,
                "x": 0,
                "len": 1,
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": 4, "l": 110},
                "currentvalue": {"prefix": "step ", "font": {"size": 14, "color": INK}},
                "tickcolor": "white",
                "font": {"color": "white", "size": 1},  # the labels would overlap; the current step is shown
                "steps": [
                    {"label": str(s), "method": "animate", "args": [[str(s)], {**timing, "mode": "immediate"}]}
                    for s in info.steps
                ],
            }
        ],
    )
    return figure


def _descent_info(surface: Surface, n_frames: int) -> _DescentInfo:
    if not surface.trajectories:
        raise ValueError("the surface has no trajectory: project one onto its slice when it is evaluated")
    if n_frames < 2:
        raise ValueError(f"an animation needs at least 2 frames, got {n_frames}")
    steps = np.unique(np.concatenate([run.step for run in surface.trajectories.values()]))
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(n_frames, len(steps))).round().astype(int))
    return _DescentInfo(dict(surface.trajectories), steps[chosen])


def _frame_data(runs: dict[str, ProjectedTrajectory], step: int) -> list[go.Scatter]:
    """Return edge, line and end marker of every run up to a step."""
    data = []
    for name in run_colors(runs):
        x, y = runs[name].coordinates[runs[name].step <= step].T
        line = go.Scatter(x=x, y=y)
        data += [line, line, go.Scatter(x=x[-1:], y=y[-1:])]
    return data

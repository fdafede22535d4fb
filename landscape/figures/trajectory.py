"""How well a slice shows a training run."""

from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.figures.grid import to_height
from landscape.figures.style import PALETTE, RUN_COLORS, escape, log_axis, new_figure
from landscape.sanity import preview_note
from landscape.surface import ProjectedTrajectory, Surface


class _TrajectoryInfo(NamedTuple):
    runs: dict[str, ProjectedTrajectory]
    log_loss: bool
    notes: tuple[str, ...]


def plot_trajectory(surface: Surface, name: str | None = None) -> go.Figure:
    """Draw why a training run does not fit the contours: its distance from the slice, and what the slice hides.

    Above, the Euclidean distance of each checkpoint from the slice. Below, the loss of the checkpoint itself (solid)
    and the loss at the point of the slice nearest to it (dashed), where contours and 3-D surfaces show it. The loss
    axis is logarithmic where all losses are positive.

    Args:
        surface: Of any dimension, with trajectories.
        name: One of them. Default: all.

    Raises:
        ValueError: The surface has no trajectory, or none of that name.
    """
    info = _trajectory_info(surface, name)
    panels = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    figure = new_figure("training run and slice", info.notes, panels)
    several = len(info.runs) > 1
    for i, (run_name, run) in enumerate(info.runs.items()):
        label = escape(run_name)
        first = RUN_COLORS[i % len(RUN_COLORS)] if several else PALETTE[0]
        second = first if several else PALETTE[1]
        curves = (
            (run.distance, first, "solid", "distance from the slice", 1),
            (run.loss, first, "solid", "loss of the checkpoint", 2),
            (run.loss_on_slice, second, "dash", "loss on the slice", 2),
        )
        for values, color, dash, what, row in curves:
            entry = f"{label}, {what}" if several else what
            figure.add_trace(
                go.Scatter(
                    x=run.step,
                    y=values,
                    mode="lines" if dash == "dash" or len(run.step) > 25 else "lines+markers",
                    marker={"size": 4},
                    line={"color": color, "dash": dash, "width": 2.5},
                    name=entry,
                    showlegend=row == 2,
                    hovertemplate=f"step %{{x:,d}}: %{{y:.4g}}<extra>{entry}</extra>",
                ),
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="distance<br>from the slice", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="loss", row=2, col=1)
    if info.log_loss:
        figure.update_yaxes(
            log_axis([v for run in info.runs.values() for v in (run.loss, run.loss_on_slice)]), row=2, col=1
        )
    figure.update_xaxes(title_text="training step", row=2, col=1)
    return figure


def _trajectory_info(surface: Surface, name: str | None) -> _TrajectoryInfo:
    runs = surface.trajectories
    if not runs:
        raise ValueError("the surface has no trajectory: project one onto its slice when it is evaluated")
    if name is not None and name not in runs:
        raise ValueError(f"no trajectory {name!r}; the surface has {', '.join(runs)}")
    runs = dict(runs) if name is None else {name: runs[name]}
    losses = [values for run in runs.values() for values in (run.loss, run.loss_on_slice)]
    # a log axis must not hide anything: every finite loss needs a logarithm
    log_loss = not any((to_height(values, "linear") <= 0).any() for values in losses)
    preview = preview_note(surface)
    return _TrajectoryInfo(runs, log_loss, () if preview is None else (f"on the slice: {preview}",))

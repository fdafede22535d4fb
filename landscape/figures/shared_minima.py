"""Which settings found which minima how often."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from landscape.figures.style import INK, escape, new_figure
from landscape.statistics import Shared

Array = np.ndarray
_MOST = 40  # minima that are shown
_WRITTEN = 25  # minima up to which hits are written into the cells


class _SharedInfo(NamedTuple):
    minima: list[str]
    groups: list[str]
    hits: Array  # [groups, minima]
    share: Array  # [groups, minima] of the group's runs that ended in a minimum, in percent
    notes: tuple[str, ...]


def plot_shared_minima(shared: Shared) -> go.Figure:
    """Draw how often each optimizer found each minimum.

    Columns are minima in the order of their numbers, which is that of their losses; rows are optimizers. Color: the
    share of an optimizer's runs that ended in the minimum, so that different numbers of runs compare; number: the hits.
    White was never hit. Of more than 40 minima, those hit most are shown.

    Args:
        shared: Of `landscape.statistics.shared`.

    Example:
        >>> plot_shared_minima(shared(catalog.labels, catalog.names)).show()  # doctest: +SKIP
    """
    info = _shared_info(shared)
    figure = new_figure("which runs found which minima", info.notes)
    n = len(info.minima)
    written = np.where(info.hits > 0, info.hits.astype(str), "") if n <= _WRITTEN else None
    figure.add_trace(
        go.Heatmap(
            x=np.arange(n),
            y=np.arange(len(info.groups)),
            z=np.where(info.hits > 0, info.share, np.nan),
            zmin=0,
            zmax=float(info.share.max()),
            colorscale="Blues",
            customdata=np.stack(
                [
                    info.hits.astype(object),
                    np.tile(np.array(info.minima, dtype=object), (len(info.groups), 1)),
                    np.tile(np.array(info.groups, dtype=object)[:, None], (1, n)),
                ],
                axis=2,
            ),
            text=written,
            texttemplate="%{text}" if written is not None else None,
            textfont={"size": 14},
            hovertemplate="minimum %{customdata[1]}: %{customdata[0]} runs, %{z:.3g} %<extra>%{customdata[2]}</extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "share of runs (%)", "side": "right"}, "thickness": 16},
        )
    )
    every = max(1, -(-n // 20))
    figure.update_xaxes(
        title_text="minimum, in the order of the loss",
        tickvals=list(range(0, n, every)),
        ticktext=info.minima[::every],
        range=[-0.5, n - 0.5],
        showgrid=False,
        ticks="",
    )
    figure.update_yaxes(
        tickvals=list(range(len(info.groups))),
        ticktext=info.groups,
        range=[len(info.groups) - 0.5, -0.5],
        showgrid=False,
        ticks="",
        linecolor=INK,
    )
    return figure


def _shared_info(shared: Shared) -> _SharedInfo:
    chosen = np.sort(np.argsort(-shared.hits.sum(axis=1), kind="stable")[:_MOST])
    hits = shared.hits[chosen].T
    share = 100 * hits / np.maximum(shared.hits.sum(axis=0), 1)[:, None]
    groups = [escape(name) for name in shared.groups]
    by_all = len(shared.found_by_all())
    notes = []
    if len(groups) > 1:
        notes.append(f"{by_all} of {len(shared.minima)} distinct minima were found by all {len(groups)} settings")
    if len(chosen) < len(shared.minima):
        notes.append(f"shown: the {_MOST} minima that were hit most")
    return _SharedInfo([str(label) for label in shared.minima[chosen]], groups, hits, share, tuple(notes))

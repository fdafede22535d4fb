"""A convex cost and one that is not: softmax regression and a network on the same data.

Both are trained alike from the same seeds, and both are seen on the same slice: the plane through the ends of their
first three runs. Straight lines join all pairs of ends; on the first one all eigenvalues of the Hessian are computed,
which is why the images are small. A cost is convex if none is negative anywhere, and then no line has a barrier.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from landscape import Hessian, Objective, Surface, analyze, barrier_matrix, evaluate, given_directions, run_restarts
from landscape.data import Dataset
from landscape.figures import plot_basins, plot_minima
from landscape.figures.style import INK, PALETTE, new_figure
from landscape.models import build
from landscape.topology import Topology
from lecture.setting import Drawn, Setting

TITLE = "A convex cost and one that is not"
SECONDS = (68.0, 5.0)

LINEAR, NETWORK = KINDS = ("softmax regression", "network")
EPOCHS = 60
REACH = (-0.25, 1.25)  # of both coordinates: 0 is the end of run 1, 1 that of another run
ROUNDING = 1e-10  # share of the largest eigenvalue, or of the loss, below which something counts as zero
UNMARKED = ("trained network", "lowest way to the border", "maximum")  # what the figures of minima show besides


def widths(kind: str, quick: bool) -> tuple[int, ...]:
    """Return the units of the hidden layers; without any, the model is softmax regression."""
    return () if kind == LINEAR else (10,) * (2 if quick else 4)


def model(hidden: tuple[int, ...], data: Dataset, seed: int) -> nn.Module:
    """Return an untrained dense model with tanh units."""
    shape = tuple(data.inputs.shape[1:])
    return build("mlp", seed=seed, input_shape=shape, classes=data.classes, widths=hidden, activation="tanh")


def train(kind: str, data: Dataset, setting: Setting) -> Tensor:
    """Train from several seeds and return where the runs end, `[n, p]` float64."""
    hidden = widths(kind, setting.quick)
    adam = {"learning_rate": 0.01, "batch_size": 200, "epochs": EPOCHS, "evaluate_every": EPOCHS}
    study = run_restarts(
        *(partial(model, hidden, data), data, setting.folder / f"{_file_name(kind)}_runs.h5"),
        settings={"adam": adam},
        seeds=4 if setting.quick else 6,
        progress=False,
    )
    return torch.from_numpy(study.thetas()[np.argsort(study.seed)]).double()


def eigenvalues(objective: Objective, theta: Tensor) -> list[float]:
    """Return all eigenvalues of the Hessian, ascending, from the whole matrix."""
    matrix = Hessian(objective, theta).products(torch.eye(objective.layout.p, dtype=torch.float64))
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).tolist()


def draw(setting: Setting) -> Drawn:
    """Train both, evaluate their planes and lines, and draw them side by side."""
    data = setting.load("digits", limit=500 if setting.quick else None)
    planes: dict[str, Surface] = {}
    found: dict[str, Topology] = {}
    lines: dict[str, np.ndarray] = {}
    spectra: dict[str, np.ndarray] = {}
    numbers: dict[str, Any] = {"data": data.name, "samples": len(data)}
    numbers["hidden layers of the network"] = widths(NETWORK, setting.quick)
    for i, kind in enumerate(KINDS):
        share = partial(_report, setting, i)
        ends = train(kind, data, setting)
        share(0.15)
        network = model(widths(kind, setting.quick), data, 0).double()
        nn.utils.vector_to_parameters(ends[0], network.parameters())
        objective = Objective(network, data)
        planes[kind] = _plane(kind, objective, ends, setting)
        found[kind] = analyze(planes[kind])
        lines[kind] = _lines(kind, objective, ends, setting)
        share(0.3)
        spectra[kind] = _spectra(kind, objective, ends, setting, lambda done, share=share: share(0.3 + 0.7 * done))
        numbers[kind] = _measure(found[kind], lines[kind], spectra[kind])
    figures = {
        "planes": _planes(planes, found, lines),
        "lines": _over_lines(lines, spectra),
        **{_file_name(kind): _relief(kind, planes[kind], found[kind], lines[kind]) for kind in KINDS},
    }
    return Drawn(figures, _caption(numbers), {**numbers, **_claims(numbers)})


def _file_name(kind: str) -> str:
    return kind.replace(" ", "_")


def _report(setting: Setting, i: int, share: float) -> None:
    setting.report((i + share) / len(KINDS))


def _plane(kind: str, objective: Objective, ends: Tensor, setting: Setting) -> Surface:
    labels = [f"from run 1 to run {i}" for i in (2, 3)]
    return evaluate(
        *(objective, given_directions(objective, ends[1:3] - ends[0], info={"labels": labels})),
        resolution=21 if setting.quick else 61,
        extent=REACH,
        path=setting.folder / f"{_file_name(kind)}_plane.h5",
        progress=False,
    )


def _lines(kind: str, objective: Objective, ends: Tensor, setting: Setting) -> np.ndarray:
    """Return the loss on the straight lines between all pairs of ends, `[pairs, points]`."""
    n_points = 13 if setting.quick else 41
    first, second = np.triu_indices(len(ends), 1)
    settings = {"fingerprint": objective.fingerprint(), "ends": ends.tolist(), "points": n_points}
    profiles = setting.keep(
        f"{_file_name(kind)}_lines",
        settings,
        lambda: barrier_matrix(objective, ends, n_points=n_points, progress=False).profiles[first, second].tolist(),
    )
    return np.array(profiles)


def _spectra(
    kind: str, objective: Objective, ends: Tensor, setting: Setting, report: Callable[[float], None]
) -> np.ndarray:
    """Return all eigenvalues of the Hessian along the line through runs 1 and 2, `[points, p]`."""
    line = given_directions(objective, ends[1] - ends[0])
    coordinates, rows = _coordinates(3 if setting.quick else 13), []
    for i, t in enumerate(coordinates):
        theta = line.at([t])
        settings = {"fingerprint": objective.fingerprint(), "theta": theta.tolist()}
        compute = partial(eigenvalues, objective, theta)
        rows.append(setting.keep(f"{_file_name(kind)}_spectrum_{i}", settings, compute))
        report((i + 1) / len(coordinates))
    return np.array(rows)


def _coordinates(n: int) -> np.ndarray:
    return np.linspace(*REACH, n)


def _excess(lines: np.ndarray) -> np.ndarray:
    """Return how far the loss lies above the straight line between its ends, `[pairs, points]`."""
    t = np.linspace(0, 1, lines.shape[1])
    return lines - ((1 - t) * lines[:, :1] + t * lines[:, -1:])


def _measure(topology: Topology, lines: np.ndarray, spectra: np.ndarray) -> dict[str, Any]:
    barriers = _excess(lines).max(axis=1)
    negative = spectra < -ROUNDING * np.abs(spectra).max()
    return {
        "parameters": spectra.shape[1],
        "minima on the plane": topology.count(),
        "minima counted": topology.describe().splitlines()[0],
        "values of the minima on the plane": topology.minima.value[topology.counts_as(topology.minima)].tolist(),
        "loss at the ends of the runs": [float(min(lines[0, 0], lines[:, -1].min())), float(lines[:, [0, -1]].max())],
        "lines between pairs of runs": len(lines),
        "lines with a barrier": int((barriers > ROUNDING * lines.max()).sum()),
        "lowest barrier": float(barriers.min()),
        "highest barrier": float(barriers.max()),
        "points of the line with all eigenvalues": len(spectra),
        "smallest Hessian eigenvalue on the line": float(spectra.min()),
        "largest Hessian eigenvalue on the line": float(spectra.max()),
        "fewest negative eigenvalues at a point": int(negative.sum(axis=1).min()),
        "most negative eigenvalues at a point": int(negative.sum(axis=1).max()),
    }


def _claims(numbers: dict[str, Any]) -> dict[str, bool]:
    linear, network = (numbers[kind] for kind in KINDS)
    return {
        "softmax regression has one minimum on the plane": linear["minima on the plane"] == 1,
        "the network has more": network["minima on the plane"] > linear["minima on the plane"],
        "no Hessian eigenvalue of softmax regression is negative": linear["most negative eigenvalues at a point"] == 0,
        "the network has negative ones everywhere on the line": network["fewest negative eigenvalues at a point"] > 0,
        "no line of softmax regression has a barrier": linear["lines with a barrier"] == 0,
        "every line of the network has one": network["lines with a barrier"] == network["lines between pairs of runs"],
    }


def _caption(numbers: dict[str, Any]) -> str:
    linear, network = (numbers[kind] for kind in KINDS)
    minima, barrier = "minima on the plane", "lines with a barrier"
    hidden = ", ".join(map(str, numbers["hidden layers of the network"]))
    smallest, negative = "smallest Hessian eigenvalue on the line", "most negative eigenvalues at a point"
    return (
        f"Softmax regression ({linear['parameters']} parameters) and a network with hidden layers of {hidden} tanh "
        f"units ({network['parameters']}), trained alike on {numbers['samples']:,} images of {numbers['data']}: the "
        f"plane through the ends of three runs has {linear[minima]} local {_plural('minimum', linear[minima])} for the "
        f"one and {network[minima]} for the other (persistence above the noise of the grid). Of the "
        f"{linear['lines between pairs of runs']} straight lines between runs, {linear[barrier]} and "
        f"{network[barrier]} have a barrier. Along the line through runs 1 and 2 the smallest Hessian eigenvalue of "
        f"softmax regression is {linear[smallest]:.0e} ({_sign(linear)}); that of the network is "
        f"{network[smallest]:.3g}, and up to "
        f"{network[negative]} of its {network['parameters']} eigenvalues are negative."
    )


def _sign(measured: dict[str, Any]) -> str:
    n = measured["most negative eigenvalues at a point"]
    return f"{n} are negative" if n else "zero up to rounding"


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word.removesuffix('um')}a"


def _ceiling(lines: np.ndarray) -> float:
    """Return where the view of a plane ends: the corners of the network's would hide its minima."""
    return 2 * float(lines.max())


def _planes(planes: dict[str, Surface], found: dict[str, Topology], lines: dict[str, np.ndarray]) -> go.Figure:
    figure = make_subplots(rows=1, cols=2, subplot_titles=KINDS, horizontal_spacing=0.12)
    counts = [f"{found[kind].count()} {_plural('minimum', found[kind].count())}" for kind in KINDS]
    notes = ["loss on the plane through the ends of three runs", f"{counts[0]} and {counts[1]}, a color for each basin"]
    new_figure(TITLE, notes, figure)
    named: set[str] = set()
    for i, kind in enumerate(KINDS):
        place = {"row": 1, "col": i + 1}
        for trace in plot_minima(planes[kind], found[kind], ceiling=_ceiling(lines[kind])).data:
            if trace.name in UNMARKED:
                continue
            if trace.type == "contour":  # its color bar would stand between the panels
                trace.showscale = False
            elif trace.showlegend is not False and trace.type == "scatter":
                trace.showlegend = trace.name not in named
                named.add(trace.name)
            figure.add_trace(trace, **place)
        figure.add_trace(
            go.Scatter(
                x=[0, 1, 0],
                y=[0, 0, 1],
                mode="markers",
                marker={"symbol": "circle-open", "size": 32, "color": INK, "line": {"width": 2}},  # around a minimum
                name="end of a run",
                showlegend=not i,
                text=["run 1", "run 2", "run 3"],
                hovertemplate="%{text}<extra></extra>",
            ),
            **place,
        )
        figure.update_xaxes(title_text="from run 1 to run 2", range=REACH, showgrid=False, **place)
        figure.update_yaxes(range=REACH, showgrid=False, **place)
    figure.update_yaxes(title_text="from run 1 to run 3", row=1, col=1)
    figure.update_annotations(font={"size": 15})
    figure.update_layout(margin={"t": figure.layout.margin.t + 24, "b": 110})
    return figure


def _over_lines(lines: dict[str, np.ndarray], spectra: dict[str, np.ndarray]) -> go.Figure:
    figure = make_subplots(rows=2, cols=2, subplot_titles=KINDS, vertical_spacing=0.14, horizontal_spacing=0.16)
    n = len(next(iter(lines.values())))
    notes = [f"above: loss on the lines between {n} pairs of runs", "below: Hessian eigenvalues through runs 1 and 2"]
    new_figure("On straight lines between runs", notes, figure)
    for i, (kind, color) in enumerate(zip(KINDS, PALETTE, strict=False)):
        t = np.linspace(0, 1, lines[kind].shape[1])
        rows = np.concatenate([lines[kind], np.full((n, 1), np.nan)], axis=1)
        figure.add_trace(
            go.Scatter(
                x=np.tile(np.append(t, np.nan), n),
                y=rows.ravel(),
                mode="lines",
                line={"color": color, "width": 1.3},
                showlegend=False,
                hovertemplate="at %{x:.2f} of the way: loss %{y:.4g}<extra></extra>",
            ),
            row=1,
            col=i + 1,
        )
        figure.update_yaxes(nticks=6, row=1, col=i + 1)
        figure.update_xaxes(tickvals=[0, 0.5, 1], row=1, col=i + 1)
        at = _coordinates(len(spectra[kind]))
        for name, values, look in (
            ("largest", spectra[kind].max(axis=1), {"color": "#777777", "dash": "dash"}),
            ("smallest", spectra[kind].min(axis=1), {"color": PALETTE[1], "dash": "solid"}),
        ):
            figure.add_trace(
                go.Scatter(
                    x=at,
                    y=values,
                    mode="lines+markers",
                    line={"width": 3, **look},
                    marker={"size": 6},
                    name=f"{name} eigenvalue",
                    showlegend=not i,
                    hovertemplate=f"%{{x:.3g}}: {name} eigenvalue %{{y:.4g}}<extra></extra>",
                ),
                row=2,
                col=i + 1,
            )
        figure.add_hline(0, line={"color": INK, "width": 1}, row=2, col=i + 1)
        figure.update_xaxes(tickvals=[0, 0.5, 1], title_text="run 1 to run 2", row=2, col=i + 1)
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="eigenvalue", row=2, col=1)
    figure.update_annotations(font={"size": 15})
    figure.update_layout(margin={"t": figure.layout.margin.t + 24, "b": 90})
    return figure


def _relief(kind: str, plane: Surface, topology: Topology, lines: np.ndarray) -> go.Figure:
    figure = plot_basins(plane, topology, ceiling=_ceiling(lines))
    figure.data = [trace for trace in figure.data if trace.name not in UNMARKED]
    n = topology.count()
    notes = ["loss on the plane through the ends of three runs", f"{n} local {_plural('minimum', n)}"]
    return new_figure(kind[0].upper() + kind[1:], notes, figure)

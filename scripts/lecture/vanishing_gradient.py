"""Vanishing gradient: what reaches each layer of a deep dense network, and which starts train.

The recipe: dense networks with 20 hidden layers of 50 units, once with each activation, initialized so that signals
keep their size (Glorot, for ReLU He) times a scale; the gradient over all data, layer by layer, before and during plain
gradient descent on mini-batches (Glorot and Bengio 2010). Then all hidden biases are moved: on the negative side ReLU
is dead (Maas, Hannun and Ng 2013), sigmoid and tanh are flat, and maxout is as steep as ever.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from math import ceil, floor, log
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from landscape import Objective, Trajectory, activation_slopes, gradient_norms, run_restarts, train
from landscape.data import Dataset
from landscape.figures import plot_loss_curves
from landscape.figures.style import INK, PALETTE, RUN_COLORS, new_figure
from landscape.models import build
from lecture.setting import Drawn, Setting

TITLE = "Vanishing gradient"
SECONDS = (190.0, 10.0)

ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU", "maxout": "maxout"}
SYMBOLS = ("circle", "square", "diamond", "x")
SCALES = (0.5, 1.0, 2.0, 4.0)
DESCENT = {"optimizer": "gd", "learning_rate": 0.02}
TRAINS = 0.5  # times the loss of guessing: a start that ends below trains
DOTTED = {"color": INK, "width": 1.5, "dash": "dot"}
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


def draw(setting: Setting) -> Drawn:
    """Draw the gradient before and during training, the loss, and what happens when biases are moved."""
    plan = QUICK if setting.quick else Plan()
    data = setting.load("mnist", limit=plan.images)
    given = {"data": data.fingerprint, "plan": asdict(plan), **DESCENT}
    starts = dict.fromkeys(
        [
            *(Start(a, s) for a in ACTIVATIONS for s in SCALES),
            *(Start(a, 1.0, b) for a in ACTIVATIONS for b in plan.biases),
        ]
    )
    n_all = len(starts) + len(ACTIVATIONS)
    results = {}
    for start in starts:
        name = f"{data.name}_{start.activation}_{start.scale:g}_{start.bias:g}"
        compute = partial(study, start, plan, data, setting.folder / f"{name}.h5")
        results[start] = setting.keep(name, {**given, "start": asdict(start)}, compute)
        setting.report(len(results) / n_all)
    during = {}
    for activation in ACTIVATIONS:
        name = f"{data.name}_{activation}_during"
        compute = partial(follow, Start(activation), plan, data, setting.folder / name)
        during[activation] = setting.keep(name, given, compute)
        setting.report((len(starts) + len(during)) / n_all)
    guessing = log(data.classes)
    look = f"{data.name}, {plan.depth} hidden layers of {plan.width} units"
    figures = {
        "gradient": plot_start(results, plan, look),
        "training": plot_training(results, plan, guessing, look),
        "during": plot_during(during, look),
        "biases": plot_biases(results, plan, guessing, look),
    }
    numbers = summarize(results, during, plan, data)
    return Drawn(figures, caption(numbers), numbers)


def summarize(results: dict[Start, Any], during: dict[str, Any], plan: Plan, data: Dataset) -> dict[str, Any]:
    """Return what was measured, medians over the seeds, and what of the lecture holds."""
    guessing = log(data.classes)
    numbers: dict[str, Any] = {
        "data": data.name,
        "plan": asdict(plan),
        "learning rate": DESCENT["learning_rate"],
        "loss of guessing": guessing,
        "starts": {},
        "during training": {},
    }
    for start, result in results.items():
        front = values(result, "start", "entries")
        entry = {
            "first layer, entry of the gradient (RMS)": float(np.median(front[:, 0])),
            "last layer, entry of the gradient (RMS)": float(np.median(front[:, -1])),
            f"layers with an entry (RMS) below {NOTHING:.0e}": int((np.median(front, axis=0) < NOTHING).sum()),
            "dead units, share": float(np.median(values(result, "start", "dead"))),
            "mean slope": None if start.activation == "maxout" else float(np.median(values(result, "start", "slope"))),
        }
        if "loss" in result:
            last = np.array(result["loss"])[:, -1]
            finite = last[np.isfinite(last)]
            entry |= {
                "loss after training": float(np.median(finite)) if len(finite) else None,
                "diverged runs": int(len(last) - len(finite)),
                "runs that train": int((finite < TRAINS * guessing).sum()),
                "first layer, share of weights that training changed": (
                    float(np.median(result["moved"])) if len(finite) else None
                ),
                "dead units after training, share": (
                    float(np.median(values(result, "end", "dead"))) if len(finite) else None
                ),
            }
        numbers["starts"][describe(start)] = entry
    for activation, run in during.items():
        front = np.array(run["entries"])[:, 0]
        numbers["during training"][ACTIVATIONS[activation]] = {
            "first layer, smallest entry (RMS) of any epoch": float(front.min()),
            "first layer, largest entry (RMS) of any epoch": float(front.max()),
        }
    numbers["claims"] = claims(numbers["starts"], plan)
    numbers["scales at which all runs train"] = {
        name: [s for s in SCALES if numbers["starts"][describe(Start(key, s))]["runs that train"] == plan.seeds]
        for key, name in ACTIVATIONS.items()
    }
    return numbers


def describe(start: Start) -> str:
    """Name a start."""
    return f"{ACTIVATIONS[start.activation]}, scale {start.scale:g}, biases {start.bias:g}"


def claims(starts: dict[str, Any], plan: Plan) -> dict[str, bool]:
    """Check what the lecture says."""

    def of(activation: str, scale: float = 1.0, bias: float = 0.0) -> dict[str, Any]:
        return starts[describe(Start(activation, scale, bias))]

    def front(activation: str, bias: float = 0.0) -> float:
        return of(activation, bias=bias)["first layer, entry of the gradient (RMS)"]

    def trains(activation: str, scale: float = 1.0, bias: float = 0.0) -> bool:
        return of(activation, scale, bias)["runs that train"] == plan.seeds

    far, dead = min(plan.biases), min(plan.trained)
    sigmoid = of("sigmoid")
    return {
        "sigmoid: no entry worth mentioning reaches the first layer": front("sigmoid") < NOTHING,
        "sigmoid: the last layer has a gradient": sigmoid["last layer, entry of the gradient (RMS)"] > 1e-3,
        "sigmoid: none of the scales trains": not any(of("sigmoid", s)["runs that train"] for s in SCALES),
        "tanh: far from the origin by its biases, no entry worth mentioning reaches the first layer": (
            front("tanh", far) < NOTHING
        ),
        "tanh: far from the origin by large weights, no entry worth mentioning reaches the first layer": (
            of("tanh", max(SCALES))["first layer, entry of the gradient (RMS)"] < NOTHING
        ),
        "ReLU: the signal reaches the first layer": front("relu") > 1e-3,
        "ReLU: trains": trains("relu"),
        "ReLU: biases on the dead side leave a gradient of 0 and no training": (
            front("relu", dead) == 0 and not of("relu", bias=dead)["runs that train"]
        ),
        "maxout: no dead units at any bias": all(of("maxout", bias=b)["dead units, share"] == 0 for b in plan.biases),
        "maxout: trains at every bias": all(trains("maxout", bias=b) for b in plan.trained),
    }


def caption(numbers: dict[str, Any]) -> str:
    """Say what is to be seen, with its numbers, and which claims of the lecture do not hold here."""
    plan, starts = numbers["plan"], numbers["starts"]
    sigmoid, tanh, relu = (starts[describe(Start(a))] for a in ("sigmoid", "tanh", "relu"))
    dead_bias = min(plan["trained"])
    dead, maxout = (starts[describe(Start(a, 1.0, dead_bias))] for a in ("relu", "maxout"))
    first, last = "first layer, entry of the gradient (RMS)", "last layer, entry of the gradient (RMS)"
    changed = sigmoid["first layer, share of weights that training changed"]
    share = "none" if changed == 0 else f"{changed:.2%}"
    failed = [claim for claim, holds in numbers["claims"].items() if not holds]
    networks = (
        f"Networks with {plan['depth']} hidden layers of {plan['width']} units, {plan['images']:,} images of "
        f"{numbers['data']}, medians of {plan['seeds']} seeds"
    )
    flat = (
        f"with the sigmoid the entries of the gradient fall from {sigmoid[last]:.0e} in the last layer to "
        f"{sigmoid[first]:.0e} in the first, {plan['epochs']} epochs change {share} of the weights there and end "
        f"at a loss of {loss(sigmoid)} (guessing: {numbers['loss of guessing']:.2f})"
    )
    steep = (
        f"in front of tanh and ReLU the entries are {tanh[first]:.0e} and {relu[first]:.0e}, and the loss ends at "
        f"{loss(tanh)} and {loss(relu)}"
    )
    moved_biases = (
        f"With all hidden biases at {dead_bias:g}, {dead['dead units, share']:.0%} of the ReLU units are dead and the "
        f"loss ends at {loss(dead)}; of maxout {maxout['dead units, share']:.0%} are, and it ends at {loss(maxout)}"
    )
    good = numbers["scales at which all runs train"].items()
    scales = "; ".join(f"{name} {', '.join(f'{s:g}' for s in each) or 'none'}" for name, each in good)
    against = f" What the lecture says and does not hold here: {'; '.join(failed)}." if failed else ""
    return f"{networks}: {flat}; {steep}. {moved_biases}. Scales at which all runs train: {scales}.{against}"


def loss(entry: dict[str, Any]) -> str:
    """Return the final loss of a start in words."""
    value = entry["loss after training"]
    return "nothing finite" if value is None else f"{value:.2f}"


def values(result: dict[str, Any], when: str, name: str) -> np.ndarray:
    """Return a measurement over the seeds, `[seeds, ...]`; NaN where there is none."""
    return np.array([each[name] for each in result[when]], dtype=np.float64)


def panels(title: str, notes: list[str], titles: list[str]) -> go.Figure:
    """Return a figure of two by two panels."""
    figure = make_subplots(2, 2, subplot_titles=titles, horizontal_spacing=0.13, vertical_spacing=0.17)
    new_figure(title, notes, figure)
    figure.update_annotations(font={"size": 15})
    figure.update_layout(margin={"t": figure.layout.margin.t + 24, "b": 80})
    return figure


def place(i: int) -> dict[str, int]:
    """Return where panel i is."""
    return {"row": i // 2 + 1, "col": i % 2 + 1}


def plot_start(results: dict[Start, Any], plan: Plan, look: str) -> go.Figure:
    """Draw the entries of the gradient before training against the layer."""
    notes = [
        look,
        f"before training; median of {plan.seeds} seeds, band: all of them",
        f"scale: factor on the initial weights; dotted: {NOTHING:.0e}",
    ]
    figure = panels("Gradient of each layer", notes, list(ACTIVATIONS.values()))
    entries = {key: values(results[Start(*key)], "start", "entries") for key in product(ACTIVATIONS, SCALES)}
    for i, activation in enumerate(ACTIVATIONS):
        for j, scale in enumerate(SCALES):
            x = np.arange(1, plan.depth + 2)
            add_band(figure, i, x, entries[activation, scale], RUN_COLORS[j], f"scale {scale:g}", SYMBOLS[j], i == 0)
        figure.add_hline(NOTHING, line=DOTTED, **place(i))
    figure.update_yaxes(power_axis(np.concatenate(list(entries.values()))))
    figure.update_yaxes(title_text="entry (RMS)", col=1)
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_xaxes(range=[0, plan.depth + 2])
    figure.update_xaxes(title_text="layer (1: front)", row=2)
    return figure


def power_axis(shown: np.ndarray) -> dict[str, Any]:
    """Return the settings of a logarithmic axis over many decades; zeros are to be drawn at its lower end, `10**low`.

    The axis ends two ticks below the smallest positive value if there are zeros.
    """
    exponents = np.log10(shown[shown > 0])
    step = 4 if np.ptp(exponents) < 24 else 8
    low, high = step * floor(exponents.min() / step), step * ceil(exponents.max() / step)
    ticks = list(range(low, high + 1, step))
    names = [f"10<sup>{k}</sup>" for k in ticks]
    if (shown == 0).any():
        ticks, names = [low - step, *ticks], ["0", *names]
    return {
        "type": "log",
        "range": [ticks[0] - 0.5, ticks[-1] + 0.5],
        "tickvals": [10.0**k for k in ticks],
        "ticktext": names,
    }


def add_band(
    figure: go.Figure, i: int, x: Sequence[Any], y: np.ndarray, color: str, name: str, symbol: str, in_legend: bool
) -> None:
    """Add the median over the seeds `[seeds, m]` and the range of all of them to panel i."""
    low, high = y.min(axis=0), y.max(axis=0)
    shared = {"legendgroup": name, "name": name}
    figure.add_trace(
        go.Scatter(
            x=[*x, *x[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=color,
            opacity=0.22,
            line={"width": 0},
            mode="lines",
            showlegend=False,
            hoverinfo="skip",
            **shared,
        ),
        **place(i),
    )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=np.median(y, axis=0),
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"symbol": symbol, "size": 7},
            showlegend=in_legend,
            hovertemplate="%{x}: %{y:.2g}<extra>%{fullData.name}</extra>",
            **shared,
        ),
        **place(i),
    )


def plot_training(results: dict[Start, Any], plan: Plan, guessing: float, look: str) -> go.Figure:
    """Draw the loss during training; what diverged is named."""
    notes = [
        look,
        f"gradient descent, rate {DESCENT['learning_rate']:g}, batches of {plan.batch_size}",
        f"median and middle half of {plan.seeds} seeds; dotted: guessing",
    ]
    figure = panels("Training from each start", notes, list(ACTIVATIONS.values()))
    epochs = np.arange(plan.epochs + 1)
    for i, activation in enumerate(ACTIVATIONS):
        losses = {scale: np.array(results[Start(activation, scale)]["loss"]) for scale in SCALES}
        for trace in plot_loss_curves({f"scale {s:g}": (epochs, each) for s, each in losses.items()}).data:
            figure.add_trace(trace.update(showlegend=i == 0 and trace.showlegend is not False), **place(i))
        lost = [f"{scale:g}" for scale, each in losses.items() if not np.isfinite(each).all()]
        if lost:
            figure.add_annotation(
                text=f"scale {', '.join(lost)}: diverged",
                x=0.96,
                y=0.9,
                xref="x domain",
                yref="y domain",
                xanchor="right",
                showarrow=False,
                font={"size": 13},
                **place(i),
            )
        figure.add_hline(guessing, line=DOTTED, **place(i))
    figure.update_yaxes(range=[0, 1.5 * guessing], dtick=1)
    figure.update_yaxes(title_text="loss (nats)", col=1)
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_xaxes(title_text="epoch", row=2)
    return figure


def plot_during(during: dict[str, Any], look: str) -> go.Figure:
    """Draw the entries of the gradient by layer during training."""
    notes = [look, "scale 1, one seed; color: entry of the gradient (RMS)"]
    figure = panels("Gradient during training", notes, list(ACTIVATIONS.values()))
    entries = {activation: np.array(run["entries"]) for activation, run in during.items()}
    axis = power_axis(np.concatenate([each.ravel() for each in entries.values()]))
    for i, (activation, each) in enumerate(entries.items()):
        with np.errstate(divide="ignore"):
            exponents = np.log10(each)
        figure.add_trace(
            go.Heatmap(
                x=during[activation]["epochs"],
                y=np.arange(1, each.shape[1] + 1),
                z=exponents.T,
                customdata=each.T,
                coloraxis="coloraxis",
                hovertemplate="layer %{y}, epoch %{x:.3g}: %{customdata:.2g}<extra></extra>",
            ),
            **place(i),
        )
    ticks = np.log10(axis["tickvals"])
    bar = {"tickvals": ticks, "ticktext": axis["ticktext"], "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": ticks[0], "cmax": ticks[-1], "colorbar": bar})
    figure.update_yaxes(title_text="layer (1: front)", col=1)
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_xaxes(title_text="epoch", row=2)
    return figure


def plot_biases(results: dict[Start, Any], plan: Plan, guessing: float, look: str) -> go.Figure:
    """Draw slope, dead units, gradient and final loss against the hidden biases."""
    notes = [
        look,
        f"scale 1, all hidden biases at one value; {plan.seeds} seeds:",
        "median, band: all; dotted: guessing",
    ]
    notes.append("slope of maxout: that of its larger piece, 1")
    titles = ["mean slope", "dead units (%)", "first layer: entry (RMS)", "loss after training"]
    figure = panels("Biases moved", notes, titles)
    of = {
        (activation, name): np.stack(
            [values(results[Start(activation, 1.0, bias)], "start", name) for bias in plan.biases], axis=1
        )
        for activation, name in product(ACTIVATIONS, ("slope", "dead", "entries"))
    }
    axis = power_axis(np.stack([of[activation, "entries"][:, :, 0] for activation in ACTIVATIONS]))
    x, x_trained = ([f"{bias:g}" for bias in biases] for biases in (plan.biases, plan.trained))
    for j, (activation, name) in enumerate(ACTIVATIONS.items()):
        look_of = PALETTE[j], name, SYMBOLS[j]
        if activation != "maxout":
            add_band(figure, 0, x, of[activation, "slope"], *look_of, False)
        add_band(figure, 1, x, 100 * of[activation, "dead"], *look_of, True)
        front = of[activation, "entries"][:, :, 0]
        add_band(figure, 2, x, np.where(front > 0, front, axis["tickvals"][0]), *look_of, False)
        ends = [np.array(results[Start(activation, 1.0, bias)]["loss"])[:, -1] for bias in plan.trained]
        add_band(figure, 3, x_trained, np.stack(ends, axis=1), *look_of, False)
    figure.update_yaxes(axis, **place(2))
    figure.update_yaxes(range=[0, 1.15 * guessing], **place(3))
    figure.add_hline(guessing, line=DOTTED, **place(3))
    every = 1 if len(plan.biases) < 8 else 5  # no room for more on a phone
    figure.update_xaxes(type="category", tickangle=0, tickvals=x[::every])
    figure.update_xaxes(tickvals=x_trained[::2], **place(3))
    figure.update_xaxes(title_text="hidden biases", row=2)
    return figure

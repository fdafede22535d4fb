"""L10: optimizers. Cost and accuracy of a dense network against epochs, in full batch and in mini-batches.

The setting is that of Watt, Borhani and Katsaggelos, *Machine Learning Refined*, second edition, section 13.5: 50,000
images of MNIST, four hidden layers of ten tanh units, multi-class softmax cost, mini-batches of 200, ten epochs, and of
each optimizer the largest step length 10^k that converges. Weights and biases begin as in the authors' own code
(github.com/neonwatty/machine_learning_refined), drawn from N(0, 0.1^2): with PyTorch's larger ones plain descent moves
in full batch, too. Here a curve is the median of ten initializations.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import nn

from landscape import train_many
from landscape.data import Dataset
from landscape.figures import plot_loss_curves
from landscape.figures.loss_curves import quartile_curves
from landscape.figures.style import new_figure
from landscape.models import build
from lecture.setting import Drawn, Setting

TITLE = "Optimizers"
SECONDS = (450.0, 7.0)

OPTIMIZERS = {
    "gd": "plain descent",
    "normalized": "normalized",
    "rmsprop": "RMSprop",
    "adam": "Adam",
}
EXPONENTS = tuple(range(1, -6, -1))  # of the step lengths tried, from the largest
SCALE = 0.1  # standard deviation of the initial parameters
UNREST = 0.1
EPOCHS = 10
N_SEARCH = 3
COST, ACCURACY = "median cost after each epoch", "median accuracy after each epoch"
TENTH = "mini-batches, a tenth of the step length"


class Curves(NamedTuple):
    """What one optimizer did with one size of batches: its step length 10^k, and the runs `[n, e]` with it."""

    exponent: int
    cost: np.ndarray
    accuracy: np.ndarray


def unrest(cost: np.ndarray) -> float:
    """Return what the median cost of runs rises from epoch to epoch, in total, as a share of what it falls.

    A step length converges if this is below `UNREST`. It is infinite where the median never falls, or is not finite.

    Args:
        cost: `[n, e]` after each epoch, the start first.
    """
    median = quartile_curves(cost)[1]
    if not np.isfinite(median).all():
        return math.inf
    change = np.diff(median)
    fall = np.maximum(-change, 0).sum()
    return float(np.maximum(change, 0).sum() / fall) if fall else math.inf


def network(data: Dataset, seed: int) -> nn.Module:
    """Return the lecture's network before training."""
    model = build("mlp", seed=seed, input_shape=tuple(data.inputs.shape[1:]), classes=data.classes)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=SCALE, generator=generator)
    return model


def run(setting: Setting, data: Dataset, optimizer: str, batch: int | None, exponent: int, seeds: range) -> Curves:
    """Train the networks of some seeds at once, or read what was stored."""
    settings = {
        "data": [data.name, len(data), data.fingerprint],
        "initial parameters": f"N(0, {SCALE}^2)",
        "optimizer": optimizer,
        "learning rate": f"1e{exponent}",
        "batch size": batch,
        "epochs": EPOCHS,
        "seeds": list(seeds),
    }

    def train() -> dict[str, Any]:
        ensemble = train_many(
            lambda seed: network(data, seed),
            data,
            seeds=seeds,
            optimizer=optimizer,
            learning_rate=10.0**exponent,
            batch_size=batch,
            epochs=EPOCHS,
            progress=False,
        )
        return {name: values.tolist() for name, values in ensemble.history.items()}

    name = f"{optimizer}_{batch or 'full'}_1e{exponent}_seeds{seeds.start}to{seeds.stop - 1}"
    history = setting.keep(name, settings, train)
    return Curves(exponent, np.array(history["loss"]), np.array(history["accuracy"]))


def largest(setting: Setting, data: Dataset, optimizer: str, batch: int | None, n: int) -> Curves:
    """Find the largest step length 10^k that converges, first with the first seeds, then with all `n` of them."""
    for exponent in EXPONENTS:
        found = run(setting, data, optimizer, batch, exponent, range(N_SEARCH))
        if unrest(found.cost) < UNREST and n > N_SEARCH:
            others = run(setting, data, optimizer, batch, exponent, range(N_SEARCH, n))  # each as if trained alone
            found = Curves(exponent, *map(np.concatenate, zip(found[1:], others[1:], strict=True)))
        if unrest(found.cost) < UNREST:
            return found
    raise ValueError(f"{optimizer} converges with no step length from 10^{EXPONENTS[0]} to 10^{EXPONENTS[-1]}")


def label(optimizer: str, curves: dict[int | None, dict[str, Curves]]) -> str:
    """Return an optimizer with its step lengths, in full batch and in mini-batches."""
    return f"{OPTIMIZERS[optimizer]}, " + " and ".join(
        f"{10.0 ** own[optimizer].exponent:g}" for own in curves.values()
    )


def plot(curves: dict[int | None, dict[str, Curves]], notes: list[str]) -> go.Figure:
    """Draw cost (above) and accuracy (below), in full batch (left) and in mini-batches (right)."""
    titles = ["full batch" if size is None else f"mini-batches of {size}" for size in curves]
    panels = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=titles,
        horizontal_spacing=0.09,
        vertical_spacing=0.06,
    )
    figure = new_figure("Optimizers: cost and accuracy", notes, panels)
    for column, own in enumerate(curves.values(), start=1):
        for row, metric in enumerate(("cost", "accuracy"), start=1):
            values = {label(name, curves): (np.arange(EPOCHS + 1), getattr(own[name], metric)) for name in own}
            for trace in plot_loss_curves(values, metric).data:
                trace.showlegend = trace.showlegend is None and (row, column) == (1, 1)
                figure.add_trace(trace, row=row, col=column)
    figure.update_xaxes(title_text="epoch", row=2)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="cost", row=1, col=1)
    figure.update_yaxes(title_text="right (%)", row=2, col=1)
    figure.update_layout(margin={"t": figure.layout.margin.t + 24, "b": 90})
    return figure


def measure(curves: dict[int | None, dict[str, Curves]]) -> dict[str, Any]:
    """Return the medians of both sizes of batches, and which of the lecture's statements hold."""
    numbers: dict[str, Any] = {}
    for size, own in curves.items():
        numbers["full batch" if size is None else "mini-batches"] = {
            name: {
                "step length": 10.0**found.exponent,
                "rise of the median cost over its fall": unrest(found.cost),
                COST: quartile_curves(found.cost)[1].tolist(),
                ACCURACY: quartile_curves(found.accuracy, "higher")[1].tolist(),
            }
            for name, found in own.items()
        }
    full, mini = (
        {name: np.array(own[COST]) for name, own in numbers[batches].items()}
        for batches in ("full batch", "mini-batches")
    )
    plain, plain_mini = full.pop("gd"), mini.pop("gd")
    once = [numbers["mini-batches"][name][ACCURACY][1] for name in mini]
    claims = {
        "in full batch, plain descent hardly moves (its cost falls by less than a fifth)": plain[-1] > 0.8 * plain[0],
        "in full batch, the others fall at once (by more than a half in ten steps)": all(
            cost[-1] < 0.5 * cost[0] for cost in full.values()
        ),
        "in full batch, the others fall at least twice as far as plain descent": all(
            cost[0] - cost[-1] > 2 * (plain[0] - plain[-1]) for cost in full.values()
        ),
        "in mini-batches, plain descent moves (its cost falls by more than a half)": plain_mini[-1]
        < 0.5 * plain_mini[0],
        "in mini-batches, plain descent stays behind (its cost is the highest after every epoch)": all(
            (cost < plain_mini)[1:].all() for cost in mini.values()
        ),
        "in mini-batches, the others have about 90 % at once (85 % or more after one epoch)": min(once) >= 0.85,
    }
    return {**numbers, "claims": {claim: bool(holds) for claim, holds in claims.items()}}


def describe(numbers: dict[str, Any]) -> str:
    """Return the caption: the settings, the medians, and which of the lecture's statements do not hold."""

    def medians(batches: str, epoch: int = -1, quantity: str = COST) -> tuple[str, str]:
        """Return the median of plain descent, and the range of the others'; accuracies in percent."""
        values = {name: own[quantity][epoch] for name, own in numbers[batches].items()}
        plain = values.pop("gd")
        ends = min(values.values()), max(values.values())
        plain, low, high = (f"{100 * v:.0f}" if quantity == ACCURACY else f"{v:.3f}" for v in (plain, *ends))
        return plain, f"{low} to {high}"

    start = numbers["full batch"]["gd"][COST][0]
    full, mini = map(medians, ("full batch", "mini-batches"))
    once = medians("mini-batches", 1, ACCURACY)
    failed = [claim.partition(" (")[0] for claim, holds in numbers["claims"].items() if not holds]
    better = [
        f"{OPTIMIZERS[name]} ends at {own[COST][-1]:.3f}"
        for name, own in numbers[TENTH].items()
        if own[COST][-1] < numbers["mini-batches"][name][COST][-1]
    ]
    return (
        f"Four hidden layers of 10 tanh units on {numbers['images']:,} images of {numbers['data']}, {EPOCHS} epochs "
        f"from parameters drawn from N(0, {SCALE}^2), each optimizer with its largest step length 10^k that converges "
        f"(the median cost rises, in total, by less than {100 * UNREST:g} % of what it falls). From {start:.3f} it "
        f"falls to {full[0]} by plain descent and to {full[1]} by the others in full batch ({EPOCHS} steps), to "
        f"{mini[0]} and {mini[1]} in mini-batches of {numbers['batch size']}, where after one epoch {once[0]} % and "
        f"{once[1]} % of the training images are right."
        + (f" Of the lecture's statements these do not hold here: {'; '.join(failed)}." if failed else "")
        + (f" With a tenth of that step {' and '.join(better)}." if better else "")
    )


def draw(setting: Setting) -> Drawn:
    """Train with every optimizer, in full batch and in mini-batches."""
    data = setting.load("mnist", limit=2_000 if setting.quick else 50_000)
    batch = 200 if len(data) == 50_000 else 50
    n = N_SEARCH if setting.quick else 10
    curves: dict[int | None, dict[str, Curves]] = {None: {}, batch: {}}
    jobs = [(size, optimizer) for size in curves for optimizer in OPTIMIZERS]
    share = 1 / (len(jobs) + len(OPTIMIZERS))
    for i, (size, optimizer) in enumerate(jobs, start=1):
        curves[size][optimizer] = largest(setting, data, optimizer, size, n)
        setting.report(i * share)
    tenth = {}  # the largest step length that converges need not be the best
    for i, (optimizer, found) in enumerate(curves[batch].items(), start=len(jobs) + 1):
        cost = run(setting, data, optimizer, batch, found.exponent - 1, range(n)).cost
        tenth[optimizer] = {COST: quartile_curves(cost)[1].tolist()}
        setting.report(i * share)
    notes = [
        f"{len(data):,} images of {data.name}; {n} runs: median, middle half",
        "step lengths: full batch and mini-batches",
    ]
    numbers = {
        **{"data": data.name, "images": len(data), "initializations": n, "epochs": EPOCHS, "batch size": batch},
        "steps in mini-batches": EPOCHS * math.ceil(len(data) / batch),
        **measure(curves),
        TENTH: tenth,
    }
    return Drawn({"optimizers": plot(curves, notes)}, describe(numbers), numbers)

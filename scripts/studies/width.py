"""Measure how the spread of the final loss of MNIST networks shrinks with width.

Choromanska et al. (arXiv:1412.0233) trained networks with one hidden layer on MNIST images of 10 x 10 pixels from many
initializations, and saw the test losses concentrate as the layer got wider. Here: the same with tanh, a weight penalty,
so that there is a finite minimum to converge to, and full batches (Adam, cosine schedule), so that nothing but the
initialization differs between runs of one width.

For each width: loss and accuracy of all runs, distance of their quartiles and standard deviation with bootstrap
intervals, and a permutation test for a trend of the spread with width. Runs are kept in one file per width; a second
call goes on where the first one stopped.

    LANDSCAPE_DATA=folder python scripts/studies/width.py [--quick] [--workers 2] [--out results/studies]
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.data import load
from landscape.figures import save_figure
from landscape.figures.style import INK, PALETTE, log_axis, new_figure
from landscape.models import build
from landscape.restarts import run_restarts
from landscape.statistics import Trend, bootstrap, spread, trend, write_csv
from landscape.storage import replacing
from landscape.study import Study

WIDTHS = (4, 8, 16, 32, 64)
PIXELS = 10
PENALTY = 1e-3
SETTINGS = {"adam": {"learning_rate": 0.02, "schedule": "cosine"}}
METRICS = ("loss", "test_loss", "test_accuracy")
N_TEST = 10_000


def images(split: str, limit: int) -> tuple[Tensor, Tensor]:
    """Return MNIST images averaged down to 10 x 10 pixels, and their classes."""
    data = load("mnist", split, limit=limit)
    return F.adaptive_avg_pool2d(data.inputs, PIXELS), data.targets


def network(width: int, seed: int) -> nn.Module:
    """Return an untrained network with one hidden layer."""
    return build("mlp", seed=seed, input_shape=[1, PIXELS, PIXELS], classes=10, widths=[width])


def run(arguments: argparse.Namespace) -> dict[int, Study]:
    """Train all networks, or read those that are there."""
    training, test = images("train", arguments.images), images("test", N_TEST)
    epochs = {"epochs": arguments.epochs, "evaluate_every": arguments.epochs}
    settings = {name: {**entry, **epochs} for name, entry in SETTINGS.items()}
    folder = arguments.out / "width_runs"
    options = {"settings": settings, "seeds": arguments.runs, "test": test, "penalty": PENALTY}
    return {
        width: run_restarts(
            partial(network, width), training, folder / f"{width}.h5", workers=arguments.workers, batch=20, **options
        )
        for width in WIDTHS
    }


def measure(studies: dict[int, Study]) -> tuple[list[dict], dict[str, Trend]]:
    """Return a row per width and metric, and the trends by metric."""
    rows = []
    for metric in METRICS:
        for width, study in studies.items():
            values, start = study.final(metric), study.initial(metric)
            finite = values[np.isfinite(values)]
            estimates = {
                "median": bootstrap(finite, "median"),
                "quartile range": bootstrap(finite, "quartile range"),
                "standard deviation": bootstrap(finite, lambda x, axis: np.std(x, axis=axis, ddof=1)),
                "share of gain": spread(
                    start, values, better="higher" if metric.endswith("accuracy") else "lower"
                ).quartiles,
            }
            row = {"metric": metric, "width": width, "runs": len(values), "diverged": int(study.diverged.sum())}
            for name, estimate in estimates.items():
                row |= {name: estimate.value, f"{name} lower": estimate.lower, f"{name} upper": estimate.upper}
            rows.append({**row, "gradient norm": float(np.nanmedian(study.gradient_norm))})
    return rows, {m: trend({w: s.final(m) for w, s in studies.items()}) for m in METRICS}


def plot(studies: dict[int, Study], rows: list[dict], trends: dict[str, Trend]) -> go.Figure:
    """Draw the test loss of every run, and the spread of both losses against width."""
    figure = make_subplots(cols=2, horizontal_spacing=0.11)
    slope = trends["test_loss"].slope
    notes = [f"{len(next(iter(studies.values())))} runs per width; bars: 95 % bootstrap intervals"]
    new_figure("final loss against width, MNIST 10 x 10", notes, figure)
    for width, study in studies.items():
        values = study.final("test_loss")
        figure.add_trace(
            go.Violin(
                x=np.full(len(values), str(width)),
                y=values,
                points="all",
                pointpos=0,
                jitter=0.7,
                marker={"size": 3, "opacity": 0.5},
                line={"color": PALETTE[0], "width": 1.5},
                showlegend=False,
                name=f"width {width}",
            ),
            1,
            1,
        )
    shown: list = []
    looks = (
        ("test_loss", "quartile range", PALETTE[0], "circle"),
        ("test_loss", "standard deviation", PALETTE[5], "circle-open"),
        ("loss", "quartile range", PALETTE[1], "square"),
        ("loss", "standard deviation", PALETTE[4], "square-open"),
    )
    for i, (metric, name, color, symbol) in enumerate(looks):
        own = [row for row in rows if row["metric"] == metric]
        value, lower, upper = (np.array([row[name + end] for row in own]) for end in ("", " lower", " upper"))
        shown += [lower, upper]
        figure.add_trace(
            go.Scatter(
                x=[row["width"] * 1.03 ** (i - 1.5) for row in own],  # side by side
                customdata=[row["width"] for row in own],
                hovertemplate="%{customdata} units: %{y:.3g}<extra>%{fullData.name}</extra>",
                y=value,
                error_y={"array": upper - value, "arrayminus": value - lower, "symmetric": False, "width": 5},
                mode="lines+markers",
                line={"color": color, "width": 2},
                marker={"symbol": symbol, "size": 9},
                name=f"{'test' if metric == 'test_loss' else 'training'} loss, {name}",
            ),
            1,
            2,
        )
    x = np.array(WIDTHS, dtype=float)
    height = np.mean([np.log(estimate.value) for estimate in trends["test_loss"].spread])
    level = np.exp(height - slope.value * np.log(x).mean())
    figure.add_trace(
        go.Scatter(
            x=x,
            y=level * x**slope.value,
            mode="lines",
            line={"color": INK, "width": 1.5, "dash": "dot"},
            name=f"width^{slope.value:.2f} ({slope.lower:.2f} to {slope.upper:.2f})",
        ),
        1,
        2,
    )
    figure.update_xaxes(title_text="hidden units", type="category", col=1)
    losses = [study.final("test_loss") for study in studies.values()]
    figure.update_yaxes(title_text="test loss (nats)", col=1, **log_axis(losses))
    figure.update_xaxes(title_text="hidden units", type="log", tickvals=WIDTHS, col=2)
    figure.update_yaxes(
        title_text="spread of the final loss (nats)",
        col=2,
        **log_axis(shown),
    )
    return figure


def text(arguments: argparse.Namespace, rows: list[dict], trends: dict[str, Trend], seconds: float | None) -> str:
    """Return the study as Markdown."""
    command = "python scripts/studies/width.py" + " --quick" * arguments.quick
    lines = [
        "# Spread of the final loss against width",
        "",
        f"`LANDSCAPE_DATA=folder {command}`",
        "",
        f"One hidden layer of tanh units on {arguments.images:,} MNIST images of {PIXELS} x {PIXELS} pixels, "
        f"{arguments.runs} initializations per width; Adam on full batches, learning rate 0.02, cosine schedule, "
        f"{arguments.epochs} steps; weight penalty {PENALTY:g}/2 ||theta||^2, which is in the gradient norm and not in "
        f"the losses (nats). Test: {N_TEST:,} images. Intervals: 95 %, bootstrap (BCa) over runs. `of the gain` is the "
        "distance of the quartiles over what training gained from the median initialization to the best end."
        + (f" All training took {seconds:.0f} s." if seconds else ""),
    ]
    for metric in METRICS:
        head = ["width", "runs", "diverged", "median", "quartile range", "standard deviation", "of the gain"]
        lines += ["", f"## {metric.replace('_', ' ')}", "", "| " + " | ".join([*head, "gradient norm"]) + " |"]
        lines += ["|" + " --- |" * (len(head) + 1)]
        for row in (row for row in rows if row["metric"] == metric):
            cells = [str(row[name]) for name in ("width", "runs", "diverged")]
            for name in ("median", "quartile range", "standard deviation", "share of gain"):
                cells.append(f"{row[name]:.3g} ({row[name + ' lower']:.3g} to {row[name + ' upper']:.3g})")
            lines.append("| " + " | ".join([*cells, f"{row['gradient norm']:.1e}"]) + " |")
        found = trends[metric].describe()
        lines += ["", f"{found[0].upper()}{found[1:]}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the study and write its tables and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="initializations per width")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2000, help="of the training set")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="small: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("results/studies"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.epochs, arguments.images = 20, 50, 500
    start, fresh = time.perf_counter(), not (arguments.out / "width_runs").exists()
    studies = run(arguments)
    seconds = time.perf_counter() - start if fresh else None
    rows, trends = measure(studies)
    write_csv(arguments.out / "width.csv", rows)
    for name, content in {
        "width.md": text(arguments, rows, trends, seconds),
        "width.json": json.dumps(
            {
                "settings": {"runs": arguments.runs, "epochs": arguments.epochs, "images": arguments.images}
                | {"penalty": PENALTY, "training": SETTINGS, "seconds": seconds},
                "rows": rows,
                "trends": {m: {"slope": vars(t.slope), "rho": t.rho, "p": t.p} for m, t in trends.items()},
            },
            indent=1,
        ),
    }.items():
        with replacing(arguments.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    save_figure(plot(studies, rows, trends), arguments.out / "width", ("html", "png"))


if __name__ == "__main__":
    main()

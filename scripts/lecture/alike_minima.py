"""Where training ends from 200 random starts: are the minima alike, and do they become so with width?

Networks with one hidden layer of tanh units are trained from many initializations (full batches, Adam), polished to a
gradient of zero in float64 and certified by the eigenvalues of the Hessian; a weight penalty makes sure that finite
minima exist. Nothing but the initialization differs between runs of one width. The inputs are reduced to their first
principal components, so that the networks are small enough to certify every run. The claim that final costs
concentrate with width is that of Choromanska et al. (arXiv:1412.0233).
"""

from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import nn

from landscape.catalog import Catalog
from landscape.data import Dataset
from landscape.figures import plot_distributions
from landscape.figures.style import PALETTE, RUN_COLORS, log_axis, new_figure
from landscape.minima.survey import survey_minima
from landscape.models import build
from landscape.restarts import run_restarts
from landscape.statistics import Estimate, Trend, bootstrap, spread, trend, unseen
from landscape.statistics.samples import quartile_range
from lecture.setting import Drawn, Setting

TITLE = "Minima are alike"
SECONDS = (700.0, 9.0)

FEATURES = 10  # principal components
PENALTY = 1e-2
FENCE = 1.5  # quartile ranges beyond a quartile, from which on a cost is markedly lower or higher (Tukey's fences)
COST, TEST_COST, ACCURACY = "final cost", "test cost", "test accuracy"
SHRINKS = "the spread of the final cost shrinks with width"
Values = dict[int, np.ndarray]


def draw(setting: Setting) -> Drawn:
    """Find and certify the minima of every width, and compare them."""
    widths, runs, epochs, images = ((1, 2, 4), 24, 300, 200) if setting.quick else ((1, 2, 4, 8, 16), 200, 1000, 500)
    training, test, share = reduced(setting, images)
    settings = {"adam": {"learning_rate": 0.05, "schedule": "cosine", "epochs": epochs, "evaluate_every": epochs}}
    initial: dict[str, Values] = {COST: {}, TEST_COST: {}, ACCURACY: {}}
    final: dict[str, Values] = {COST: {}, TEST_COST: {}, ACCURACY: {}}
    catalogs: dict[int, Catalog] = {}
    for i, width in enumerate(widths):
        make, path = partial(network, training.classes, width), setting.folder / f"{width}.h5"
        study = run_restarts(
            make, training, path, settings=settings, seeds=runs, test=test, penalty=PENALTY, progress=False
        )
        share_before, share_after = (sum(widths[:n]) / sum(widths) for n in (i, i + 1))
        setting.report(share_before + 0.3 * (share_after - share_before))
        catalog = survey_minima(
            study, make(0), training, setting.folder / f"{width}_minima.h5", test=test, progress=False
        )
        setting.report(share_after)
        catalogs[width] = catalog
        own = catalog.columns["run"]
        squares = [
            sum(float(w.detach().square().sum()) for w in make(s).parameters())
            for s in catalog.columns["seed"].tolist()
        ]
        initial[COST][width] = study.initial()[own] + PENALTY / 2 * np.array(squares)
        final[COST][width] = catalog.columns["loss"]
        for name, metric in ((TEST_COST, "test_loss"), (ACCURACY, "test_accuracy")):
            initial[name][width] = study.initial(metric)[own]
            final[name][width] = catalog.metrics[metric]
    numbers = measure(catalogs, initial, final)
    numbers["settings"] = {
        **{"data": training.name, "training images": len(training), "test images": len(test), "runs per width": runs},
        **{"principal components": FEATURES, "share of the variance": share, "penalty": PENALTY, "epochs": epochs},
    }
    rows = numbers["widths"]
    figures = {
        "cost": draw_ends(final[COST], "loss", "Final cost of every run", "final cost (nats, with penalty)"),
        "accuracy": draw_ends(final[ACCURACY], "test_accuracy", "Test accuracy of every run", "test accuracy (%)"),
        "profile": draw_profile(final[COST]),
        "spread": draw_spread(rows),
        "number": draw_number(rows),
        "certificates": draw_certificates(catalogs, rows),
    }
    return Drawn(figures, caption(numbers), numbers)


def reduced(setting: Setting, images: int) -> tuple[Dataset, Dataset, float]:
    """Return training and test images as principal components of the training images, and their share of the variance.

    All components are divided by one number, so that their mean square is 1.
    """
    sets = setting.load("mnist", limit=images), setting.load("mnist", "test", limit=1000 if setting.quick else None)
    pixels, tested = (one.inputs.flatten(1).double() for one in sets)
    mean = pixels.mean(dim=0)
    _, s, rows = torch.linalg.svd(pixels - mean, full_matrices=False)
    rows = rows[:FEATURES]
    # the sign of a component is arbitrary, and its last digits differ between machines
    rows = rows * rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    unit = ((pixels - mean) @ rows.T).square().mean().sqrt()
    components = [(((x - mean) @ rows.T) / unit).mul(1e3).round().div(1e3).float() for x in (pixels, tested)]
    training, test = (
        Dataset(one.name, one.split, x, one.targets, one.classes) for one, x in zip(sets, components, strict=True)
    )
    share = float(s[:FEATURES].square().sum() / s.square().sum())
    return training, test, share


def network(classes: int, width: int, seed: int) -> nn.Module:
    """Return an untrained network with one hidden layer of tanh units."""
    return build("mlp", seed=seed, input_shape=[FEATURES], classes=classes, widths=[width])


def measure(catalogs: dict[int, Catalog], initial: dict[str, Values], final: dict[str, Values]) -> dict[str, Any]:
    """Return the numbers: per width what was found, the trends of the spread, and whether the claims hold."""
    rows = []
    for width, catalog in catalogs.items():
        hits = catalog.hits()
        number, cost = unseen(hits), final[COST][width]
        low, high = np.quantile(cost, [0.25, 0.75])
        row: dict[str, Any] = {
            **{"width": width, "parameters": catalog.thetas([0]).shape[1], "runs": len(catalog)},
            **{"kinds": catalog.kinds(), "largest gradient norm": float(catalog.columns["gradient_norm"].max())},
            "smallest eigenvalue of all": float(catalog.columns["smallest"].min()),
            **{"distinct minima": catalog.n_minima, "found once": number.singletons},
            **{"all minima": interval(number.number), "coverage": interval(number.coverage)},
            "most hit": int(hits.max()),
            "markedly lower": int((cost < low - FENCE * (high - low)).sum()),
            "markedly higher": int((cost > high + FENCE * (high - low)).sum()),
            "lowest cost": float(cost.min()),
            "lowest below the median in quartile ranges": float((np.median(cost) - cost.min()) / (high - low)),
        }
        for name, values in final.items():
            better = "higher" if name == ACCURACY else "lower"
            row[f"{name}, median"] = interval(bootstrap(values[width], "median"))
            row[f"{name}, quartile range"] = interval(bootstrap(values[width], "quartile range"))
            row[f"{name}, quartile range of the gain"] = interval(
                spread(initial[name][width], values[width], better=better).quartiles
            )
            row[f"{name}, quartile range of the median"] = interval(
                bootstrap(values[width], lambda x, axis: quartile_range(x, axis) / np.median(x, axis))
            )
        rows.append(row)
    trends = {name: trend(values) for name, values in final.items()}
    return {
        "widths": rows,
        "trends": {name: {"exponent": interval(t.slope), "rho": t.rho, "p": t.p} for name, t in trends.items()},
        "claims": {
            "every run ended in a certified minimum": all(set(row["kinds"]) == {"minimum"} for row in rows),
            SHRINKS: falls(trends[COST]),
            "the spread of the test cost shrinks with width": falls(trends[TEST_COST]),
            "at every width the test accuracy differs less than the test cost, relative to the median": all(
                smaller(row, "of the median") for row in rows
            ),
            "at every width the test accuracy differs less than the test cost, relative to the gain": all(
                smaller(row, "of the gain") for row in rows
            ),
            **{
                f"at the largest width the accuracy differs less than the test cost, relative to the {unit}": smaller(
                    rows[-1], f"of the {unit}"
                )
                for unit in ("median", "gain")
            },
            "now and then a minimum is markedly lower": any(row["markedly lower"] for row in rows),
        },
    }


def interval(estimate: Estimate) -> dict[str, float | None]:
    """Return an estimate with the ends of its 95 % interval, None where there is no end."""
    ends = {"value": estimate.value, "lower": estimate.lower, "upper": estimate.upper}
    return {name: float(end) if np.isfinite(end) else None for name, end in ends.items()}


def falls(found: Trend) -> bool:
    """Return whether a spread shrinks with width, more than chance explains."""
    return bool(found.rho < 0 and found.p < 0.05)


def smaller(row: dict[str, Any], unit: str) -> bool:
    """Return whether the test accuracy of a width differs less between the minima than the test cost."""
    accuracy, cost = (row[f"{name}, quartile range {unit}"]["value"] for name in (ACCURACY, TEST_COST))
    return bool(accuracy < cost)


def draw_ends(values: Values, metric: str, title: str, label: str) -> go.Figure:
    """Draw a value of every run, sorted, by width."""
    figure = plot_distributions({str(width): own for width, own in values.items()}, metric)
    figure.update_layout(title_text=title).update_xaxes(title_text="hidden units").update_yaxes(title_text=label)
    return figure


def draw_profile(costs: Values) -> go.Figure:
    """Draw the sorted costs of each width, relative to their median."""
    figure = new_figure("Sorted final costs", ["steps: runs that ended in the same minimum or in an equally good one"])
    for i, (width, cost) in enumerate(costs.items()):
        figure.add_scatter(
            x=100 * (np.arange(len(cost)) + 0.5) / len(cost),
            y=100 * (np.sort(cost) / np.median(cost) - 1),
            mode="lines",
            line={"color": RUN_COLORS[i], "width": 2.5, "shape": "hvh"},
            name=units(width),
            hovertemplate="%{x:.1f} % of the runs: %{y:.3g} %<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title_text="runs from the lowest cost on (%)")
    figure.update_yaxes(title_text="final cost above the median (%)")
    return figure


def draw_spread(rows: list[dict[str, Any]]) -> go.Figure:
    """Draw the spread of final cost, test cost and test accuracy against width."""
    notes = ["gain: from the median start to the best end", "bars: 95 % intervals"]
    figure = new_figure("Spread against width", notes)
    widths = np.array([row["width"] for row in rows])
    shown = []
    for i, (name, symbol) in enumerate({COST: "circle", TEST_COST: "square", ACCURACY: "diamond"}.items()):
        own = [row[f"{name}, quartile range of the gain"] for row in rows]
        value, lower, upper = (100 * np.array([entry[end] for entry in own]) for end in ("value", "lower", "upper"))
        shown += [lower, upper]
        figure.add_scatter(
            x=widths * 1.04 ** (i - 1),  # side by side
            y=value,
            error_y={"array": upper - value, "arrayminus": value - lower, "symmetric": False, "width": 5},
            customdata=widths,
            mode="lines+markers",
            line={"color": PALETTE[i], "width": 2, "dash": ("solid", "dash", "dot")[i]},
            marker={"symbol": symbol, "size": 10},
            name=name,
            hovertemplate="%{customdata} hidden units: %{y:.3g} %<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title_text="hidden units", type="log", tickvals=widths)
    figure.update_yaxes(title_text="quartile range (% of the gain)", **log_axis(shown))
    return figure


def draw_number(rows: list[dict[str, Any]]) -> go.Figure:
    """Draw the number of distinct minima found, and the interval for the number of all, against width."""
    figure = new_figure("Number of distinct minima", [f"found in {rows[0]['runs']} runs, and all there are"])
    limits = [(row["width"], row["all minima"]["lower"], row["all minima"]["upper"]) for row in rows]
    bounded = [limit for limit in limits if limit[2] is not None]
    unbounded = [limit for limit in limits if limit[2] is None]
    found = [row["distinct minima"] for row in rows]
    figure.add_scatter(
        x=[x for width, _, _ in bounded for x in (width, width, None)],
        y=[y for _, lower, upper in bounded for y in (lower, upper, None)],
        mode="lines+markers",
        line={"color": PALETTE[0], "width": 2},
        marker={"symbol": "line-ew", "size": 18, "line": {"color": PALETTE[0], "width": 2}},
        name="all: 95 % interval",
        hovertemplate="%{x} hidden units: %{y:,.0f}<extra>%{fullData.name}</extra>",
    )
    figure.add_scatter(
        x=[width for width, _, _ in unbounded],
        y=[lower for _, lower, _ in unbounded],
        mode="markers",
        marker={"symbol": "triangle-up", "size": 14, "color": PALETTE[0]},
        name="all: at least this, no upper limit",
        hovertemplate="%{x} hidden units: %{y:,.0f}<extra>%{fullData.name}</extra>",
    )
    figure.add_scatter(
        x=[row["width"] for row in rows],
        y=found,
        mode="markers",
        marker={"symbol": "circle", "size": 11, "color": PALETTE[1]},
        name="found",
        hovertemplate="%{x} hidden units: %{y:,.0f}<extra>%{fullData.name}</extra>",
    )
    figure.update_xaxes(title_text="hidden units", type="log", tickvals=[row["width"] for row in rows])
    figure.update_yaxes(
        title_text="distinct minima", **log_axis([found, *([x for x in limit[1:] if x] for limit in limits)])
    )
    return figure


def draw_certificates(catalogs: dict[int, Catalog], rows: list[dict[str, Any]]) -> go.Figure:
    """Draw the smallest eigenvalue of the Hessian at the end of every run."""
    largest = max(row["largest gradient norm"] for row in rows)
    notes = ["where the smallest eigenvalue is positive: a minimum", f"largest gradient norm: {largest:.1e}"]
    figure = new_figure("Curvature where the runs ended", notes)
    for i, (width, catalog) in enumerate(catalogs.items()):
        figure.add_scatter(
            x=catalog.columns["loss"],
            y=catalog.columns["smallest"],
            mode="markers",
            marker={"color": RUN_COLORS[i], "size": 6, "opacity": 0.6},
            name=units(width),
            hovertemplate="cost %{x:.6g}: smallest eigenvalue %{y:.3g}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title_text="final cost (nats, with penalty)")
    eigenvalues = [catalog.columns["smallest"] for catalog in catalogs.values()]
    positive = all((values > 0).all() for values in eigenvalues)
    figure.update_yaxes(title_text="smallest eigenvalue", **(log_axis(eigenvalues) if positive else {}))
    figure.update_layout(legend={"itemsizing": "constant"})
    return figure


def units(width: int) -> str:
    """Return a width in words."""
    return f"{width} hidden unit{'s' * (width > 1)}"


def caption(numbers: dict[str, Any]) -> str:
    """Say what was found."""
    rows, used = numbers["widths"], numbers["settings"]
    first, last = rows[0], rows[-1]
    runs, minima = sum(row["runs"] for row in rows), sum(row["kinds"].get("minimum", 0) for row in rows)
    cost, test, accuracy = (
        f"{100 * last[f'{name}, quartile range of the gain']['value']:.2g} %" for name in (COST, TEST_COST, ACCURACY)
    )
    gain, median = (
        ", ".join(str(row["width"]) for row in rows if smaller(row, unit)) or "none"
        for unit in ("of the gain", "of the median")
    )
    shrinks = "shrinks" if numbers["claims"][SHRINKS] else "does not shrink significantly"
    return (
        f"Networks with {first['width']} to {last['width']} tanh units from {used['runs per width']} random starts "
        f"each, on {used['training images']} images of {used['data']} ({used['principal components']} principal "
        f"components, weight penalty {used['penalty']:g}): {minima} of {runs} ends are certified minima. "
        f"With {last['width']} units {last['distinct minima']} of {last['runs']} are distinct (at least "
        f"{last['all minima']['lower']:,.0f} in all, 95 % interval), but the middle half of the costs spans {cost} of "
        f"what training gained, of the test costs {test}, of the test accuracies {accuracy}. "
        f"The spread of the final cost {shrinks} with width; {sum(row['markedly lower'] for row in rows)} of {runs} "
        f"costs are markedly lower than the others of their width, {sum(row['markedly higher'] for row in rows)} "
        f"markedly higher; accuracy differs less than test cost at the widths {gain} as a share of the gain, {median} "
        "as a share of the median."
    )

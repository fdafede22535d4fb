"""Vanishing gradient: what reaches each layer of a deep dense network, and which starts train.

The recipe: dense networks with 20 hidden layers of 50 units, once with each activation, initialized so that signals
keep their size (Glorot, for ReLU He) times a scale; the gradient over all data, layer by layer, before and during plain
gradient descent on mini-batches (Glorot and Bengio 2010). Then all hidden biases are moved: on the negative side ReLU
is dead (Maas, Hannun and Ng 2013), sigmoid and tanh are flat, and maxout is as steep as ever.
"""

from dataclasses import asdict
from functools import partial
from math import log
from typing import Any

import numpy as np

from landscape.data import Dataset
from lecture.setting import Drawn, Setting
from lecture.vanishing_gradient.measurements import (
    ACTIVATIONS,
    DESCENT,
    NOTHING,
    QUICK,
    SCALES,
    Plan,
    Start,
    follow,
    study,
    values,
)
from lecture.vanishing_gradient.panels import plot_biases, plot_during, plot_start, plot_training

TITLE = "Vanishing gradient"
SECONDS = (190.0, 10.0)
TRAINS = 0.5  # times the loss of guessing: a start that ends below trains


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
    against = f" Of the lecture's statements these do not hold here: {'; '.join(failed)}." if failed else ""
    return f"{networks}: {flat}; {steep}. {moved_biases}; all runs train at the scales {scales}.{against}"


def loss(entry: dict[str, Any]) -> str:
    """Return the final loss of a start in words."""
    value = entry["loss after training"]
    return "nothing finite" if value is None else f"{value:.2f}"

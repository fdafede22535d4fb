"""The same network with and without skip connections: a smooth and a jagged landscape.

Two residual networks of one depth and size are trained alike on the same images; one has its skip connections, the
other does not. The loss is evaluated on a plane of two random directions, normalized by filter, through each trained
network; batch norm keeps its statistics. On the slice: the local minima, counted by one rule on both, their basins,
descents from random starts, and how many starts it takes until one ends in the lowest minimum.

Recipe: Li, Xu, Taylor, Studer and Goldstein 2018, arXiv:1712.09913, figure 1 (ResNet-56 on CIFAR-10 with and without
skip connections); here narrower, on fewer and smaller images.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from landscape import Objective, Surface, analyze, evaluate, random_directions, train
from landscape.data import Dataset
from landscape.figures import plot_basin_descents, plot_basins, plot_volume
from landscape.models import build
from landscape.topology import OUTSIDE, Descents, Topology, descend, random_starts
from landscape.training import Run
from lecture.setting import Drawn, Setting

TITLE = "Two landscapes"
SECONDS = (470.0, 9.0)
DATA = "digits"  # of 2,000 CIFAR-10 images, 8 x 8 pixels, 56 layers without skips learned 16 % in 40 epochs
SKIP = {"jagged": False, "smooth": True}
WORDS = {"jagged": "without skip connections", "smooth": "with skip connections"}
N_STARTS, N_DRAWN = 1000, 24


@dataclass(frozen=True)
class Size:
    """What both networks and their surfaces have in common."""

    depth: int
    width: int
    images: int
    epochs: int
    images_evaluated: int
    resolution: int
    resolution_3d: int
    other_planes: int  # do other directions give the same?
    resolution_other: int
    extent: float
    ceiling: float


WHOLE = Size(56, 8, 1437, 80, 256, 51, 13, 3, 31, 0.5, 10.0)
QUICK = Size(20, 4, 300, 6, 64, 15, 7, 1, 9, 0.5, 10.0)


def draw(setting: Setting) -> Drawn:
    """Train both networks, evaluate the slices through them, and draw what is found there."""
    size = QUICK if setting.quick else WHOLE
    data, test = setting.load(DATA, limit=size.images), setting.load(DATA, "test")
    runs: dict[str, Run] = {}
    planes: dict[str, Surface] = {}
    others: dict[str, list[Surface]] = {}
    for i, kind in enumerate(SKIP):
        runs[kind] = trained(setting, size, kind, data, test)
        setting.report((3 * i + 1) / 7)
        planes[kind] = evaluated(setting, size, kind, runs[kind], data, 2, size.resolution)
        setting.report((3 * i + 2) / 7)
        others[kind] = [
            evaluated(setting, size, kind, runs[kind], data, 2, size.resolution_other, seed)
            for seed in range(1, size.other_planes + 1)
        ]
        setting.report((3 * i + 3) / 7)
    volume = evaluated(setting, size, "jagged", runs["jagged"], data, 3, size.resolution_3d)
    setting.report(1.0)

    found = {kind: analyze(plane) for kind, plane in planes.items()}
    starts = {kind: random_starts(topology, N_STARTS) for kind, topology in found.items()}
    descents = {kind: descend(topology, starts[kind]) for kind, topology in found.items()}
    numbers = measure(size, data, runs, planes, found, descents)
    for kind, words in WORDS.items():
        numbers[words]["minima of other slices"] = [analyze(plane).count() for plane in others[kind]]
    numbers["without skip connections every slice has more minima"] = more_minima(numbers)
    figures = {f"{kind}_surface": plot_basins(planes[kind], found[kind], ceiling=size.ceiling) for kind in SKIP}
    titles = {f"{axis}axis_title_text": f"direction {i + 1}" for i, axis in enumerate("xyz")}
    for kind, topology in found.items():
        figure = figures[f"{kind}_surface"]  # both on one scale
        figure.data = [trace for trace in figure.data if trace.name not in ("saddle", "lowest way to the border")]
        look = {**titles, "zaxis_range": [0, size.ceiling], "zaxis_title_text": "loss"}
        figure.update_layout(title_text=f"ResNet-{size.depth} {WORDS[kind]}", scene=look)
        first = descend(topology, starts[kind][:N_DRAWN])
        figure = plot_basin_descents(planes[kind], topology, first, ceiling=size.ceiling)
        # it would hide the number of the minimum below it
        figure.data = [trace for trace in figure.data if trace.name != "trained network"]
        figure.update_yaxes(scaleanchor="x", scaleratio=1, title_text="direction 2").update_xaxes(
            title_text="direction 1"
        )
        figures[f"{kind}_descents"] = figure.update_layout(title_text=f"Descents, {WORDS[kind]}")
    figure = plot_volume(volume).update_layout(title_text=f"Three directions, {WORDS['jagged']}", scene=titles)
    figures["jagged_volume"] = figure
    return Drawn(figures, caption(numbers), numbers)


def trained(setting: Setting, size: Size, kind: str, data: Dataset, test: Dataset) -> Run:
    """Train one of the two networks, or read it where that is done; both start from the same parameters."""
    arguments = {
        "depth": size.depth,
        "width": size.width,
        "input_shape": list(data.inputs.shape[1:]),
        "classes": data.classes,
        "skip": SKIP[kind],
    }
    return train(
        *(build("resnet", seed=0, **arguments), data),
        test=test,
        **{"optimizer": "momentum", "learning_rate": 0.05, "weight_decay": 5e-4, "schedule": "cosine"},
        **{"batch_size": 128, "epochs": size.epochs, "record_every": size.epochs},
        **{"folder": setting.folder / f"{data.name}_{kind}", "name": "resnet", "arguments": arguments},
        progress=False,
    )


def evaluated(
    setting: Setting, size: Size, kind: str, run: Run, data: Dataset, k: int, resolution: int, seed: int = 0
) -> Surface:
    """Evaluate the loss on `k` random directions through a trained network."""
    part = data.inputs[: size.images_evaluated], data.targets[: size.images_evaluated]
    objective = Objective(run.model, part, batch_norm="frozen")
    return evaluate(
        *(objective, random_directions(objective, k, seed=seed)),
        resolution=resolution,
        extent=(-size.extent, size.extent),
        path=setting.folder / f"{data.name}_{kind}_{k}d_seed{seed}.h5",
        progress=False,
    )


def measure(
    size: Size,
    data: Dataset,
    runs: dict[str, Run],
    planes: dict[str, Surface],
    found: dict[str, Topology],
    descents: dict[str, Descents],
) -> dict[str, Any]:
    """Return what was found, by words."""
    numbers: dict[str, Any] = {
        "data": data.name,
        "images": len(data),
        "parameters": sum(parameter.numel() for parameter in runs["jagged"].model.parameters()),
        "size": asdict(size),
        "rule for a minimum of the slice": f"persistence above noise: {found['jagged'].noise}",
        "starts": N_STARTS,
    }
    for kind, words in WORDS.items():
        history, topology = runs[kind].history, found[kind]
        of_network = ("loss", "accuracy", "test_loss", "test_accuracy")
        numbers[words] = {
            "optimization steps": int(history["step"][-1]),
            **{name.replace("_", " "): float(history[name][-1]) for name in of_network},
            "lowest loss on the slice": float(planes[kind].values["loss"].min()),
            "highest loss on the slice": float(planes[kind].values["loss"].max()),
            "distance of the lowest grid point from the trained network": float(np.hypot(*lowest_place(planes[kind]))),
            "minima of the slice": topology.count(),
            "minima of the slice that do not count": int((topology.minima.persistence > 0).sum()) - topology.count(),
            **lowest_reached(topology, descents[kind]),
        }
    return numbers


def lowest_place(plane: Surface) -> list[float]:
    """Return the coordinates of the lowest grid point; those of the trained network are zeros."""
    index = np.unravel_index(np.nanargmin(plane.metric()), plane.shape)
    return [float(axis[i]) for axis, i in zip(plane.axes.values(), index, strict=True)]


def more_minima(numbers: dict[str, Any]) -> bool:
    """Return whether every slice has more minima without skip connections than any has with them."""
    jagged, smooth = (
        [numbers[WORDS[kind]]["minima of the slice"], *numbers[WORDS[kind]]["minima of other slices"]]
        for kind in ("jagged", "smooth")
    )
    return min(jagged) > max(smooth)


def lowest_reached(topology: Topology, descents: Descents) -> dict[str, Any]:
    """Return how many starts it takes until one ends in the lowest minimum: expected from its basin, and measured.

    Minima that do not count are part of the one into which they merge. If the basin of the lowest minimum has the share
    `q` of the window, the number of starts is geometric with mean `1 / q`.
    """
    counted = np.flatnonzero(topology.counts_as(topology.minima))
    if not len(counted):
        return {"starts needed, expected": None, "starts needed, measured": None}
    homes = topology.merged_basins()[tuple(topology.minima.index.T)]
    ends = homes[descents.minimum]
    share = float(topology.minima.share[homes == counted[0]].sum())
    hits = np.flatnonzero(ends == counted[0])
    return {
        "share of the basin of the lowest minimum": share,
        "starts needed, expected": 1 / share,
        "starts needed, measured": len(ends) / len(hits) if len(hits) else None,
        "starts needed, longest wait": int(np.diff(hits, prepend=-1).max()) if len(hits) else None,
        "share of starts trapped in a higher minimum": float((ends > counted[0]).mean()),
        "share of starts that leave the window": float((ends == OUTSIDE).mean()),
    }


def caption(numbers: dict[str, Any]) -> str:
    """Say what is seen, with the numbers that were measured."""
    size = numbers["size"]
    jagged, smooth = (numbers[WORDS[kind]] for kind in ("jagged", "smooth"))
    away = max(entry["distance of the lowest grid point from the trained network"] for entry in (jagged, smooth))
    here = ", the trained network," if away == 0 else ""
    return (
        f"The loss around two residual networks of depth {size['depth']} ({numbers['parameters']:,} parameters, "
        f"trained on {numbers['images']} images of {numbers['data']}; loss over {size['images_evaluated']} of them, "
        "batch norm frozen), on a plane of two random, filter-normalized directions: training accuracy "
        f"{jagged['accuracy']:.1%} without skip connections, "
        f"{smooth['accuracy']:.1%} with them. The slice has {jagged['minima of the slice']} and "
        f"{smooth['minima of the slice']} minima whose persistence is above the noise (other random "
        f"planes, coarser: {listed(jagged)} and {listed(smooth)}); a descent from a random start "
        f"leads to the lowest{here} {describe_starts(jagged)} without, {describe_starts(smooth)} with them. "
        "Depth and training were chosen so that two processors show the effect in minutes; without skip connections "
        "the network is also trained less well."
    )


def listed(numbers: dict[str, Any]) -> str:
    """List the minima of the other slices."""
    return ", ".join(map(str, numbers["minima of other slices"]))


def describe_starts(numbers: dict[str, Any]) -> str:
    """Say how many starts the lowest minimum takes."""
    expected, measured = numbers["starts needed, expected"], numbers["starts needed, measured"]
    if expected is None:
        return "never (no minimum counts)"
    often = "never" if measured is None else f"once in {measured:.2f} starts"
    return f"{often} (by the area of its basin, once in {expected:.2f})"

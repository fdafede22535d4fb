"""The same network with and without skip connections: a smooth and a jagged landscape.

Two residual networks of one depth and size are trained alike on the same images; one has its skip connections, the
other does not. The loss is evaluated on a plane of two random directions, normalized by filter, through each trained
network. Batch norm takes the statistics of the images at every point, as training does: with those of the trained
network instead, wrong scales multiply from layer to layer, the loss reaches thousands, and all one sees is a crater.
On the slice: the local minima, counted by one rule on both, their basins, descents from random starts, and how many
starts it takes until one ends in the lowest minimum.

Without skip connections and 44 layers deep, training needs small batches of few images to get anywhere within
minutes: with 1,000 to 5,000 images it did not. How jagged it is depends on how many images the loss is of, and on the
seed of the training: the setting was chosen to show the effect, and the same for four times as many images, and for
another training, stands beside it.

Recipe: Li, Xu, Taylor, Studer and Goldstein 2018, arXiv:1712.09913, figure 1 (ResNet-56 on CIFAR-10 with and without
skip connections); here shallower and narrower, on fewer and smaller images.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from torch.nn.functional import avg_pool2d

from landscape import Objective, Surface, analyze, evaluate, random_directions, train
from landscape.data import Dataset
from landscape.figures import plot_basin_descents, plot_basins, plot_surface, plot_volume
from landscape.figures.contour import color_bar
from landscape.figures.grid import find_levels
from landscape.models import build
from landscape.topology import OUTSIDE, Descents, Topology, descend, random_starts
from landscape.training import Run
from lecture.setting import Drawn, Setting

TITLE = "Two landscapes"
SECONDS = (620.0, 11.0)
DATA = "cifar10"
PIXELS = 16  # larger images are averaged, so that two minutes are enough to train
SKIP = {"jagged": False, "smooth": True}
WORDS = {"jagged": "without skip connections", "smooth": "with skip connections"}
PERSISTENCE = 0.05  # a minimum counts if the loss rises by more on every way to a lower one, or out
N_TEST, N_STARTS, N_DRAWN = 1000, 1000, 24
MORE = 4  # times as many images, once
OUT = "lowest way to the border"
CAMERA = {"eye": {"x": 0.95, "y": -1.1, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.2}}
ASPECT = {"x": 1, "y": 1, "z": 0.75}
LIGHT = {"ambient": 0.6, "diffuse": 0.65, "specular": 0.05, "roughness": 0.7}  # shadows show the dents


@dataclass(frozen=True)
class Size:
    """What both networks and their surfaces have in common."""

    depth: int
    width: int
    images: int
    epochs: int
    images_evaluated: int  # and four times as many, once
    resolution: int
    resolution_3d: int
    other_planes: int  # do other directions give the same?
    resolution_other: int
    extent: float


WHOLE = Size(44, 8, 512, 100, 64, 51, 11, 3, 25, 1.0)
QUICK = Size(20, 4, 128, 6, 32, 15, 7, 1, 9, 1.0)


def draw(setting: Setting) -> Drawn:
    """Train both networks, evaluate the slices through them, and draw what is found there."""
    size = QUICK if setting.quick else WHOLE
    data, test = images(setting, "train", size.images), images(setting, "test", N_TEST)
    runs: dict[str, Run] = {}
    planes: dict[str, Surface] = {}
    others: dict[str, list[Surface]] = {}
    for i, kind in enumerate(SKIP):
        runs[kind] = trained(setting, size, kind, data, test)
        setting.report((3 * i + 1) / 9)
        planes[kind] = evaluated(setting, size, kind, runs[kind], data, 2, size.resolution)
        setting.report((3 * i + 2) / 9)
        others[kind] = [
            evaluated(setting, size, kind, runs[kind], data, 2, size.resolution_other, seed)
            for seed in range(1, size.other_planes + 1)
        ]
        setting.report((3 * i + 3) / 9)
    volume = evaluated(setting, size, "jagged", runs["jagged"], data, 3, size.resolution_3d)
    setting.report(0.8)
    more = evaluated(setting, size, "jagged", runs["jagged"], data, 2, size.resolution_other, images=MORE)
    again = evaluated(
        *(setting, size, "jagged", trained(setting, size, "jagged", data, test, seed=1), data, 2),
        size.resolution_other,
        of_training=1,
    )
    setting.report(1.0)

    found = {kind: analyze(plane, threshold=PERSISTENCE) for kind, plane in planes.items()}
    starts = {kind: random_starts(topology, N_STARTS) for kind, topology in found.items()}
    descents = {kind: descend(topology, starts[kind]) for kind, topology in found.items()}
    numbers = measure(size, data, runs, planes, found, descents)
    for kind, words in WORDS.items():
        numbers[words]["minima of other slices"] = [
            analyze(plane, threshold=PERSISTENCE).count() for plane in others[kind]
        ]
    numbers[WORDS["jagged"]] |= {
        "minima for more images": analyze(more, threshold=PERSISTENCE).count(),
        "minima of another training": analyze(again, threshold=PERSISTENCE).count(),
    }
    numbers["volume"] = {
        "points": list(volume.shape),
        "lowest loss": float(volume.metric().min()),
        "highest loss": float(volume.metric().max()),
    }
    numbers["without skip connections every slice has more minima"] = more_minima(numbers)
    return Drawn(draw_all(planes, volume, found, starts), caption(numbers), numbers)


def images(setting: Setting, split: str, limit: int) -> Dataset:
    """Load the first images of a split, averaged over blocks of pixels to a size that can be trained in minutes."""
    data = setting.load(DATA, split, limit=limit)
    block = max(1, data.inputs.shape[-1] // PIXELS)
    return replace(data, inputs=avg_pool2d(data.inputs, block).contiguous())


def draw_all(
    planes: dict[str, Surface],
    volume: Surface,
    found: dict[str, Topology],
    starts: dict[str, np.ndarray],
) -> dict[str, go.Figure]:
    """Draw the surfaces, what was found on them, and the volume."""
    titles = {f"{axis}axis_title_text": f"direction {i + 1}" for i, axis in enumerate("xyz")}
    # one scale; where the lower surface ends, so that its details are seen
    ceiling = min(float(np.nanmax(plane.metric())) for plane in planes.values())
    reliefs = {kind: plot_surface(planes[kind], ceiling=ceiling) for kind in SKIP}
    basins = {kind: plot_basins(planes[kind], found[kind], ceiling=ceiling) for kind in SKIP}
    descents = {}
    for kind, topology in found.items():
        # of many minima, the marks beside them would hide what they mark
        basins[kind].data = [trace for trace in basins[kind].data if trace.name not in ("saddle", OUT)]
        # the marks of the trained network and of the lowest point lie deep inside
        reliefs[kind].data = [trace for trace in reliefs[kind].data if trace.type == "surface"]
        count = f"{topology.count()} {'minimum' if topology.count() == 1 else 'minima'}"
        for figure in (reliefs[kind], basins[kind]):
            figure.update_layout(title_text=f"{WORDS[kind].capitalize()}: {count}", scene=titles)
        first = descend(topology, starts[kind][:N_DRAWN])
        figure = plot_basin_descents(planes[kind], topology, first, ceiling=ceiling)
        hidden = ("trained network", "saddle", "maximum", OUT)  # the first would hide the number of the minimum below
        figure.data = [trace for trace in figure.data if trace.name not in hidden]
        figure.update_yaxes(scaleanchor="x", scaleratio=1, title_text="direction 2")
        figure.update_xaxes(title_text="direction 1")
        descents[kind] = figure.update_layout(title_text=f"Descents, {WORDS[kind]}")
    set_one_scale([*reliefs.values(), *basins.values()], planes, ceiling)
    inside = plot_volume(volume)
    inside.data = [trace for trace in inside.data if trace.name not in ("trained network", "lowest grid point")]
    note = f"{' x '.join(map(str, volume.shape))} points; the lines cross at the trained network"
    title = {"text": f"Three directions, {WORDS['jagged']}", "subtitle_text": note}
    inside.update_layout(title=title, scene=titles)
    return {
        **{f"{kind}_surface": figure for kind, figure in reliefs.items()},
        **{f"{kind}_basins": figure for kind, figure in basins.items()},
        **{f"{kind}_descents": figure for kind, figure in descents.items()},
        "jagged_volume": inside,
    }


def set_one_scale(figures: list[go.Figure], planes: Mapping[str, Surface], ceiling: float) -> None:
    """Give all 3-D figures the heights, colors and contours of one scale, and one camera that sees much of them."""
    both = np.concatenate([plane.metric().ravel() for plane in planes.values()])
    levels = find_levels(both, "loss", "linear", ceiling)
    labelled = np.round(levels.values / levels.step) % 4 == 0
    heights = {
        "title": {"text": "loss"},
        "range": [0, levels.high],
        "tickvals": levels.values[labelled],
        "ticktext": np.array(levels.text)[labelled],
    }
    for figure in figures:
        look = {"cmin": levels.low, "cmax": levels.high, "colorbar": color_bar(levels, "loss") | {"len": 0.7}}
        figure.update_traces(look, selector={"type": "surface"})
        for kind in ("surface", "mesh3d"):
            figure.update_traces(lighting=LIGHT, selector={"type": kind})
        for trace in figure.select_traces({"type": "scatter3d"}):  # pins, of whose heads all are to be seen
            trace.z = np.fmin(np.asarray(trace.z, dtype=float), 0.95 * levels.high)
        for trace in figure.select_traces({"type": "surface"}):
            trace.contours.z.update(start=levels.values[0], end=levels.values[-1], size=levels.step)
        figure.update_layout(scene={"zaxis": heights, "camera": CAMERA, "aspectratio": ASPECT})


def trained(setting: Setting, size: Size, kind: str, data: Dataset, test: Dataset, seed: int = 0) -> Run:
    """Train one of the two networks, or read it where that is done; both start from the same parameters."""
    arguments = {
        "depth": size.depth,
        "width": size.width,
        "input_shape": list(data.inputs.shape[1:]),
        "classes": data.classes,
        "skip": SKIP[kind],
    }
    return train(
        *(build("resnet", seed=seed, **arguments), data),
        test=test,
        seed=seed,
        **{"optimizer": "momentum", "learning_rate": 0.02, "schedule": "cosine"},
        **{"batch_size": 32, "epochs": size.epochs, "record_every": size.epochs},
        folder=setting.folder / f"{data.name}_{kind}{f'_seed{seed}' if seed else ''}",
        **{"name": "resnet", "arguments": arguments},
        progress=False,
    )


def evaluated(
    setting: Setting,
    size: Size,
    kind: str,
    run: Run,
    data: Dataset,
    k: int,
    resolution: int,
    seed: int = 0,
    images: int = 1,
    of_training: int = 0,
) -> Surface:
    """Evaluate the loss of so many times the images on `k` random directions through a network of some training."""
    part = data.inputs[: images * size.images_evaluated], data.targets[: images * size.images_evaluated]
    what = f"{f'_images{images}' if images > 1 else ''}{f'_training{of_training}' if of_training else ''}"
    objective = Objective(run.model, part, batch_norm="batch")
    return evaluate(
        *(objective, random_directions(objective, k, seed=seed)),
        resolution=resolution,
        extent=(-size.extent, size.extent),
        path=setting.folder / f"{data.name}_{kind}_{k}d_seed{seed}{what}.h5",
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
        "pixels along an edge": data.inputs.shape[-1],
        "rule for a minimum of the slice": f"persistence above {PERSISTENCE}",
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
            f"minima of the slice above its noise ({topology.noise})": int(
                (topology.minima.persistence > topology.minima.noise).sum()
            ),
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

    A dent, a minimum that does not count, is part of the one into which it merges, if any. If the basin of the lowest
    minimum has the share `q` of the window, the number of starts is geometric with mean `1 / q`.
    """
    counted = np.flatnonzero(topology.counts_as(topology.minima))
    if not len(counted):
        return {"starts needed, expected": None, "starts needed, measured": None}
    lowest = counted[0]
    index, last = topology.minima.index, np.array(topology.values.shape) - 1
    homes, on_border = topology.merged_basins()[tuple(index.T)], ((index == 0) | (index == last)).any(axis=1)
    ends, at_border = homes[descents.minimum], on_border[descents.minimum]
    share = float(topology.minima.share[homes == lowest].sum())
    hits = np.flatnonzero(ends == lowest)
    return {
        "share of the basin of the lowest minimum": share,
        "starts needed, expected": 1 / share,
        "starts needed, measured": len(ends) / len(hits) if len(hits) else None,
        "starts needed, longest wait": int(np.diff(hits, prepend=-1).max()) if len(hits) else None,
        "share of starts that end in the lowest minimum itself": float((descents.minimum == lowest).mean()),
        "share of starts trapped in a higher minimum, or a dent of one": float((ends > lowest).mean()),
        "share of starts trapped in a dent of no minimum": float(((ends == OUTSIDE) & ~at_border).mean()),
        "share of starts that end on the border": float(at_border.mean()),
    }


def caption(numbers: dict[str, Any]) -> str:
    """Say what is seen, with the numbers that were measured."""
    size = numbers["size"]
    jagged, smooth = (numbers[WORDS[kind]] for kind in ("jagged", "smooth"))
    more, again = (jagged[f"minima {of}"] for of in ("for more images", "of another training"))
    return (
        f"The loss around two residual networks of depth {size['depth']} ({numbers['parameters']:,} parameters), "
        f"trained alike on {numbers['images']} images of {numbers['data']}, {numbers['pixels along an edge']} pixels "
        f"wide: {jagged['accuracy']:.1%} of them right without skip connections, {smooth['accuracy']:.1%} with them. "
        f"On two random, filter-normalized directions (loss of {size['images_evaluated']} images, whose statistics "
        f"batch norm takes at every point) there are {jagged['minima of the slice']} and "
        f"{smooth['minima of the slice']} minima with a persistence above {PERSISTENCE}, on other planes, coarser, "
        f"{listed(jagged)} and {listed(smooth)}; one random start in {starts_needed(jagged)} descends to the lowest or "
        f"a dent beside it, with skip connections one in {starts_needed(smooth)}. The setting was chosen to show the "
        f"effect: for {MORE * size['images_evaluated']} images the first network has {more} minima (coarser), after "
        f"another training {again}."
    )


def listed(numbers: dict[str, Any]) -> str:
    """List the minima of the other slices."""
    return ", ".join(map(str, numbers["minima of other slices"]))


def starts_needed(numbers: dict[str, Any]) -> str:
    """Say how many starts the lowest minimum takes."""
    measured = numbers["starts needed, measured"]
    return f"more than {N_STARTS:,}" if measured is None else f"{measured:.3g}"

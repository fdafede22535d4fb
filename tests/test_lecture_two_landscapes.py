"""The lecture's two landscapes: both networks are what they are said to be, and the numbers are those of the slices."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape import Surface, analyze
from landscape.data import Dataset
from landscape.models import build
from landscape.topology import descend, random_starts
from landscape.topology.tree import OUTSIDE

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def setting(scripts, lecture_folder):
    from lecture.setting import Setting

    shares = []
    setting = Setting(lecture_folder("L7"), quick=True, data="digits", report=shares.append)
    return setting, shares


@pytest.fixture(scope="module")
def drawn(setting):
    from lecture import two_landscapes

    return two_landscapes.draw(setting[0])


def test_the_figures_and_the_caption_say_what_was_measured(setting, drawn):
    assert list(drawn.figures) == [
        *("jagged_surface", "smooth_surface", "jagged_basins", "smooth_basins"),
        *("jagged_descents", "smooth_descents", "jagged_volume"),
    ]
    numbers = json.loads(json.dumps(drawn.numbers, allow_nan=False))
    assert "digits" in drawn.caption
    assert f"{numbers['parameters']:,} parameters" in drawn.caption
    for words in ("with skip connections", "without skip connections"):
        assert f"{numbers[words]['accuracy']:.1%}" in drawn.caption
    assert setting[1] == sorted(setting[1])
    assert setting[1][-1] == 1


def test_both_networks_differ_in_their_skip_connections_only(drawn):
    size = drawn.numbers["size"]
    for skip in (True, False):
        network = build("resnet", depth=size["depth"], width=size["width"], input_shape=(1, 8, 8), skip=skip)
        assert sum(parameter.numel() for parameter in network.parameters()) == drawn.numbers["parameters"]
    left = drawn.numbers["with skip connections"]
    right = drawn.numbers["without skip connections"]
    assert left["optimization steps"] == right["optimization steps"]
    assert left["loss"] != right["loss"]


def test_all_surfaces_are_seen_on_one_scale_up_to_the_top_of_the_lower(drawn):
    measured = [drawn.numbers[f"{words} skip connections"] for words in ("with", "without")]
    low = min(numbers["lowest loss on the slice"] for numbers in measured)
    high = min(numbers["highest loss on the slice"] for numbers in measured)
    for name in ("jagged_surface", "smooth_surface", "jagged_basins", "smooth_basins"):
        figure = drawn.figures[name]
        assert figure.layout.scene.zaxis.range == (0, high)
        (relief,) = figure.select_traces({"type": "surface"})
        assert (relief.cmin, relief.cmax) == (low, high)
        assert low <= relief.contours.z.start < relief.contours.z.end <= high


def test_large_images_are_averaged_and_small_ones_kept(scripts, monkeypatch):
    from lecture import two_landscapes
    from lecture.setting import Setting

    inputs = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).reshape(2, 3, 32, 32)
    large = Dataset("cifar10", "train", inputs, torch.zeros(2, dtype=torch.int64), 10)
    monkeypatch.setattr(Setting, "load", lambda self, name, split, limit: large)
    data = two_landscapes.images(Setting(Path()), "train", 2)
    assert data.inputs.shape == (2, 3, 16, 16)
    assert data.inputs[1, 2, 3, 4] == inputs[1, 2, 6:8, 8:10].mean()
    assert data.name == "cifar10"
    small = Dataset("digits", "train", inputs[:, :1, :8, :8], large.targets, 10)
    monkeypatch.setattr(Setting, "load", lambda self, name, split, limit: small)
    assert two_landscapes.images(Setting(Path()), "train", 2).inputs.equal(small.inputs)


@pytest.mark.parametrize(("kind", "words"), [("smooth", "with"), ("jagged", "without")])
def test_numbers_are_those_of_the_stored_slice(setting, drawn, kind, words):
    from lecture.two_landscapes import PERSISTENCE

    numbers = drawn.numbers[f"{words} skip connections"]
    plane = Surface.load(setting[0].folder / f"digits_{kind}_2d_seed0.h5")
    assert plane.finished
    assert plane.provenance["settings"]["batch-norm policy"] == "batch"
    assert numbers["minima of the slice"] == analyze(plane, threshold=PERSISTENCE).count()
    assert numbers["highest loss on the slice"] == plane.values["loss"].max()


def test_every_slice_has_to_have_more_minima(scripts):
    from lecture.two_landscapes import more_minima

    def claim(jagged, smooth):
        counts = {"without skip connections": jagged, "with skip connections": smooth}
        return more_minima(
            {
                words: {"minima of the slice": first, "minima of other slices": rest}
                for words, (first, *rest) in counts.items()
            }
        )

    assert claim([8, 3, 4], [1, 1, 2])
    assert not claim([8, 2, 4], [1, 1, 2])
    assert not claim([8, 3, 4], [1, 1, 3])


def test_starts_needed_are_those_of_the_area_and_of_the_draw(scripts):
    from lecture.two_landscapes import lowest_reached

    # a line of two basins, 3/4 and 1/4 of the length; the deep one has a shallow pit that does not count
    x = np.linspace(0, 8, 81)
    values = np.where(x < 6, np.abs(x - 3), 2 + np.abs(x - 7)) - 0.15 * np.exp(-(((x - 4.5) / 0.05) ** 2))
    values[[0, -1]] = 10
    surface = Surface({"x": x}, {"loss": values}, np.ones(81, dtype=bool))
    topology = analyze(surface, threshold=0.1)
    assert topology.count() == 2
    assert len(topology.minima) == 3
    descents = descend(topology, random_starts(topology, 3000, seed=5))
    found = lowest_reached(topology, descents)
    assert found["starts needed, expected"] == pytest.approx(8 / 6, rel=0.02)
    assert found["starts needed, measured"] == pytest.approx(8 / 6, rel=0.05)
    assert found["share of starts trapped in a higher minimum, or a dent of one"] == pytest.approx(1 / 4, abs=0.03)
    assert found["share of starts that end on the border"] == 0
    assert 0.5 < found["share of starts that end in the lowest minimum itself"] < 6 / 8
    valley = analyze([5, 3, 4, 1, 4, 0.9, 1, 0], threshold=0.5)  # the first dent counts, the last one does not
    ends = lowest_reached(valley, descend(valley, [[1.0], [3.0], [5.0], [7.0]]))
    assert ends["share of starts that end in the lowest minimum itself"] == 1 / 4
    assert ends["share of starts trapped in a higher minimum, or a dent of one"] == 1 / 4
    assert ends["share of starts trapped in a dent of no minimum"] == 1 / 4
    assert ends["share of starts that end on the border"] == 1 / 4
    out = analyze(np.arange(9.0))
    assert out.merged_basins()[0] == OUTSIDE
    assert lowest_reached(out, descend(out, [[3.0]]))["starts needed, expected"] is None


def test_a_second_call_computes_nothing(setting, drawn, monkeypatch):
    from lecture import two_landscapes

    def fail(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("landscape.session.Session.steps", fail)
    monkeypatch.setattr("landscape.surface.SurfaceStore.record", fail)
    again = two_landscapes.draw(setting[0])
    assert again.numbers == drawn.numbers
    assert again.caption == drawn.caption

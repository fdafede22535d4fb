"""The lecture figure of the layer families: the networks, their surfaces, and the one scale they are drawn on."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import Surface, checkpoint
from landscape.data import load
from landscape.models import build

pytestmark = pytest.mark.usefixtures("scripts")
NAMES = ("dense", "convolutional", "recurrent", "transformer")


@pytest.fixture(scope="module")
def setting(scripts, lecture_folder):
    from lecture.setting import Setting

    return Setting(lecture_folder("L12"), quick=True, data="digits")


@pytest.fixture(scope="module")
def drawn(setting):
    from lecture.layer_families import draw

    return draw(setting)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_stored_network_and_surface(drawn, setting, name):
    from lecture.layer_families import FAMILIES

    kind, arguments = FAMILIES[name]
    network = build(kind, input_shape=(1, 8, 8), classes=10, **arguments)
    checkpoint.load_state(network, setting.folder / name / "checkpoint.safetensors")
    network.eval()
    seen, test = load("digits", limit=200), load("digits", "test", limit=300)
    numbers = drawn.numbers[name]
    assert numbers["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    with torch.no_grad():
        right = (network(test.inputs).argmax(1) == test.targets).double().mean()
        cost = cross_entropy(network(seen.inputs), seen.targets)
    assert numbers["accuracy on test images"] == pytest.approx(float(right))
    assert numbers["cost of the trained network"] == pytest.approx(float(cost), rel=1e-5)
    values = Surface.load(setting.folder / f"{name}.h5").values["loss"]
    assert numbers["lowest cost on the plane"] == values.min()
    below = sum(value < -np.log(0.1) for value in values.ravel())
    assert numbers["share of the plane with a cost below that of guessing"] == pytest.approx(below / values.size)


def test_all_networks_learn_and_are_drawn_on_one_scale(drawn):
    figure = drawn.figures["contours"]
    contours = [trace for trace in figure.data if trace.type == "contour"]
    assert len(contours) == 4
    assert {trace.coloraxis for trace in contours} == {"coloraxis"}
    scale = figure.layout.coloraxis
    lowest = min(drawn.numbers[name]["lowest cost on the plane"] for name in NAMES)
    highest = max(drawn.numbers[name]["highest cost on the plane"] for name in NAMES)
    assert (scale.cmin, scale.cmax) == pytest.approx((np.log10(lowest), np.log10(highest)))
    assert list(drawn.figures) == ["contours", *NAMES]
    for name, trace in zip(NAMES, contours, strict=True):
        assert drawn.numbers[name]["accuracy on test images"] > 0.4
        alone = drawn.figures[name]
        (bowl,) = [trace for trace in alone.data if trace.type == "surface"]
        assert (bowl.cmin, bowl.cmax) == (scale.cmin, scale.cmax)
        assert tuple(alone.layout.scene.zaxis.range) == (scale.cmin, scale.cmax)
        assert alone.layout.scene.camera == drawn.figures["dense"].layout.scene.camera
        np.testing.assert_array_equal(bowl.z, trace.z)
        text = f"{drawn.numbers[name]['parameters']:,}"
        assert f"{text} parameters" in alone.layout.title.subtitle.text
        assert any(name in note.text and text in note.text for note in figure.layout.annotations)


def test_dense_layers_in_the_places_of_convolutions():
    from lecture.layer_families import counterparts

    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3), nn.Flatten(), nn.Linear(1, 4))
    places = (nn.Linear(25, 18), nn.Linear(18, 1))  # 1 x 5 x 5 to 2 x 3 x 3 to 1 x 1 x 1
    dense = sum(parameter.numel() for layer in places for parameter in layer.parameters())
    assert counterparts(network, torch.zeros(1, 1, 5, 5)) == (2 * 10 + 19, dense)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_caption_has_the_measured_numbers(drawn):
    assert "500 images of digits" in drawn.caption
    for name in NAMES:
        assert f"{name} {100 * drawn.numbers[name]['accuracy on test images']:.1f} %" in drawn.caption
    assert f"{drawn.numbers['parameters of the convolutions']:,} parameters" in drawn.caption


def test_a_second_drawing_neither_trains_nor_evaluates_the_plane(drawn, setting, monkeypatch):
    from lecture.layer_families import draw

    from landscape.session import Session
    from landscape.surface import SurfaceStore

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(Session, "steps", refuse)
    monkeypatch.setattr(SurfaceStore, "record", refuse)
    assert draw(setting).numbers == drawn.numbers

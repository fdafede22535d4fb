"""The lecture's figure of regularization: its numbers against plain PyTorch, and that a second call goes on."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape.evaluation.run
import landscape.restarts
from landscape.data import load
from landscape.study import Study
from landscape.surface import Surface

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def made(scripts, lecture_folder):
    from lecture import regularization
    from lecture.setting import Setting

    setting = Setting(lecture_folder("L11"), quick=True, data="digits")
    return setting, regularization.draw(setting)


def studies(made):
    return [Study.load(made[0].folder / f"penalty_{penalty}.h5") for penalty in ("0", "0.03")]


def test_the_penalty_is_what_is_minimized_and_not_in_the_curves(made):
    from lecture.regularization import network

    training, validation = load("digits", limit=300), load("digits", "test", limit=2000)
    for study, penalty in zip(studies(made), (0.0, 0.03), strict=True):
        model = network(training, 0)
        theta = torch.from_numpy(study.thetas([1])[0])
        nn.utils.vector_to_parameters(theta, model.parameters())
        cost = F.cross_entropy(model(training.inputs), training.targets)
        assert study.final("loss")[1] == pytest.approx(float(cost.detach()), rel=1e-4)
        held_out = F.cross_entropy(model(validation.inputs), validation.targets)
        assert study.final("test_loss")[1] == pytest.approx(float(held_out.detach()), rel=1e-4)
        gradient = nn.utils.parameters_to_vector(torch.autograd.grad(cost, list(model.parameters())))
        assert study.gradient_norm[1] == pytest.approx(float((gradient + penalty * theta).norm()), rel=1e-2, abs=1e-5)


def test_numbers_are_those_of_the_runs(made):
    numbers = made[1].numbers
    plain, penalized = (study.curves["test_loss"] for study in studies(made))
    for group, curve in zip(numbers["groups"].values(), (plain, penalized), strict=True):
        assert group["validation cost, lowest"] == np.median([min(row) for row in curve])
        assert group["validation cost, final"] == np.median(curve[:, -1])
        assert group["epoch of the lowest validation cost"] == 5 * np.median([np.argmin(row) for row in curve])
    assert numbers["validation cost saved"]["median"] == np.median(plain[:, -1] - penalized[:, -1])
    claims = numbers["claims"]
    assert claims["with the penalty the final validation cost is lower, in every run"] == all(
        a > b for a, b in zip(plain[:, -1], penalized[:, -1], strict=True)
    )
    assert claims["without the penalty the validation cost rises by over 10 % after its lowest, in every run"] == all(
        row[-1] > 1.1 * min(row) for row in plain
    )
    assert "of digits" in made[1].caption


def test_the_surfaces_go_through_the_trained_networks_without_penalty(made):
    groups = list(made[1].numbers["groups"].values())
    for i, study in enumerate(studies(made)):
        surface = Surface.load(made[0].folder / f"surface_{i + 1}.h5", vectors=True)
        center = tuple(n // 2 for n in surface.shape)
        assert [axis[n] for axis, n in zip(surface.axes.values(), center, strict=True)] == [0, 0]
        np.testing.assert_array_equal(surface.origin, study.thetas([0])[0])
        for metric, name in (("loss", "training"), ("test_loss", "validation")):
            assert surface.values[metric][center] == pytest.approx(study.final(metric)[0], rel=1e-4)
            key = f"{name} cost, at the network of the surface"
            assert groups[i][key] == surface.values[metric][center]


def test_both_surfaces_have_one_scale(made):
    for name, metric in (("training_surface", "loss"), ("validation_surface", "test_loss")):
        figure = made[1].figures[name]
        contours = [trace for trace in figure.data if trace.type == "contour"]
        assert len(contours) == 2
        assert {trace.coloraxis for trace in contours} == {"coloraxis"}
        for i, trace in enumerate(contours):
            values = Surface.load(made[0].folder / f"surface_{i + 1}.h5").values[metric]
            np.testing.assert_allclose(10 ** np.array(trace.z, dtype=float), values.T, rtol=1e-9)


def test_a_second_call_computes_nothing(made, monkeypatch):
    from lecture import regularization

    def fail(*arguments, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(landscape.restarts, "train_many", fail)
    # the surface's points, not its plan, which is made anew
    monkeypatch.setattr(landscape.surface.SurfaceStore, "record", fail)
    assert regularization.draw(made[0]).numbers == made[1].numbers

"""The lecture's figure of the vanishing gradient: its numbers against plain torch, and that it continues."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from landscape import train


@pytest.fixture(scope="module")
def lecture(scripts):
    """The script as a module, as it is when it is run."""
    from lecture import vanishing_gradient

    return vanishing_gradient


@pytest.fixture(scope="module")
def setting(lecture, lecture_folder):
    from lecture.setting import Setting

    return Setting(lecture_folder("L3"), quick=True, data="digits")


@pytest.fixture(scope="module")
def shares():
    return []


@pytest.fixture(scope="module")
def drawn(lecture, setting, shares):
    return lecture.draw(replace(setting, report=shares.append))


def test_the_share_done_rises_to_one(drawn, shares):
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1


def networks(lecture, start):
    from lecture.vanishing_gradient.measurements import network

    from landscape.data import load

    plan = lecture.QUICK
    data = load("digits", limit=plan.images)
    return data, [network(start, plan, data, seed) for seed in range(plan.seeds)]


@pytest.mark.parametrize("activation", ["sigmoid", "maxout"])
def test_the_gradient_is_that_of_autograd(lecture, drawn, activation):
    start = lecture.Start(activation, 2.0)
    data, models = networks(lecture, start)
    front, back = [], []
    for model in models:
        F.cross_entropy(model(data.inputs), data.targets).backward()
        pieces = [p.grad.flatten() for name, p in model[1].named_parameters() if name.endswith("weight")]
        front.append(float(torch.cat(pieces).square().mean().sqrt()))
        back.append(float(model[-1].weight.grad.square().mean().sqrt()))
    numbers = drawn.numbers["starts"][lecture.describe(start)]
    assert numbers["first layer, entry of the gradient (RMS)"] == pytest.approx(np.median(front), rel=1e-3)
    assert numbers["last layer, entry of the gradient (RMS)"] == pytest.approx(np.median(back), rel=1e-3)
    panel = list(lecture.ACTIVATIONS).index(activation)
    lines = [t for t in drawn.figures["gradient"].data if t.name == "scale 2" and t.mode == "lines+markers"]
    assert lines[panel].y[0] == pytest.approx(np.median(front), rel=1e-3)
    assert lines[panel].y[-1] == pytest.approx(np.median(back), rel=1e-3)


def test_dead_units_are_those_that_never_fire(lecture, drawn):
    for bias in (-1.0, 0.0):
        start = lecture.Start("relu", 1.0, bias)
        data, models = networks(lecture, start)
        shares = []
        for model in models:
            x, silent = data.inputs, []
            for module in model:
                x = module(x)
                if isinstance(module, torch.nn.ReLU):
                    silent.append((x == 0).all(dim=0))
            shares.append(float(torch.cat(silent).double().mean()))
        found = drawn.numbers["starts"][lecture.describe(start)]["dead units, share"]
        assert found == pytest.approx(np.median(shares), abs=1e-12)
    assert 0 <= found < 0.5 < drawn.numbers["starts"]["ReLU, scale 1, biases -1"]["dead units, share"]


def test_the_runs_are_those_of_training_alone(lecture, drawn):
    start = lecture.Start("tanh")
    data, models = networks(lecture, start)
    runs = [train(model, data, seed=seed, progress=False, **lecture.QUICK.descent) for seed, model in enumerate(models)]
    numbers = drawn.numbers["starts"][lecture.describe(start)]
    assert numbers["loss after training"] == pytest.approx(np.median([run.history["loss"][-1] for run in runs]))
    changed = [
        float((run.model[1].weight != model[1].weight).double().mean()) for run, model in zip(runs, models, strict=True)
    ]
    assert numbers["first layer, share of weights that training changed"] == pytest.approx(np.median(changed), abs=0.01)


def test_what_diverged_is_said(lecture, drawn):
    numbers = drawn.numbers["starts"][lecture.describe(lecture.Start("maxout", 4.0))]
    assert numbers["diverged runs"] == lecture.QUICK.seeds
    assert numbers["loss after training"] is None
    assert 4.0 not in drawn.numbers["scales at which all runs train"]["maxout"]


def test_a_claim_depends_on_the_numbers(lecture, drawn):
    starts = json.loads(json.dumps(drawn.numbers["starts"]))
    before = lecture.claims(starts, lecture.QUICK)
    assert before == drawn.numbers["claims"]
    starts["ReLU, scale 1, biases -1"]["first layer, entry of the gradient (RMS)"] = 1e-5
    name = "ReLU: biases on the dead side leave a gradient of 0 and no training"
    assert before[name]
    assert not lecture.claims(starts, lecture.QUICK)[name]
    assert name not in drawn.caption
    numbers = {**drawn.numbers, "starts": starts, "claims": lecture.claims(starts, lecture.QUICK)}
    assert name in lecture.caption(numbers)


def test_a_second_draw_computes_nothing(lecture, setting, drawn, monkeypatch):
    from lecture.vanishing_gradient import measurements

    def fail(*args, **kwargs):
        raise AssertionError("computed again")

    for name in ("run_restarts", "train", "gradient_norms", "activation_slopes"):
        monkeypatch.setattr(measurements, name, fail)
    again = lecture.draw(setting)
    assert again.numbers == drawn.numbers
    assert again.caption == drawn.caption
    (next(setting.folder.glob("*sigmoid*during.json"))).unlink()
    with pytest.raises(AssertionError, match="computed again"):  # the check can fail
        lecture.draw(setting)


def test_figures_have_titles_and_the_name_of_the_data(drawn):
    assert list(drawn.figures) == ["gradient", "training", "during", "biases"]
    for figure in drawn.figures.values():
        assert figure.layout.title.text
        assert "digits" in figure.layout.title.subtitle.text
    assert "digits" in drawn.caption
    json.dumps(drawn.numbers)

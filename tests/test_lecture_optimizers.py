"""The lecture figure of the optimizers: step lengths, medians, and what is said of them."""

import numpy as np
import pytest
import torch

from landscape import train
from landscape.data import load
from landscape.models import build

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def setting(scripts, lecture_folder):
    from lecture.setting import Setting

    return Setting(lecture_folder("L10"), quick=True, data="digits")


@pytest.fixture(scope="module")
def drawn(setting):
    from lecture.optimizers import draw

    return draw(setting)


def cost_alone(optimizer: str, rate: float, seed: int) -> np.ndarray:
    model = build("mlp", input_shape=(1, 8, 8), classes=10)
    generator = torch.Generator().manual_seed(seed)
    start = {name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
    model.load_state_dict(start)
    run = train(model, load("digits"), optimizer=optimizer, learning_rate=rate, seed=seed, epochs=10, progress=False)
    return run.history["loss"]


@pytest.mark.parametrize("optimizer", ["gd", "normalized", "rmsprop", "adam"])
def test_the_step_length_converges_and_a_ten_times_larger_one_does_not(drawn, optimizer):
    found = drawn.numbers["full batch"][optimizer]
    medians = []
    for rate in (found["step length"], 10 * found["step length"]):
        medians.append(np.median([cost_alone(optimizer, rate, seed) for seed in range(3)], axis=0))
    np.testing.assert_allclose(found["median cost after each epoch"], medians[0], rtol=1e-3)
    for median, converges in zip(medians, (True, False), strict=True):
        rise = sum(change for change in np.diff(median) if change > 0)
        assert (rise < 0.1 * (median[0] - median[-1] + rise)) == converges  # it falls by what it rises and the rest


def test_unrest_is_the_share_of_the_fall_that_rises():
    from lecture.optimizers import unrest

    assert unrest(np.array([[2.0, 1.0, 1.25, 0.75, 1.0]])) == pytest.approx(0.5 / 1.5)
    assert unrest(np.array([[2.0, 1.0, 0.5]])) == 0
    assert unrest(np.array([[1.0, 1.0, 1.0]])) == np.inf
    one_lost = np.array([[2.0, 1.0], [2.0, 1.2], [2.0, np.nan]])
    assert unrest(one_lost) == 0  # the median of three is 1.2
    assert unrest(np.array([[2.0, 1.0], [2.0, np.nan], [2.0, np.nan]])) == np.inf


def test_the_search_goes_on_where_only_the_first_seeds_converge(monkeypatch):
    from lecture import optimizers

    falling, rising = np.array([[2.0, 1.0]]), np.array([[2.0, 3.0]])

    def run(setting, data, optimizer, batch, exponent, seeds):
        cost = np.repeat(rising if exponent > 0 or (exponent == 0 and seeds.start) else falling, len(seeds), axis=0)
        return optimizers.Curves(exponent, cost, cost)

    monkeypatch.setattr(optimizers, "run", run)
    assert optimizers.largest(None, None, "gd", None, 3).exponent == 0
    found = optimizers.largest(None, None, "gd", None, 10)
    assert found.exponent == -1
    assert found.cost.shape == (10, 2)
    monkeypatch.setattr(optimizers, "EXPONENTS", (2, 1))
    with pytest.raises(ValueError, match="no step length"):
        optimizers.largest(None, None, "gd", None, 10)


def test_statements_follow_the_curves(drawn):
    from lecture.optimizers import OPTIMIZERS, Curves, measure

    assert len(drawn.numbers["claims"]) == 6

    def curves(plain, others):
        cost = {name: np.array([plain if name == "gd" else others]) for name in OPTIMIZERS}
        return {name: Curves(0, c, 1 - c / 4) for name, c in cost.items()}

    as_told = {None: curves([2.0, 1.9, 1.8], [2.0, 0.9, 0.5]), 50: curves([2.0, 1.5, 0.8], [2.0, 0.4, 0.2])}
    assert all(measure(as_told)["claims"].values())
    otherwise = {None: curves([2.0, 0.9, 0.5], [2.0, 1.9, 1.8]), 50: curves([2.0, 1.5, 1.4], [2.0, 1.6, 0.2])}
    assert not any(measure(otherwise)["claims"].values())


def test_panels_show_the_medians_and_the_legend_the_step_lengths(drawn):
    figure, numbers = drawn.figures["optimizers"], drawn.numbers
    legend = [trace.name for trace in figure.data if trace.showlegend]
    assert len(legend) == 4
    for axis, batches, quantity, factor in (
        ("y", "full batch", "cost", 1),
        ("y2", "mini-batches", "cost", 1),
        ("y3", "full batch", "accuracy", 100),
        ("y4", "mini-batches", "accuracy", 100),
    ):
        lines = {trace.name: trace.y for trace in figure.data if trace.yaxis == axis and trace.name}
        assert len(lines) == 4
        for (name, line), own in zip(lines.items(), numbers[batches].values(), strict=True):
            assert f"{own['step length']:g}" in name
            np.testing.assert_allclose(line, factor * np.array(own[f"median {quantity} after each epoch"]))


def test_the_caption_names_data_and_what_does_not_hold(drawn):
    assert "1,437 images of digits" in drawn.caption
    full, mini = (
        drawn.numbers[batches]["gd"]["median cost after each epoch"] for batches in ("full batch", "mini-batches")
    )
    assert f"From {full[0]:.3f} it falls to {full[-1]:.3f} by plain descent" in drawn.caption
    assert f"to {mini[-1]:.3f} and" in drawn.caption
    assert "in mini-batches of 50, where after one epoch" in drawn.caption
    for claim, holds in drawn.numbers["claims"].items():
        assert (claim.partition(" (")[0] in drawn.caption) != holds


def test_a_second_drawing_trains_nothing(drawn, setting, monkeypatch):
    from lecture import optimizers

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(optimizers, "train_many", refuse)
    assert optimizers.draw(setting).numbers == drawn.numbers

"""The lecture's figure of many minima: its numbers against plain PyTorch and NumPy, and that a second call goes on."""

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

import landscape.minima.survey
import landscape.restarts
from landscape.catalog import Catalog
from landscape.data import load
from landscape.parameters import layout

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def made(scripts, lecture_folder):
    from lecture import alike_minima
    from lecture.setting import Setting

    shares = []
    setting = Setting(lecture_folder("L9"), quick=True, data="digits", report=shares.append)
    return setting, alike_minima.draw(setting), shares


def test_the_features_are_principal_components(made):
    from lecture.alike_minima import FEATURES, reduced

    training, test, share = reduced(made[0], 200)
    x = training.inputs.double().numpy()
    covariance = np.cov(x.T)
    assert x.shape == (200, FEATURES)
    assert abs(covariance - np.diag(np.diag(covariance))).max() < 1e-2 * covariance.max()
    assert np.all(np.diff(np.diag(covariance)) < 0)
    pixels = load("digits", limit=200).inputs.flatten(1).double().numpy()
    variances = np.linalg.eigvalsh(np.cov(pixels.T))[::-1]
    assert share == pytest.approx(variances[:FEATURES].sum() / variances.sum(), rel=1e-6)
    # the test images are projected alike: one number per component maps pixels to components
    tested = load("digits", "test").inputs.flatten(1).double().numpy()
    linear, *_ = np.linalg.lstsq(pixels - pixels.mean(0), x, rcond=1e-8)
    np.testing.assert_allclose(test.inputs.numpy(), (tested - pixels.mean(0)) @ linear, atol=0.1)


@pytest.mark.parametrize("width", [1, 4])
def test_costs_gradients_and_eigenvalues_are_those_of_plain_torch(made, width):
    from lecture.alike_minima import PENALTY, network, reduced

    training, test, _ = reduced(made[0], 200)
    catalog = Catalog.load(made[0].folder / f"{width}_minima.h5")
    model = network(training.classes, width, 0).double()
    theta = torch.from_numpy(catalog.thetas([3])[0])

    def outputs(theta, x):
        return functional_call(model, layout(model).unflatten(theta), (x.double(),))

    def objective(theta):
        return F.cross_entropy(outputs(theta, training.inputs), training.targets) + PENALTY / 2 * theta.square().sum()

    hessian = torch.autograd.functional.hessian(objective, theta)
    assert torch.autograd.functional.jacobian(objective, theta).norm() < 1e-9
    assert catalog.columns["smallest"][3] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[0]), rel=1e-5)
    assert catalog.columns["loss"][3] == pytest.approx(float(objective(theta)), rel=1e-9)
    right = (outputs(theta, test.inputs).argmax(dim=1) == test.targets).double().mean()
    assert catalog.metrics["test_accuracy"][3] == pytest.approx(float(right), abs=1e-9)


def test_numbers_are_those_of_the_minima(made):
    from lecture.alike_minima import PENALTY, network

    setting, drawn, _ = made
    for row in drawn.numbers["widths"]:
        catalog = Catalog.load(setting.folder / f"{row['width']}_minima.h5")
        cost = catalog.columns["loss"]
        low, high = np.quantile(cost, [0.25, 0.75])
        assert row["final cost, quartile range"]["value"] == pytest.approx(high - low, rel=1e-9)
        assert row["markedly lower"] == sum(value < low - 1.5 * (high - low) for value in cost)
        assert row["markedly higher"] == sum(value > high + 1.5 * (high - low) for value in cost)
        assert row["kinds"].get("minimum", 0) == sum(catalog.columns["smallest"] > catalog.columns["tol"])
        # minima of different costs are different, those counted as one have one cost
        n_costs = 1 + int((np.diff(np.sort(cost)) > 1e-6).sum())
        assert n_costs <= row["distinct minima"] <= len(cost) == row["runs"] == 24
        for label in range(catalog.n_minima):
            assert np.ptp(cost[catalog.labels == label]) < 1e-6
        assert row["all minima"]["lower"] >= row["distinct minima"]
        # the gain starts from the cost of the untrained networks, penalty included
        start = []
        for seed in range(24):
            squares = sum(float(w.detach().square().sum()) for w in network(10, row["width"], seed).parameters())
            study = landscape.restarts.Study.load(setting.folder / f"{row['width']}.h5")
            start.append(study.initial()[seed] + PENALTY / 2 * squares)
        share = (high - low) / (np.median(start) - cost.min())
        assert row["final cost, quartile range of the gain"]["value"] == pytest.approx(share, rel=1e-6)


def test_the_claims_follow_from_the_numbers(made):
    numbers = made[1].numbers
    rows, claims = numbers["widths"], numbers["claims"]
    alike = [
        row["test accuracy, quartile range of the gain"]["value"]
        < row["test cost, quartile range of the gain"]["value"]
        for row in rows
    ]
    assert claims["at every width the test accuracy differs less than the test cost, relative to the gain"] == all(
        alike
    )
    assert claims["now and then a minimum is markedly lower"] == (sum(row["markedly lower"] for row in rows) > 0)
    found = numbers["trends"]["final cost"]
    assert claims["the spread of the final cost shrinks with width"] == (found["rho"] < 0 and found["p"] < 0.05)
    assert "of digits" in made[1].caption
    assert made[2] == sorted(made[2])
    assert made[2][-1] == 1


def test_the_profile_is_sorted_and_the_spread_is_drawn_in_percent(made):
    figures, numbers = made[1].figures, made[1].numbers
    for trace in figures["profile"].data:
        assert np.all(np.diff(trace.y) >= 0)
        assert np.median(trace.y) == pytest.approx(0, abs=1e-9)
    spread = {trace.name: trace for trace in figures["spread"].data}["test accuracy"]
    expected = [100 * row["test accuracy, quartile range of the gain"]["value"] for row in numbers["widths"]]
    np.testing.assert_allclose(spread.y, expected)


def test_a_second_call_trains_and_polishes_nothing(made, monkeypatch):
    from lecture import alike_minima

    def fail(*arguments, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(landscape.restarts, "train_many", fail)
    monkeypatch.setattr(landscape.minima.survey, "find_minima", fail)
    assert alike_minima.draw(made[0]).numbers == made[1].numbers

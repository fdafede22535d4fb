"""The figure of a convex cost beside one that is not, against another way to the Hessian and to the loss."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape.objective import Objective

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture(scope="module")
def setting(scripts, lecture_folder):
    from lecture.setting import Setting

    return Setting(lecture_folder("L8"), quick=True, data="digits")


@pytest.fixture(scope="module")
def drawn(setting):
    from lecture import convexity

    return convexity.draw(setting)


def test_what_the_lecture_says_holds(drawn):
    claims = {name: value for name, value in drawn.numbers.items() if isinstance(value, bool)}
    assert len(claims) == 6
    assert all(claims.values()), claims


def test_eigenvalues_of_softmax_regression_are_those_of_the_formula(drawn, setting):
    from lecture import convexity

    data = setting.load("digits", limit=drawn.numbers["samples"])
    ends = convexity.train(convexity.LINEAR, data, setting)
    x = torch.cat([data.inputs.flatten(1), torch.ones(len(data), 1)], dim=1).double()
    values = []
    for t in (-0.25, 0.5, 1.25):  # the points of the quick line
        theta = ends[0] + t * (ends[1] - ends[0])
        weight, bias = theta[:640].reshape(10, 64), theta[640:]
        p = (x @ torch.cat([weight, bias[:, None]], dim=1).T).softmax(dim=1)
        of_logits = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        matrix = torch.einsum("nab,ni,nj->aibj", of_logits, x, x).reshape(650, 650) / len(data)
        values.append(torch.linalg.eigvalsh(matrix))
    found = drawn.numbers[convexity.LINEAR]
    assert found["largest Hessian eigenvalue on the line"] == pytest.approx(float(torch.stack(values).max()))
    assert found["smallest Hessian eigenvalue on the line"] == pytest.approx(0, abs=1e-12)
    assert found["parameters"] == 650


def test_eigenvalues_are_those_of_the_matrix_by_torch(scripts):
    from lecture.convexity import eigenvalues

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=generator).double(), torch.arange(20) % 3
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    theta = torch.randn(17, generator=generator).double()

    def loss(theta):
        first, a, last, b = theta[:6].view(2, 3), theta[6:8], theta[8:14].view(3, 2), theta[14:]
        return nn.functional.cross_entropy(torch.tanh(x @ first.T + a) @ last.T + b, y)

    expected = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta))
    assert expected[0] < 0
    np.testing.assert_allclose(eigenvalues(Objective(model, (x, y)), theta), expected, atol=1e-12)


def test_barriers_are_those_of_the_networks_between(drawn, setting):
    from lecture import convexity

    data = setting.load("digits", limit=drawn.numbers["samples"])
    ends = convexity.train(convexity.NETWORK, data, setting)
    network = convexity.model(convexity.widths(convexity.NETWORK, True), data, 0).double()
    barriers = []
    for i in range(len(ends)):
        for j in range(i + 1, len(ends)):
            losses = []
            for t in torch.linspace(0, 1, 13, dtype=torch.float64):
                nn.utils.vector_to_parameters((1 - t) * ends[i] + t * ends[j], network.parameters())
                losses.append(nn.functional.cross_entropy(network(data.inputs.double()), data.targets).item())
            straight = np.linspace(losses[0], losses[-1], 13)
            barriers.append(max(np.array(losses) - straight))
    found = drawn.numbers[convexity.NETWORK]
    assert [found["lowest barrier"], found["highest barrier"]] == pytest.approx(
        [min(barriers), max(barriers)], rel=1e-6
    )
    assert found["lines between pairs of runs"] == len(barriers)


def test_figures(drawn):
    assert list(drawn.figures) == ["planes", "lines", "softmax_regression", "network"]
    numbers = [trace.text for trace in drawn.figures["planes"].select_traces({"mode": "markers+text"})]
    counts = [drawn.numbers[kind]["minima on the plane"] for kind in ("softmax regression", "network")]
    assert [len(text) for text in numbers] == counts


def test_a_second_drawing_computes_nothing(drawn, setting, monkeypatch):
    from lecture import convexity

    def fail(*arguments, **options):
        raise AssertionError("computed again")

    for name in ("eigenvalues", "barrier_matrix"):
        monkeypatch.setattr(convexity, name, fail)
    monkeypatch.setattr("landscape.restarts.train_many", fail)
    monkeypatch.setattr("landscape.evaluation.run._fill", lambda store, *rest: store.surface.finished or fail())
    assert convexity.draw(setting).numbers == drawn.numbers

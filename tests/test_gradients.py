"""Gradient norms against plain autograd and closed forms; slopes and dead units by construction."""

import math

import numpy as np
import pytest
import torch
from problems import class_data as random_classes
from torch import nn
from torch.nn import functional as F

from landscape.gradients import activation_slopes, gradient_norms
from landscape.models import build
from landscape.objective import Objective


def class_data():
    return random_classes(7, (4,), 3)


def small(activation="tanh", **options):
    model = build("mlp", seed=3, input_shape=(4,), classes=3, widths=(5, 6), activation=activation)
    return model, Objective(model, class_data(), **options)


def test_norms_are_those_of_autograd():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    x, y = class_data()
    x = x[:, None].double()
    F.cross_entropy(model(x), y).backward()
    objective = Objective(model, (x, y), chunk_size=3)
    found = gradient_norms(objective, by="parameter")
    assert found.names == tuple(name for name, _ in model.named_parameters())
    for i, parameter in enumerate(model.parameters()):
        np.testing.assert_allclose(found.norm[i], float(parameter.grad.norm()), rtol=1e-10)
        np.testing.assert_allclose(found.rms[i], float(parameter.grad.square().mean().sqrt()), rtol=1e-10)
    of_modules = gradient_norms(objective)
    assert of_modules.names == ("0", "3", "4")
    np.testing.assert_allclose(of_modules.norm, np.linalg.norm(found.norm.reshape(3, 2), axis=1), rtol=1e-12)
    np.testing.assert_array_equal(of_modules.sizes, [6, 12, 21])
    chosen = gradient_norms(objective, by={"weights": "*.weight", "ends": ["0.*", "4.*"]})
    np.testing.assert_allclose(chosen.norm, [np.linalg.norm(found.norm[::2]), np.linalg.norm(of_modules.norm[[0, 2]])])


def test_a_chain_of_numbers_has_a_closed_form():
    # f(x) = w_1 ... w_l x with the loss f(x) at x = 1: dL/dw_i = prod_{j != i} w_j
    weights = [0.5, -2.0, 0.25, 3.0, 1e-9]
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in weights))
    for layer, weight in zip(model, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    data = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    objective = Objective(model, data, loss=lambda output, target: output.mean(dim=1), metrics={})
    expected = [abs(math.prod(weights) / weight) for weight in weights]
    np.testing.assert_allclose(gradient_norms(objective).norm, expected, rtol=1e-12)
    doubled = gradient_norms(objective, 2 * objective.origin)
    np.testing.assert_allclose(doubled.norm, 2 ** (len(weights) - 1) * np.array(expected), rtol=1e-12)


def test_a_deep_sigmoid_network_loses_the_gradient_a_quarter_per_layer():
    # width 1, all that enters a sigmoid is 0: each layer multiplies the gradient with respect to its bias by w / 4
    depth, weight = 12, 0.8
    model = build("mlp", seed=0, input_shape=(1,), classes=2, widths=[1] * depth, activation="sigmoid").double()
    with torch.no_grad():
        for layer in list(model)[1:-1:2]:
            layer.weight.fill_(weight)
            layer.bias.fill_(-weight / 2)
        model[1].bias.fill_(0)
    objective = Objective(model, (torch.zeros(3, 1, dtype=torch.float64), torch.tensor([0, 0, 1])))
    names = [f"{i}.bias" for i in range(1, 2 * depth, 2)]
    norm = gradient_norms(objective, by={name: name for name in names}).norm
    np.testing.assert_allclose(norm[:-1] / norm[1:], weight / 4, rtol=1e-12)


def test_slopes_are_the_derivatives():
    model, objective = small("sigmoid", chunk_size=5)
    x, _ = class_data()
    z = model[1](x)
    first = torch.sigmoid(z) * (1 - torch.sigmoid(z))
    z = model[3](torch.sigmoid(z))
    second = torch.sigmoid(z) * (1 - torch.sigmoid(z))
    found = activation_slopes(objective)
    assert list(found) == ["2", "4"]
    np.testing.assert_allclose(found["2"].mean, first.mean(0).detach(), rtol=1e-5)
    np.testing.assert_allclose(found["4"].mean, second.mean(0).detach(), rtol=1e-5)
    assert (found["4"].active == 1).all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_dead_units_are_found_by_construction(inplace, chunk_size):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 3))
    x, y = class_data()
    with torch.no_grad():
        model[0].bias[:] = torch.tensor([-100.0, 100.0, 0.0, -100.0, 0.0])
        model[0].weight[2], model[0].weight[4] = torch.eye(4)[0], -torch.eye(4)[0]
    objective = Objective(model, (x, y), chunk_size=chunk_size)
    slopes = activation_slopes(objective)["1"]
    np.testing.assert_array_equal(slopes.dead, [True, False, False, True, False])
    share = float((x[:, 0] > 0).float().mean())
    np.testing.assert_allclose(slopes.active, [0, 1, share, 0, 1 - share], rtol=1e-6)
    np.testing.assert_array_equal(slopes.mean, slopes.active)
    # what is dead passes nothing back: 2 of 5 units without any gradient
    assert gradient_norms(objective, by="parameter").zeros[1] == pytest.approx(0.4)
    # at another point, another answer
    theta = objective.origin.clone()
    theta[20] = 100.0
    np.testing.assert_array_equal(activation_slopes(objective, theta)["1"].dead, [False, False, False, True, False])


def test_a_saturated_sigmoid_is_dead():
    model, _ = small("sigmoid")
    nn.init.constant_(model[1].bias, 200.0)  # sigmoid(200) is 1 in float32, its slope 0
    found = activation_slopes(Objective(model, class_data()))
    assert found["2"].dead.all()
    assert not found["4"].dead.any()


class Shared(nn.Module):
    """One ReLU, called twice, on channels and on units."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.relu = nn.Conv1d(1, 2, 3), nn.Linear(4, 3), nn.ReLU()

    def forward(self, x):
        return self.relu(self.head(self.relu(self.conv(x)).flatten(1)))


def test_a_module_called_twice_has_two_entries():
    x, y = class_data()
    found = activation_slopes(Objective(Shared(), (x[:, None], y), chunk_size=3))
    assert {name: slopes.mean.shape for name, slopes in found.items()} == {"relu": (2, 2), "relu (2)": (3,)}


def test_nothing_is_changed():
    model, objective = small("relu")
    before, state = gradient_norms(objective), torch.get_rng_state()
    activation_slopes(objective)
    assert torch.equal(state, torch.get_rng_state())
    for module in [*model.modules(), *objective.model.modules()]:
        assert not module._forward_pre_hooks
    np.testing.assert_array_equal(before.norm, gradient_norms(objective).norm)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors_name_the_remedy():
    _, objective = small()
    with pytest.raises(ValueError, match="got 'layer'"):
        gradient_norms(objective, by="layer")
    with pytest.raises(ValueError, match=r"group\(s\) front; the objective has: 1.weight"):
        gradient_norms(objective, by={"front": "conv.*", "head": "5.*"})
    with pytest.raises(ValueError, match="no module of the kinds ReLU: pass kinds"):
        activation_slopes(objective, kinds=(nn.ReLU,))

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.act = nn.Linear(4, 3), nn.Tanh()

        def forward(self, x):
            return self.act(self.head(x)[None])[0]

    objective = Objective(TimeFirst(), class_data())
    with pytest.raises(ValueError, match="samples on the first axis"):
        activation_slopes(objective)
    assert not objective.model.act._forward_pre_hooks

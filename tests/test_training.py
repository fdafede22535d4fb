import copy
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import class_data
from torch import nn
from torch.nn import functional as F

from landscape import checkpoint, optimizers
from landscape.data import collect
from landscape.models import build
from landscape.session import Order, Session, take
from landscape.shards import shard_folder
from landscape.trajectory import Trajectory
from landscape.training import train

DATA = class_data(22, (4,), 3)
TEST = class_data(9, (4,), 3, seed=1)
QUIET = {"progress": False, "interval": 0.0}  # a state after every step

TORCH = {
    "gd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
    "adam": lambda p: torch.optim.Adam(p, lr=0.001),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.001, weight_decay=0),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=1, line_search_fn="strong_wolfe"),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "SGD": lambda p: torch.optim.SGD(p),
}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def noisy(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3))


def quick(model, data=DATA, **settings):
    return train(model, data, **{"optimizer": "gd", "batch_size": 5, "epochs": 2, **QUIET, **settings})


def plain_loop(model, optimizer, *, epochs, size, seed=0, rates=None):
    """Train in place, in the documented order; nothing of the package is used."""
    x, y = DATA
    step = 0
    for epoch in range(epochs):
        rows = np.random.default_rng([seed, epoch, 0]).permutation(len(x)) if size < len(x) else np.arange(len(x))
        for start in range(0, len(x), size):
            part = torch.from_numpy(rows[start : start + size])

            def closure(part=part):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[part]), y[part])
                loss.backward()
                return loss

            if rates is not None:
                optimizer.param_groups[0]["lr"] = rates[step]
            optimizer.step(closure)
            step += 1
    return model


def assert_same_state(one, two):
    one, two = one.state_dict(), two.state_dict()
    assert list(one) == list(two)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def assert_same_run(one, two):
    assert_same_state(one.model, two.model)
    assert list(one.history) == list(two.history)
    for name, values in one.history.items():
        np.testing.assert_array_equal(values, two.history[name])
    if one.folder and two.folder:
        one, two = (Trajectory.load(run.folder / "trajectory.h5") for run in (one, two))
        np.testing.assert_array_equal(one.step, two.step)
        np.testing.assert_array_equal(one.columns(0, one.p), two.columns(0, two.p))
        assert list(one.metrics) == list(two.metrics)
        for name, values in one.metrics.items():
            np.testing.assert_array_equal(values, two.metrics[name])
        for i in range(len(one)):
            for name, values in one.buffers(i).items():
                assert torch.equal(values, two.buffers(i)[name])


class Calls:
    """A `forward` that counts its calls, and does something at one of them."""

    def __init__(self, at=None, act=None):
        self.n, self.at, self.act = 0, at, act

    def __call__(self, model, batch):
        self.n += 1
        if self.n == self.at:
            self.act()
        return model(batch[0])


class StopError(Exception):
    pass


def stop():
    raise StopError


@pytest.mark.parametrize("name", TORCH)
def test_an_optimizer_equals_a_loop_over_torch(name):
    size = len(DATA[0]) if name == "lbfgs" else 5
    expected = network()
    plain_loop(expected, TORCH[name](expected.parameters()), epochs=3, size=size)
    run = train(
        network(), DATA, loss=F.cross_entropy, optimizer=name, batch_size=size, epochs=3, seed=0, progress=False
    )
    assert_same_state(run.model, expected)


def test_options_rate_and_weight_decay_reach_the_optimizer():
    expected = network()
    adam = torch.optim.Adam(expected.parameters(), lr=0.02, betas=(0.5, 0.6), weight_decay=0.3)
    plain_loop(expected, adam, epochs=2, size=5)
    run = quick(
        network(),
        loss=F.cross_entropy,
        optimizer="adam",
        learning_rate=0.02,
        weight_decay=0.3,
        options={"betas": (0.5, 0.6)},
    )
    assert_same_state(run.model, expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.7])
def test_normalized_moves_every_coordinate_by_the_rate(weight_decay):
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]))
    parameter.grad = torch.tensor([0.001, 100.0, -0.2, 0.0, -1.5])
    before, slope = parameter.detach().numpy().copy(), parameter.grad.numpy().copy()
    optimizers.Normalized([parameter], lr=0.25, weight_decay=weight_decay).step()
    expected = before - 0.25 * np.sign(slope + weight_decay * before)
    np.testing.assert_array_equal(parameter.detach().numpy(), expected.astype(np.float32))


def test_normalized_trains_with_a_step_of_fixed_length():
    run = quick(network(), optimizer="normalized", learning_rate=0.01, batch_size=None, epochs=1)
    for before, after in zip(network().parameters(), run.model.parameters(), strict=True):
        torch.testing.assert_close((after - before).abs(), torch.full_like(before, 0.01), rtol=1e-4, atol=0)


def test_adamw_without_weight_decay_is_adam_and_with_it_is_not():
    adam, plain, decayed = (
        quick(network(), optimizer=name, weight_decay=decay).model.state_dict()["0.weight"]
        for name, decay in (("adam", 0.0), ("adamw", 0.0), ("adamw", 0.5))
    )
    assert torch.equal(adam, plain)
    assert not torch.equal(adam, decayed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adm"}, "no optimizer 'adm' .did you mean 'adam'.*lbfgs.*Adagrad"),
        ({"optimizer": "Optimizer"}, "no optimizer 'Optimizer'"),
        ({"optimizer": "adam", "options": {"beta": 1}}, "adam has no option 'beta'; it has: betas, eps"),
        ({"optimizer": "adam", "options": {"lr": 1}}, "given as learning_rate="),
        ({"optimizer": "adam", "options": {"weight_decay": 1}}, "given as weight_decay="),
        ({"optimizer": "lbfgs", "weight_decay": 0.1}, "lbfgs has no weight decay"),
        ({"learning_rate": -0.1}, "learning_rate must be a positive number, got -0.1"),
        ({"weight_decay": math.nan}, "weight_decay must be 0 or a positive number"),
        ({"schedule": "cosinus"}, "no schedule 'cosinus'; choose one of constant, linear, cosine, step"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or more, got 0"),
        ({"epochs": 2.0}, "epochs must be a whole number"),
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"record_every": 0}, "record_every must be"),
        ({"record_unit": "epochs"}, "record_unit must be 'epoch' or 'step', got 'epochs'"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        quick(network(), **settings)


def test_schedules_are_their_formulas():
    factors = {name: optimizers.schedule_function(name) for name in optimizers.SCHEDULES}
    for s in np.linspace(0, 1, 41)[:-1]:
        assert factors["constant"](s) == 1
        assert factors["linear"](s) == 1 - s
        assert factors["cosine"](s) == pytest.approx(math.cos(math.pi * s / 2) ** 2, abs=1e-15)
        assert factors["step"](s) == (1.0 if s < 0.5 else 0.1 if s < 0.75 else 0.01)


@pytest.mark.parametrize("schedule", ["cosine", lambda s: 1 / (1 + 3 * s)])
def test_the_rate_follows_the_schedule(schedule):
    total = 10
    factor = optimizers.schedule_function(schedule)
    expected = network()
    rates = [0.1 * factor(step / total) for step in range(total)]
    plain_loop(expected, torch.optim.SGD(expected.parameters(), lr=0.1), epochs=2, size=5, rates=rates)
    assert_same_state(quick(network(), loss=F.cross_entropy, schedule=schedule).model, expected)


@given(n=st.integers(1, 30), size=st.integers(1, 35), start=st.integers(0, 40))
def test_an_epoch_holds_every_sample_once_and_can_be_entered_anywhere(n, size, start):
    order = Order(collect((torch.arange(n)[:, None], torch.arange(n))), size, seed=3)
    source = order.batches(0)
    steps = [next(source)[1].tolist() for _ in range(max(2 * order.n_steps, start + 1))]
    for epoch in range(2):
        own = steps[epoch * order.n_steps : (epoch + 1) * order.n_steps]
        assert sorted(sum(own, [])) == list(range(n))
        assert all(len(step) in (size, size + 1) for step in own[:-1])
        assert len(own) == 1 or len(own[-1]) > 1 or size == 1
    assert next(order.batches(start))[1].tolist() == steps[start]


def test_the_order_differs_between_epochs_and_seeds():
    batches = collect(DATA)
    first, second = (next(Order(batches, 11, seed=0).batches(step))[1] for step in (0, 2))
    other = next(Order(batches, 11, seed=1).batches(0))[1]
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_data_that_cannot_be_cut_are_used_in_the_batches_given():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 3)

        def forward(self, x):
            return self.linear(x.sum(1, keepdim=True))

    torch.manual_seed(0)
    model = Sums()
    data = [
        (torch.ones(3, 2), torch.tensor([0, 1, 2])),
        (torch.ones(2, 5), torch.tensor([1, 1])),
        (torch.ones(1, 7), torch.tensor([2])),
    ]
    run = quick(model, data, batch_size=None, loss=F.cross_entropy)
    expected = copy.deepcopy(model)
    sgd = torch.optim.SGD(expected.parameters(), lr=0.1)
    for epoch in range(2):
        for i in np.random.default_rng([0, epoch, 0]).permutation(3):
            sgd.zero_grad()
            F.cross_entropy(expected(data[i][0]), data[i][1]).backward()
            sgd.step()
    assert_same_state(run.model, expected)
    assert run.history["step"].tolist() == [0, 3, 6]
    with pytest.raises(ValueError, match="leave batch_size out"):
        quick(model, data, batch_size=2)


def test_take_follows_the_structure_of_a_batch():
    batch = {"a": torch.arange(6).reshape(3, 2), "b": (torch.arange(3), None)}
    part = take(batch, torch.tensor([2, 0]))
    assert part["a"].tolist() == [[4, 5], [0, 1]]
    assert part["b"][0].tolist() == [2, 0]
    assert part["b"][1] is None


def test_a_last_batch_of_one_sample_does_not_break_batch_norm():
    run = quick(noisy(), class_data(11, (4,), 3), batch_size=5, epochs=1)
    assert run.history["step"].tolist() == [0, 2]


class OwnLoss(nn.Module):
    """Called with keywords, and returns an output with a loss, as transformers' models do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs, labels):
        return SimpleNamespace(loss=F.cross_entropy(self.linear(inputs), labels))


def test_dictionary_batches_and_a_loss_of_the_model():
    model = OwnLoss()
    expected = copy.deepcopy(model)
    plain_loop(expected.linear, torch.optim.SGD(expected.parameters(), lr=0.1), epochs=2, size=5)
    run = quick(model, {"inputs": DATA[0], "labels": DATA[1]})
    assert_same_state(run.model, expected)
    assert list(run.history) == ["epoch", "step", "loss"]


def test_a_sum_over_samples_is_minimized_as_such():
    expected = network()
    sgd = torch.optim.SGD(expected.parameters(), lr=0.001 * len(DATA[0]))
    plain_loop(expected, sgd, epochs=2, size=len(DATA[0]))
    for loss in (
        lambda output, target: F.cross_entropy(output, target, reduction="sum"),
        lambda output, target: F.cross_entropy(output, target, reduction="none"),
    ):
        run = quick(network(), loss=loss, reduction="sum", batch_size=None, learning_rate=0.001)
        for one, two in zip(run.model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_history_is_the_loss_of_the_whole_data_before_training_and_after_each_epoch():
    run = quick(noisy(), test=TEST, epochs=3)
    model, (x, y) = run.model, DATA
    assert list(run.history) == ["epoch", "step", "loss", "accuracy", "test_loss", "test_accuracy"]
    assert run.history["epoch"].tolist() == [0, 1, 2, 3]
    assert run.history["step"].tolist() == [0, 5, 10, 15]
    assert not model.training
    with torch.no_grad():
        assert run.history["loss"][-1] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)
        assert run.history["test_loss"][-1] == pytest.approx(F.cross_entropy(model(TEST[0]), TEST[1]).item(), rel=1e-5)
        assert run.history["accuracy"][-1] == pytest.approx((model(x).argmax(1) == y).float().mean().item())
        start = noisy().eval()
        assert run.history["loss"][0] == pytest.approx(F.cross_entropy(start(x), y).item(), rel=1e-5)


def test_the_model_of_the_user_and_the_random_generators_stay_as_they_were():
    model = noisy().train()
    model[0].bias.requires_grad_(False)
    F.cross_entropy(model(DATA[0]), DATA[1]).backward()
    before = copy.deepcopy(model)
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    run = quick(model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert_same_state(model, before)
    assert model.training
    assert all(module.training for module in model)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in run.model.parameters()]
    assert all(p.grad is None for p in run.model.parameters())


def test_a_frozen_parameter_keeps_its_values():
    model = network()
    model[0].requires_grad_(False)
    run = quick(model, weight_decay=0.1)
    assert torch.equal(run.model[0].weight, model[0].weight)
    assert not torch.equal(run.model[2].weight, model[2].weight)
    with pytest.raises(ValueError, match="nothing to train"):
        quick(model.requires_grad_(False))


def test_the_seed_decides_the_order_and_the_dropout():
    one, same, other = (quick(network(), seed=seed) for seed in (4, 4, 5))
    assert_same_run(one, same)
    assert not torch.equal(one.model[0].weight, other.model[0].weight)
    torch.manual_seed(99)  # the caller's generator plays no part
    one, same, other = (quick(noisy(), seed=seed, batch_size=None) for seed in (4, 4, 5))
    assert_same_run(one, same)
    assert not torch.equal(one.model[0].weight, other.model[0].weight)


def test_dropout_differs_from_step_to_step():
    model = nn.Sequential(nn.Dropout(0.5))
    masks = []

    class Mask(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            if self.training:
                masks.append(model(torch.ones(64)).tolist())
            return x[:, :3] * self.scale

    quick(Mask(), epochs=1)
    assert len(masks) == 5
    assert len({tuple(mask) for mask in masks}) == 5


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [("momentum", 5), ("adam", 5), ("normalized", 5), ("lbfgs", None), ("lbfgs", 11), ("Rprop", 5)],
)
@pytest.mark.parametrize("at", [1, 7, 17, 24])
def test_an_interrupted_run_ends_as_if_it_had_not_been_interrupted(tmp_path, optimizer, size, at):
    settings = {"optimizer": optimizer, "batch_size": size, "epochs": 4, "test": TEST, "schedule": "cosine"}
    settings |= {"record_unit": "step", "record_every": 3}
    whole = quick(noisy(), forward=Calls(), folder=tmp_path / "whole", **settings)
    checks = Calls()
    quick(noisy(), forward=checks, **{**settings, "epochs": 1})
    n_before = checks.n - 1  # some calls check model and data before the run begins
    calls = Calls(at=at + 4, act=stop)
    with pytest.raises(StopError):
        quick(noisy(), forward=calls, folder=tmp_path / "parts", **settings)
    assert n_before > 4
    torch.manual_seed(99)
    assert_same_run(quick(noisy(), forward=Calls(), folder=tmp_path / "parts", **settings), whole)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["checkpoint.safetensors", "trajectory.h5"]

import contextlib
import copy
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import class_data
from torch import nn
from torch.nn import functional as F

from landscape import checkpoint, optimizers, training
from landscape.data import collect
from landscape.models import build
from landscape.objective import Objective
from landscape.session import Order, Session, read_state, take
from landscape.training import read_history, train
from landscape.trajectory import Trajectory

DATA = class_data(22, (4,), 3)
TEST = class_data(9, (4,), 3, seed=1)
QUIET = {"progress": False, "interval": 0.0}


@pytest.fixture(autouse=True)
def _save_after_every_step(monkeypatch):
    monkeypatch.setattr(training, "_SHARE_OF_SAVING", math.inf)


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


def steep():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


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
        assert torch.allclose(tensor, two[name], rtol=0, atol=0, equal_nan=True), name


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
        ({"learning_rate": -0.1}, "learning_rate must be a finite number, above 0, got -0.1"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number, 0 or more"),
        ({"schedule": "cosinus"}, "no schedule 'cosinus'; choose one of constant, linear, cosine, step"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or more, got 0"),
        ({"epochs": 2.0}, "epochs must be a whole number"),
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more, got 0"),
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
        assert sorted(itertools.chain(*own)) == list(range(n))
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


def test_numbers_of_numpy_are_numbers(tmp_path):
    numbers = {"seed": np.int64(2), "epochs": np.int32(2), "batch_size": np.int64(5), "learning_rate": np.float64(0.1)}
    first = quick(network(), folder=tmp_path, **numbers)
    assert_same_run(quick(network(), folder=tmp_path, seed=2), first)


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
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    run = quick(model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
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


class Masked(nn.Module):
    """Remembers the random numbers of every call in training mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.masks = []

    def __deepcopy__(self, memo):
        copied = Masked()
        copied.load_state_dict(self.state_dict())
        copied.masks = self.masks
        return copied

    def forward(self, x):
        if self.training:
            self.masks.append(tuple(torch.rand(8).tolist()))
        return self.linear(x)


def test_random_numbers_are_those_of_the_step():
    model = Masked()
    quick(model, epochs=2)
    assert len(model.masks) == len(set(model.masks)) == 10
    model = Masked()
    run = quick(model, optimizer="lbfgs", batch_size=None, epochs=2)
    assert run.history["step"][-1] == 2
    assert len(model.masks) > 2
    assert len(set(model.masks)) == 2


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [("momentum", 5), ("adam", 5), ("normalized", 5), ("Rprop", 5), ("lbfgs", None), ("lbfgs", 11)],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been_interrupted(tmp_path, optimizer, size):
    settings = {"optimizer": optimizer, "batch_size": size, "epochs": 4, "test": TEST, "schedule": "cosine"}
    settings |= {"record_unit": "step", "record_every": 3}
    calls = Calls()
    whole = quick(noisy(), forward=calls, folder=tmp_path / "whole", **settings)
    for share in (0.4, 0.6, 0.8):  # in the midst of epochs, steps and evaluations
        folder = tmp_path / f"{share}"
        for at in (int(share * calls.n), 12):  # and soon again
            with pytest.raises(StopError):
                quick(noisy(), forward=Calls(at, stop), folder=folder, **settings)
        assert (folder / "state.pt").exists()
        torch.manual_seed(99)
        assert_same_run(quick(noisy(), forward=Calls(), folder=folder, **settings), whole)
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.safetensors", "trajectory.h5"]


def test_a_continued_run_repeats_no_step_that_was_saved(tmp_path):
    calls = Calls()
    quick(network(), forward=calls, epochs=4)
    stopped, rest = Calls(calls.n - 3, stop), Calls()
    with pytest.raises(StopError):
        quick(network(), forward=stopped, epochs=4, folder=tmp_path)
    quick(network(), forward=rest, epochs=4, folder=tmp_path)
    assert rest.n < calls.n / 2


PROGRAM = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_training import DATA, TEST, noisy
from landscape.training import train
torch.set_num_threads(1)
train(noisy(), DATA, test=TEST, optimizer="adam", batch_size=5, epochs=200, folder=sys.argv[1], interval=0.02,
      record_unit="step", record_every=10, progress=False)
"""


def test_a_killed_run_continues(tmp_path):
    program = PROGRAM.format(tests=os.path.dirname(__file__))
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "killed"])
    path, seen, deadline = tmp_path / "killed" / "state.pt", set(), time.monotonic() + 60
    while process.poll() is None and len(seen) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
        with contextlib.suppress(FileNotFoundError):
            seen.add(path.stat().st_mtime_ns)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    state = read_state(path)
    assert 0 < state["step"] < 1000
    settings = {"test": TEST, "optimizer": "adam", "epochs": 200, "record_unit": "step", "record_every": 10}
    killed, whole = (
        quick(noisy(), folder=tmp_path / name, **{**settings, "interval": 5}) for name in ("killed", "whole")
    )
    assert_same_run(killed, whole)
    assert killed.seconds > 0


def test_ctrl_c_stops_after_the_step_and_saves_it(tmp_path, caplog):
    settings = {"epochs": 3, "interval": 1e9}
    calls = Calls()
    whole = quick(network(), forward=calls, **settings, folder=tmp_path / "whole")
    press = Calls(calls.n - 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="the same call continues after step 1"):
        quick(network(), forward=press, **settings, folder=tmp_path / "parts")
    assert "stopping after this step" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert read_state(tmp_path / "parts" / "state.pt")["step"] in range(10, 15)
    assert_same_run(quick(network(), forward=Calls(), **settings, folder=tmp_path / "parts"), whole)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    def press_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        quick(network(), forward=Calls(18, press_twice), epochs=3, folder=tmp_path)
    assert not caught.value.args
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_is_returned_at_once(tmp_path, monkeypatch):
    first = quick(noisy(), test=TEST, folder=tmp_path)
    monkeypatch.setattr(Session, "advance", lambda *_: pytest.fail("trained again"))
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = quick(noisy(), test=TEST, folder=str(tmp_path))
    assert_same_run(again, first)
    assert again.seconds == first.seconds
    assert not again.model.training
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_a_run_whose_trajectory_was_removed_does_not_go_on_without_it(tmp_path):
    with pytest.raises(StopError):
        quick(network(), forward=Calls(25, stop), folder=tmp_path)
    for path in tmp_path.glob("trajectory.h5*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=r"trajectory\.h5 was removed.* or delete state\.pt to start anew"):
        quick(network(), forward=Calls(), folder=tmp_path)


def test_the_history_can_be_read_as_the_run_ends(tmp_path, monkeypatch):
    run = quick(network(), folder=tmp_path)
    exists, asked = Path.exists, []

    def goes_after_it_was_seen(path):
        asked.append(path.name)
        return len(asked) == 1 or exists(path)

    monkeypatch.setattr(Path, "exists", goes_after_it_was_seen)
    np.testing.assert_array_equal(read_history(tmp_path)["loss"], run.history["loss"])
    assert asked[0] == "state.pt"


def test_the_history_can_be_read_while_a_run_goes_on_and_afterwards(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training run in"):
        read_history(tmp_path)
    with pytest.raises(StopError):
        quick(network(), forward=Calls(25, stop), folder=tmp_path)
    part = read_history(tmp_path)
    run = quick(network(), forward=Calls(), folder=tmp_path)
    whole = read_history(str(tmp_path))
    assert len(part["loss"]) == 2
    for name, values in run.history.items():
        np.testing.assert_array_equal(whole[name], values)
        np.testing.assert_array_equal(part[name], values[:2])
        assert whole[name].dtype == part[name].dtype == values.dtype


@pytest.mark.parametrize("finished", [True, False])
def test_another_run_in_the_folder_is_refused_and_the_difference_named(tmp_path, finished):
    if finished:
        quick(network(), folder=tmp_path)
    else:
        with pytest.raises(StopError):
            quick(network(), forward=Calls(18, stop), folder=tmp_path)
    forward = None if finished else Calls()
    x, y = DATA
    for settings, message in [
        ({"learning_rate": 0.2}, "optimizer arguments: .*'lr': 0.1.* there, .*'lr': 0.2.* now"),
        ({"optimizer": "adam"}, "optimizer: SGD there, Adam now"),
        ({"epochs": 3}, r"\(epochs: 2 there, 3 now\)"),
        ({"batch_size": 6}, "batch size: 5 there, 6 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"schedule": "cosine"}, "schedule: constant there, cosine now"),
        ({"record_every": 2}, "record: every 1 epoch there, every 2 epoch now"),
        ({"test": TEST}, "test_data: nothing there"),
        ({"data": (x + 1, y)}, "training_data: "),
        ({"model": network(seed=1)}, r"\(initial parameters and buffers: "),
    ]:
        with pytest.raises(ValueError, match=message):
            quick(**{"model": network(), "forward": forward, "folder": tmp_path, **settings})
    quick(network(), forward=forward, folder=tmp_path)


def test_a_folder_with_a_foreign_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "trajectory.h5").write_text("mine")
    with pytest.raises(ValueError, match=r"holds a trajectory.h5 that this run did not begin"):
        quick(network(), folder=tmp_path)
    assert (tmp_path / "trajectory.h5").read_text() == "mine"
    checkpoint.save(tmp_path / "b" / "checkpoint.safetensors", network())
    with pytest.raises(ValueError, match="not written by a training run"):
        quick(network(), folder=tmp_path / "b")


@pytest.mark.parametrize("batch_size", [5, None])
def test_training_stops_when_the_loss_is_not_finite(tmp_path, caplog, batch_size):
    settings = {"learning_rate": 1e30, "epochs": 50, "batch_size": batch_size, "folder": tmp_path}
    run = quick(steep(), **settings)
    assert not math.isfinite(run.history["loss"][-1])
    assert np.isfinite(run.history["loss"][:-1]).all()
    assert run.history["step"][-1] < 20
    assert "a smaller learning rate may help" in caplog.text
    assert_same_run(quick(steep(), **settings), run)


def test_a_step_that_ends_in_nan_ends_the_epoch(caplog):
    run = quick(steep(), class_data(500, (4,), 3), learning_rate=1e30, epochs=1)
    assert run.history["epoch"].tolist() == [0, 1]
    assert run.history["step"][-1] < 10
    assert "of 100: the loss is nan" in caplog.text


def test_a_run_that_ended_before_its_first_saved_state_begins_anew(tmp_path):
    settings = {"interval": 1e9, "record_unit": "step", "epochs": 3}
    whole = quick(network(), forward=Calls(), folder=tmp_path / "whole", **settings)
    with pytest.raises(StopError):
        quick(network(), forward=Calls(18, stop), folder=tmp_path / "parts", **settings)
    assert len(Trajectory.load(tmp_path / "parts" / "trajectory.h5")) > 1
    assert_same_run(quick(network(), forward=Calls(), folder=tmp_path / "parts", **settings), whole)


def test_the_history_does_not_depend_on_a_chunk_size_that_was_timed(monkeypatch):
    sizes, evaluate = set(), Objective.evaluate
    monkeypatch.setattr(Objective, "evaluate", lambda self, *a: sizes.add(self.chunk_size) or evaluate(self, *a))
    quick(network(), class_data(70, (4,), 3))
    assert sizes == {256}


def test_the_checkpoint_rebuilds_the_network(tmp_path):
    arguments = {"input_shape": [4], "classes": 3, "widths": [5]}
    run = quick(build("mlp", seed=0, **arguments), name="mlp", arguments=arguments, folder=tmp_path)
    stored = checkpoint.read(tmp_path / "checkpoint.safetensors")
    rebuilt = build(stored.name, **stored.arguments)
    checkpoint.load_state(rebuilt, stored)
    assert_same_state(rebuilt, run.model)
    assert stored.info["history"]["loss"] == run.history["loss"].tolist()
    assert stored.info["training"]["seed"] == 0
    assert stored.info["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("unit", "every", "steps"),
    [
        ("epoch", 1, [0, 5, 10, 15]),
        ("epoch", 2, [0, 10, 15]),
        ("step", 4, [0, 4, 8, 12, 15]),
        ("step", 1, range(16)),
    ],
)
def test_the_trajectory_holds_what_was_asked_for(tmp_path, unit, every, steps):
    run = quick(noisy(), epochs=3, record_unit=unit, record_every=every, folder=tmp_path)
    trajectory = Trajectory.load(tmp_path / "trajectory.h5")
    assert trajectory.step.tolist() == list(steps)
    theta = nn.utils.parameters_to_vector(run.model.parameters())
    assert torch.equal(trajectory.theta(-1), theta)
    assert torch.equal(trajectory.theta(0), nn.utils.parameters_to_vector(noisy().parameters()))
    assert torch.equal(trajectory.buffers(-1)["1.running_mean"], run.model[1].running_mean)
    history = dict(zip(run.history["step"].tolist(), run.history["loss"], strict=True))
    for step, loss in zip(trajectory.step[1:].tolist(), trajectory.metrics["loss"][1:], strict=True):
        assert loss == history[step] if step in history else math.isnan(loss)
    assert trajectory.info["training"]["optimizer"] == "SGD"


def test_the_batch_loss_is_that_of_the_batch_just_before_the_step(tmp_path):
    quick(network(), loss=F.cross_entropy, epochs=1, record_unit="step", folder=tmp_path)
    trajectory = Trajectory.load(tmp_path / "trajectory.h5")
    model, (x, y) = network(), DATA
    rows = np.random.default_rng([0, 0, 0]).permutation(len(x))
    for i in range(4):
        nn.utils.vector_to_parameters(trajectory.theta(i), model.parameters())
        part = torch.from_numpy(rows[5 * i : 5 * i + 5])
        loss = F.cross_entropy(model(x[part]), y[part]).item()
        assert trajectory.metrics["batch_loss"][i + 1] == pytest.approx(loss, rel=1e-6)


def test_a_state_is_small_and_holds_no_objects(tmp_path):
    with pytest.raises(StopError):
        quick(noisy(), optimizer="adam", forward=Calls(18, stop), folder=tmp_path)
    state = read_state(tmp_path / "state.pt")
    assert set(state) == {"identity", "network", "optimizer", "step", "history", "seconds"}
    assert json.loads(state["identity"])["optimizer"] == "Adam"


def test_the_bar_shows_steps_and_loss(capsys):
    quick(network(), progress=True)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "loss=" in shown
    quick(network(), progress=False)
    assert capsys.readouterr().err == ""

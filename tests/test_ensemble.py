import copy
import itertools
import math

import numpy as np
import pytest
import torch
from problems import class_data
from torch import nn
from torch.nn import functional as F

from landscape import group
from landscape.data import collect
from landscape.ensemble import train_many
from landscape.models import build
from landscape.session import Order
from landscape.stack import Stack, chain_of
from landscape.training import train
from landscape.trajectory import Trajectory

DATA = class_data(23, (1, 8, 8), 3)
TEST = class_data(9, (1, 8, 8), 3, seed=1)
SEEDS = [3, 1, 7]
SETTINGS = {"epochs": 3, "batch_size": 5, "progress": False}
OPTIMIZERS = ["gd", "normalized", "momentum", "rmsprop", "adam", "adamw"]
SMALL = {"input_shape": (1, 8, 8), "classes": 3}
TANH = ("mlp", {"widths": (5, 4)})
FAMILIES = {
    "tanh": (*TANH, "batched products"),
    "relu": ("mlp", {"widths": (5,), "activation": "relu"}, "batched products"),
    "gelu": ("mlp", {"widths": (5,), "activation": "gelu"}, "batched products"),
    "maxout": ("mlp", {"widths": (5,), "activation": "maxout"}, "vmap"),
    "lenet": ("lenet", {}, "vmap"),
    "recurrent": ("recurrent", {"hidden": 4}, "vmap"),
    "transformer": ("transformer", {"width": 4, "heads": 2, "layers": 1}, "vmap"),
    "resnet": ("resnet", {"depth": 8, "width": 2, "norm": "none"}, "vmap"),
    "resnet with batch norm": ("resnet", {"depth": 8, "width": 2}, "vmap"),
}


def builder(name, arguments):
    return lambda seed: build(name, seed=seed, **SMALL, **arguments)


tanh = builder(*TANH)


def vector(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def many(make=tanh, data=DATA, **settings):
    return train_many(make, data, **{"seeds": SEEDS, **SETTINGS, **settings})


def alone(make=tanh, data=DATA, seeds=SEEDS, **settings):
    return [train(make(seed), data, seed=seed, **{**SETTINGS, **settings}) for seed in seeds]


def engine_of(together):
    return together.plan.partition(": ")[2].partition(" (")[0]


def assert_same(together, runs, rtol=1e-5):
    """Compare with runs of the same length: relative to the norms, or bit for bit where `rtol` is 0."""
    for i, run in enumerate(runs):
        expected, buffers = vector(run.model), dict(run.model.named_buffers())
        assert (together.thetas[i] - expected).norm() <= rtol * expected.norm()
        assert list(together.buffers) == list(buffers)
        for name, buffer in buffers.items():
            torch.testing.assert_close(together.buffers[name][i], buffer, rtol=rtol, atol=rtol)
        assert list(together.history) == list(run.history)[2:]
        for name, values in together.history.items():
            np.testing.assert_allclose(values[i], run.history[name], rtol=rtol, atol=rtol / 10)
        assert together.epochs.tolist() == run.history["epoch"].tolist()
        assert together.steps[i] == run.history["step"][-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("optimizer", ["adam", "normalized"])
def test_each_network_ends_as_if_trained_alone(family, optimizer):
    name, arguments, engine = FAMILIES[family]
    make, settings = builder(name, arguments), {"test": TEST, "optimizer": optimizer, "schedule": "cosine"}
    together = many(make, **settings)
    assert engine_of(together) == engine
    assert_same(together, alone(make, **settings))


def one_order_of_sums():
    """Whether this processor's products have the same digits either way round: `vmap` and autograd differ in that."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(16, n, 10, generator=generator).unbind() for n in (16, 14)]
    return all(torch.equal(x.T @ y, (y.T @ x).T) for matrices in pairs for x, y in itertools.pairwise(matrices))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the order of sums is that of MKL")
@pytest.mark.parametrize(("family", "arguments"), [("mlp", {"widths": (10,) * 5}), ("mlp", FAMILIES["maxout"][1])])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dense_networks_of_some_size_end_bit_for_bit(family, arguments, optimizer):
    data, settings = class_data(46, (1, 8, 8), 10), {"optimizer": optimizer, "batch_size": 16}

    def make(seed):
        return build(family, seed=seed, **{**SMALL, **arguments, "classes": 10, "widths": (10,) * 5})

    together = many(make, data, **settings)
    exact = engine_of(together) == "batched products" or one_order_of_sums()
    assert_same(together, alone(make, data, **settings), rtol=0 if exact else 3e-6)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "NAdam", "RAdam", "Rprop", "Adagrad", "Adadelta", "Adamax", "ASGD"])
@pytest.mark.parametrize("batch_size", [5, None])
def test_every_optimizer_steps_all_networks(optimizer, batch_size):
    settings = {"optimizer": optimizer, "batch_size": batch_size, "learning_rate": 0.02}
    settings["weight_decay"] = 0.0 if optimizer == "Rprop" else 0.01
    together, runs = many(**settings), alone(**settings)
    assert engine_of(together) == "batched products"
    assert_same(together, runs)
    assert (together.thetas - torch.stack([vector(tanh(seed)) for seed in SEEDS])).norm(dim=1).min() > 1e-3


def test_options_and_a_plain_loop_in_float64():
    x, y = DATA[0].double(), DATA[1]
    together = many(lambda seed: tanh(seed).double(), (x, y), optimizer="SGD", learning_rate=0.3, epochs=2)
    for i, seed in enumerate(SEEDS):
        model = tanh(seed).double()
        for epoch in range(2):
            rows = np.random.default_rng([seed, epoch, 0]).permutation(23)
            for start in range(0, 23, 5):
                part = torch.from_numpy(rows[start : start + 5])
                gradients = torch.autograd.grad(F.cross_entropy(model(x[part]), y[part]), list(model.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter -= 0.3 * gradient
        torch.testing.assert_close(together.thetas[i], vector(model), rtol=1e-10, atol=1e-12)
        value = F.cross_entropy(model(x), y).item()
        assert together.history["loss"][i, -1] == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("family", ["tanh", "maxout"])
def test_a_shared_order_is_that_of_the_first_seed(family):
    make = builder(*FAMILIES[family][:2])
    shared, own = many(make, batch_order="shared"), many(make)
    runs = [train(make(seed), DATA, seed=SEEDS[0], **SETTINGS) for seed in SEEDS]
    assert_same(shared, runs)
    assert (shared.thetas - own.thetas).norm(dim=1)[0] < 1e-5 < 1e-3 < (shared.thetas - own.thetas).norm(dim=1)[1]
    assert (shared.settings["batch order"], own.settings["batch order"]) == ("shared", "own")
    assert "all in the order of seed 3" in shared.plan


@pytest.mark.parametrize("family", ["tanh", "maxout"])
def test_groups_do_not_matter(family):
    make = builder(*FAMILIES[family][:2])
    whole, seeds = many(make, seeds=range(5)), list(range(5))
    for size in (1, 2, 5, 99):
        parts = many(make, seeds=seeds, group=size)
        torch.testing.assert_close(parts.thetas, whole.thetas, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-6)
        assert parts.settings["group"] == min(size, 5)


def explosive(seed):
    """Networks of which that of seed 1 diverges."""
    model = build("mlp", seed=seed, **SMALL, widths=(5, 5), activation="relu")
    if seed == 1:
        with torch.no_grad():
            model[1].weight *= 1e12
            model[3].weight *= 1e12
    return model


@pytest.mark.parametrize("make", [explosive, lambda seed: nn.Sequential(nn.Sequential(*explosive(seed)))])
@pytest.mark.parametrize("optimizer", ["gd", "momentum"])
def test_a_network_that_diverges_stops_alone(make, optimizer, caplog, tmp_path):
    settings = {"optimizer": optimizer, "learning_rate": 0.1, "epochs": 4}
    together = many(make, record={1: tmp_path / "t.h5"}, **settings)
    run = alone(make, seeds=[1], folder=tmp_path / "alone", **settings)[0]
    assert together.diverged.tolist() == [False, True, False]
    n = len(run.history["loss"])
    assert n < 5
    assert together.steps.tolist() == [20, run.history["step"][-1], 20]
    np.testing.assert_allclose(together.history["loss"][1, :n], run.history["loss"], rtol=1e-5)
    assert np.isnan(together.history["loss"][1, n:]).all()
    torch.testing.assert_close(together.thetas[1], vector(run.model), rtol=1e-5, atol=1e-6, equal_nan=True)
    assert "1 of 3 networks stopped early" in caplog.text
    calm = many(lambda seed: make(seed if seed != 1 else 2), **settings)
    for i in (0, 2):
        assert torch.equal(together.thetas[i], calm.thetas[i])
        np.testing.assert_array_equal(together.history["loss"][i], calm.history["loss"][i])
    assert_same_trajectory(tmp_path / "t.h5", tmp_path / "alone" / "trajectory.h5")


def test_a_network_without_a_finite_loss_is_not_trained():
    def make(seed):
        model = tanh(seed)
        if seed == 1:
            with torch.no_grad():
                model[-1].weight *= 1e38
                model[-1].bias += 3e38
        return model

    together = many(make)
    assert together.steps.tolist() == [15, 0, 15]
    assert alone(make, seeds=[1])[0].history["step"].tolist() == [0]
    assert torch.equal(together.thetas[1], vector(make(1)))
    assert torch.isfinite(together.thetas).all()


def test_all_networks_may_diverge():
    together = many(explosive, seeds=[1, 1], optimizer="gd")
    assert together.diverged.all()
    assert (together.steps < 15).all()


def assert_same_trajectory(one, two):
    one, two = Trajectory.load(one), Trajectory.load(two)
    np.testing.assert_array_equal(one.step, two.step)
    np.testing.assert_allclose(one.columns(0, one.p), two.columns(0, two.p), rtol=1e-5, atol=1e-6)
    assert list(one.metrics) == list(two.metrics)
    for name, values in one.metrics.items():
        np.testing.assert_allclose(values, two.metrics[name], rtol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"optimizer": "lbfgs", "batch_size": None}])
@pytest.mark.parametrize(("unit", "every"), [("epoch", 1), ("epoch", 2), ("step", 1), ("step", 2)])
def test_chosen_trajectories_are_those_of_train(tmp_path, unit, every, kind):
    settings = {"record_unit": unit, "record_every": every, "test": TEST, **kind}
    together = many(record={0: tmp_path / "0.h5", 2: tmp_path / "2.h5"}, group=2, **settings)
    for i in (0, 2):
        alone(seeds=[SEEDS[i]], folder=tmp_path / f"{i}", **settings)
        assert_same_trajectory(tmp_path / f"{i}.h5", tmp_path / f"{i}" / "trajectory.h5")
        trajectory = Trajectory.load(tmp_path / f"{i}.h5")
        assert torch.equal(trajectory.theta(-1), together.thetas[i])
        assert trajectory.info["training"]["seed"] == SEEDS[i]
    assert not (tmp_path / "1.h5").exists()


def dropout(seed):
    return build("mlp", seed=seed, **SMALL, widths=(5,), dropout=0.3)


class Swapping(nn.Module):
    """Puts another tensor in the place of a buffer in training, and changes one in place at every call."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        y = self.linear(x.flatten(1))
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * y.mean(0).detach()
        return y - self.mean


class Unseen(nn.Module):
    """Draws random numbers that vmap does not see."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x):
        scale = float(np.random.default_rng(int(torch.initial_seed() % 2**32)).random()) if self.training else 1.0
        return self.linear(x.flatten(1)) * scale


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.other = nn.Linear(64, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (tanh, {"optimizer": "lbfgs", "batch_size": None}, "LBFGS does not treat every parameter by itself"),
        (dropout, {}, "random"),
        (lambda seed: Unused(), {"optimizer": "adamw", "weight_decay": 0.1}, "does not depend on other.weight"),
        (lambda seed: Unseen(), {}, "of network 0 is another than alone"),
    ],
)
def test_what_cannot_be_batched_is_trained_one_after_another(make, settings, reason, caplog):
    def seeded(seed):
        torch.manual_seed(seed)
        return make(seed)

    together = many(seeded, **settings)
    assert engine_of(together) == "one after another"
    assert reason in together.plan
    assert reason in caplog.text
    assert_same(together, alone(seeded, **settings), rtol=0)
    shared = many(seeded, batch_order="shared", **settings)
    assert torch.equal(shared.thetas[0], together.thetas[0])


def test_convolutions_with_much_work_are_trained_one_after_another(monkeypatch):
    make = builder("lenet", {})
    assert engine_of(many(make, epochs=1)) == "vmap"
    monkeypatch.setattr(group, "_CONVOLUTION_WORK", 1.5e5)  # 5 samples: 64 * 6 * 25 and 16 * 16 * 150 products
    assert engine_of(many(make, epochs=1, batch_size=4)) == "vmap"
    assert "one after another (convolutions with 2.9e+05 multiplications" in many(make, epochs=1, batch_size=12).plan


def test_a_buffer_that_is_put_in_place_of_another():
    def make(seed):
        torch.manual_seed(seed)
        return Swapping()

    together = many(make)
    assert engine_of(together) == "vmap"
    assert_same(together, alone(make))


def test_wrong_gradients_are_found_out(monkeypatch):
    real = Stack.differentiate

    def wrong(self, batch, own):
        losses = real(self, batch, own)
        self.flat.grad[-1] += 1
        return losses

    monkeypatch.setattr(Stack, "differentiate", wrong)
    together = many()
    assert "no batched products: the gradient of network 1 is another than alone" in together.plan
    assert_same(together, alone())


def test_frozen_parameters_differ_between_networks_and_stay():
    def make(seed):
        model = tanh(seed)
        model[1].requires_grad_(False)
        return model

    together = many(make, weight_decay=0.1)
    assert engine_of(together) == "batched products"
    assert_same(together, alone(make, weight_decay=0.1))
    assert torch.equal(together.network(1)[1].weight, make(SEEDS[1])[1].weight)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(reduction="sum")])
def test_losses_and_metrics_of_the_user(loss):
    settings = {"loss": loss, "reduction": loss.reduction, "learning_rate": 0.01}
    settings["metrics"] = {"margin": lambda output, target: output.gather(1, target[:, None]).squeeze(1)}
    together = many(test=TEST, **settings)
    assert list(together.history) == ["loss", "margin", "test_loss", "test_margin"]
    assert engine_of(together) == "batched products"
    assert_same(together, alone(test=TEST, **settings))


def test_dictionaries_and_a_forward_of_the_user():
    data = {"x": DATA[0], "labels": DATA[1]}
    settings = {
        "forward": lambda model, batch: model(batch["x"]),
        "loss": lambda output, batch: F.cross_entropy(output, batch["labels"]),
    }
    together = many(data=data, **settings)
    assert engine_of(together) == "vmap"
    assert_same(together, alone(data=data, **settings))


def test_samples_of_different_shapes():
    batches = [class_data(n, (size, 4), 3) for n, size in ((3, 2), (4, 3), (2, 5))]

    def make(seed):
        return Mean(seed)

    settings = {"batch_size": None}
    own = many(make, batches, **settings)
    assert 'only batch_order="shared"' in own.plan
    assert_same(own, alone(make, batches, **settings))
    shared = many(make, batches, batch_order="shared", **settings)
    assert engine_of(shared) == "vmap"
    torch.testing.assert_close(shared.thetas[0], own.thetas[0], rtol=1e-5, atol=1e-6)


class Mean(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x.mean(1))


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_evaluating_less_often_changes_nothing_else(optimizer):
    settings = {"optimizer": optimizer, "batch_size": None if optimizer == "lbfgs" else 5, "epochs": 5}
    often, seldom = many(**settings), many(evaluate_every=2, **settings)
    assert often.epochs.tolist() == [0, 1, 2, 3, 4, 5]
    assert seldom.epochs.tolist() == [0, 2, 4, 5]
    assert torch.equal(often.thetas, seldom.thetas)
    np.testing.assert_array_equal(often.history["loss"][:, seldom.epochs], seldom.history["loss"])


def test_networks_given_stay_as_they_are_and_the_trained_ones_come_back():
    models = [tanh(seed) for seed in SEEDS]
    models[0](DATA[0]).sum().backward()
    before = copy.deepcopy(models)
    gradients = [parameter.grad.clone() for parameter in models[0].parameters()]
    state = torch.get_rng_state()
    together = many(models, seeds=None)
    assert torch.equal(torch.get_rng_state(), state)
    runs = [train(model, DATA, seed=i, **SETTINGS) for i, model in enumerate(models)]
    assert_same(together, runs)
    for model, old in zip(models, before, strict=True):
        assert torch.equal(vector(model), vector(old))
        assert model.training
    assert all(torch.equal(p.grad, g) for p, g in zip(models[0].parameters(), gradients, strict=True))
    assert len(together) == 3
    for i in range(3):
        assert torch.equal(vector(together.network(i)), together.thetas[i])
        assert not together.network(i).training
    assert torch.equal(many(lambda seed: tanh(seed)).thetas, many(lambda seed: tanh(seed)).thetas)


def test_a_builder_without_a_seed_of_its_own_gives_other_networks():
    def make(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    state = torch.get_rng_state()
    one = many(make)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    two = many(make)
    assert torch.equal(one.thetas, two.thetas)
    assert (one.thetas[0] - one.thetas[1]).norm() > 0.1


def test_the_batches_are_those_of_each_order():
    orders = [Order(collect(DATA), 5, seed) for seed in SEEDS]
    several = group.batches_of(orders)
    single = [order.batches(0) for order in orders]
    for _ in range(12):
        (x, y), own = next(several)
        assert own
        for i, (one, target) in enumerate(next(batches) for batches in single):
            assert torch.equal(x[i], one)
            assert torch.equal(y[i], target)


def test_the_whole_data_are_one_batch_for_all():
    batches = group.batches_of([Order(collect(DATA), None, seed) for seed in SEEDS])
    for _ in range(3):
        (x, _), own = next(batches)
        assert torch.equal(x, DATA[0])
        assert not own


@pytest.mark.parametrize(
    ("layers", "matches"),
    [
        ([nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(inplace=True), nn.Dropout(0), nn.Linear(3, 2)], True),
        ([nn.Flatten(2), nn.Linear(4, 3)], False),
        ([nn.Linear(4, 3), nn.Dropout(0.1)], False),
        ([nn.Linear(4, 3), nn.Softmax(1)], False),
        ([nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))], False),
    ],
)
def test_which_sequences_become_products(layers, matches):
    network = nn.Sequential(*layers)
    chain = chain_of(network, {name: tensor.detach()[None] for name, tensor in network.named_parameters()})
    assert (chain is not None) == matches
    if chain is not None:
        x = torch.randn(7, 2, 2)
        torch.testing.assert_close(chain(x[None])[0], network(x))


def test_large_networks_come_in_small_groups(monkeypatch):
    monkeypatch.setattr(group, "_GROUP_NUMBERS", {"cpu": 5000})
    p, outputs = many().thetas.shape[1], 64 + 2 * 5 + 2 * 4 + 3
    assert many().settings["group"] == min(3, 5000 // (5 * p + 5 * outputs)) == 2
    monkeypatch.setattr(group, "_GROUP_NUMBERS", {"cpu": 1})
    assert many().settings["group"] == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_order": "mine"}, ValueError, "batch_order must be 'own' or 'shared', got 'mine'"),
        ({"seeds": []}, ValueError, "at least one network"),
        ({"seeds": [-1]}, ValueError, "a seed must be a whole number"),
        ({"group": 0}, ValueError, "group must be a whole number, 1 or more"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every must be"),
        ({"record": {3: "x.h5"}}, ValueError, r"record has networks \[3\], but there are only 0 to 2"),
        ({"record_unit": "hour"}, ValueError, "record_unit must be 'epoch' or 'step'"),
        ({"make": [tanh(0)]}, ValueError, "there are 1 networks, but 3 seeds"),
        ({"make": tanh(0)}, TypeError, "several networks, got one"),
        ({"make": lambda seed: 3}, TypeError, "expected networks .* got int"),
        ({"make": lambda seed: dropout(seed) if seed == 7 else tanh(seed)}, ValueError, "networks 0 and 2 are not of"),
        ({"make": lambda seed: tanh(seed).requires_grad_(False)}, ValueError, "nothing to train"),
    ],
)
def test_mistakes_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        many(**settings)


def test_the_settings_say_what_was_done(capsys):
    together = many(optimizer="momentum", test=TEST)
    assert together.settings["seeds"] == SEEDS
    assert together.settings["optimizer"] == "SGD"
    assert together.settings["optimizer arguments"] == {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}
    assert together.plan == "3 networks, 3 at a time, each in its own order of the samples: batched products"
    assert math.isfinite(together.seconds)
    assert capsys.readouterr().err == ""
    many(progress=True)
    assert "45/45" in capsys.readouterr().err

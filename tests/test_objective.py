import copy
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from problems import TwoParameters, asymmetric, asymmetric_loss, class_data, one_sample, randomize
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from landscape.losses import accuracy, cross_entropy, cross_entropy_slope, describe_callable
from landscape.models import build
from landscape.objective import Objective


def network(seed=0):
    return randomize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), seed)


def normed(seed=0):
    return randomize(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), seed)


DATA = class_data(50, (4,), 3)


def test_the_loss_of_a_module_of_two_parameters_is_the_formula():
    objective = Objective(TwoParameters(), one_sample(), loss=asymmetric_loss)
    for a, b in [(0.3, -0.2), (2.0, 1.0), (-1.5, 3.0)]:
        value = objective.evaluate(torch.tensor([a, b], dtype=torch.float64))["loss"]
        assert value == pytest.approx(asymmetric(a, b), rel=1e-14)


def test_loss_and_accuracy_agree_with_a_plain_call_on_training_and_test_data():
    model, test = network(), class_data(31, (4,), 3, seed=1)
    values = Objective(model, DATA, test=test, dtype=torch.float64).evaluate_model()
    for prefix, (x, y) in {"": DATA, "test_": test}.items():
        output = copy.deepcopy(model).double()(x.double())
        assert values[prefix + "loss"] == pytest.approx(F.cross_entropy(output, y).item(), rel=1e-12)
        assert values[prefix + "accuracy"] == pytest.approx((output.argmax(1) == y).double().mean().item())


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 64])
def test_the_chunk_size_does_not_matter(chunk_size):
    objective = Objective(network(), DATA, dtype=torch.float64, chunk_size=chunk_size)
    whole = F.cross_entropy(network().double()(DATA[0].double()), DATA[1]).item()
    assert objective.evaluate(objective.origin)["loss"] == pytest.approx(whole, rel=1e-12)


def test_float32_losses_keep_their_digits_where_they_are_small():
    torch.manual_seed(0)
    target = torch.randint(10, (4000,))
    logits = torch.randn(4000, 10) + 18 * F.one_hot(target, 10)
    exact = F.cross_entropy(logits.double(), target).item()
    assert cross_entropy(logits, target).double().mean().item() == pytest.approx(exact, rel=2e-7)


@pytest.mark.parametrize("shape", [(7, 4), (3, 7, 4)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_slope_of_the_cross_entropy_is_that_of_autograd(shape, scale):
    torch.manual_seed(0)
    logits = (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    target = torch.randint(shape[-1], shape[:-1])
    expected = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    losses, slope = cross_entropy_slope(logits.detach(), target)
    torch.testing.assert_close(losses.flatten(), expected.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), logits)[0], rtol=1e-12, atol=1e-13)
    small, of_small = cross_entropy_slope(logits.detach().float(), target)
    assert (small.dtype, of_small.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(of_small.double(), slope, rtol=1e-4, atol=1e-6 * scale)


def test_accuracy_counts_ties_as_correct_and_nan_as_wrong():
    output = torch.tensor([[1.0, 1.0], [0.0, 1.0], [float("nan"), 1.0]])
    assert accuracy(output, torch.tensor([0, 0, 0])).tolist() == [1, 0, 0]


def test_gradient_agrees_with_backward_on_all_data():
    model = network().double()
    objective = Objective(model, DATA, dtype=torch.float64, chunk_size=7)
    F.cross_entropy(model(DATA[0].double()), DATA[1]).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(objective.gradient(objective.origin), expected, rtol=1e-12, atol=1e-14)


def test_the_users_model_and_the_random_state_are_untouched():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    model[0].bias.requires_grad_(False)
    F.cross_entropy(model(DATA[0]), DATA[1]).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    for policy in ("frozen", "batch", "recalibrated"):
        objective = Objective(model, DATA, batch_norm=policy)
        objective.evaluate(objective.origin + 1)
        objective.gradient(objective.origin)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert model[2].training
    assert not model[0].bias.requires_grad
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])


def test_dropout_is_off():
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    objective = Objective(model, DATA)
    assert objective.evaluate(objective.origin) == objective.evaluate(objective.origin)


class TestBatchNormPolicies:
    def reference(self, model, x, y):
        return F.cross_entropy(model(x), y).item()

    def moved(self, model, delta):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter += delta
        return other

    def test_frozen_uses_the_origins_statistics(self):
        model = normed().eval()
        model[1].running_mean.fill_(0.7)
        objective = Objective(model, DATA)
        expected = self.reference(self.moved(model, 0.1), *DATA)
        assert objective.evaluate(objective.origin + 0.1)["loss"] == pytest.approx(expected, rel=1e-6)

    def test_batch_uses_the_statistics_of_each_batch_as_given(self):
        model, (x, y) = normed(), DATA
        loader = DataLoader(TensorDataset(x, y), batch_size=20)
        objective = Objective(model, loader, batch_norm="batch")
        moved = self.moved(model, 0.1).train()
        expected = sum(self.reference(moved, x[i : i + 20], y[i : i + 20]) * len(x[i : i + 20]) for i in (0, 20, 40))
        assert objective.evaluate(objective.origin + 0.1)["loss"] == pytest.approx(expected / 50, rel=1e-6)

    def test_recalibrated_estimates_them_at_each_point(self):
        model, (x, y) = normed(), DATA
        loader = DataLoader(TensorDataset(x, y), batch_size=25)
        objective = Objective(model, loader, batch_norm="recalibrated")
        moved = self.moved(model, 0.1)
        moved[1].reset_running_stats()
        moved[1].momentum = None
        with torch.no_grad():
            for part in (x[:25], x[25:]):
                moved.train()(part)
        expected = self.reference(moved.eval(), x, y)
        assert objective.evaluate(objective.origin + 0.1)["loss"] == pytest.approx(expected, rel=1e-6)
        assert objective.evaluate(objective.origin + 0.1)["loss"] == pytest.approx(expected, rel=1e-6)  # no memory

    def test_the_policies_differ(self):
        values = set()
        for policy in ("frozen", "batch", "recalibrated"):
            objective = Objective(normed(), DATA, batch_norm=policy)
            values.add(round(objective.evaluate(objective.origin)["loss"], 4))
        assert len(values) >= 2

    def test_only_batch_norm_is_recalibrated(self):
        model = nn.Sequential(nn.Conv1d(1, 6, 2), nn.InstanceNorm1d(6, track_running_stats=True), nn.Flatten())
        model.append(nn.Linear(18, 3))
        model[1].running_mean.fill_(0.5)
        x, y = DATA
        objective = Objective(model, (x[:, None], y), batch_norm="recalibrated")
        expected = self.reference(model.eval(), x[:, None], y)
        assert objective.evaluate(objective.origin)["loss"] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("policy", ["batch", "recalibrated"])
    def test_no_single_sample_is_left_over(self, policy):
        objective = Objective(normed(), class_data(257, (4,), 3), test=class_data(256, (4,), 3), batch_norm=policy)
        assert np.isfinite(objective.evaluate(objective.origin)["test_loss"])

    def test_batch_norm_without_running_statistics_keeps_the_batches_given(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3))
        objective = Objective(model, DATA, chunk_size=7)
        expected = self.reference(model, *DATA)
        assert objective.evaluate(objective.origin)["loss"] == pytest.approx(expected, rel=1e-6)

    def test_an_unknown_policy_is_refused(self):
        with pytest.raises(ValueError, match="must be one of frozen, interpolated, recalibrated, batch"):
            Objective(normed(), DATA, batch_norm="free")


class TestAnyData:
    def test_dictionaries_as_batches_with_a_loss_of_the_model(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = network()

            def forward(self, features, labels):
                logits = self.net(features)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        x, y = DATA
        batches = [{"features": x[i : i + 20], "labels": y[i : i + 20]} for i in (0, 20, 40)]
        objective = Objective(Own(), batches, metrics={"entropy": lambda o, b: o["logits"].softmax(1).amax(1)})
        values = objective.evaluate(objective.origin)
        assert values["loss"] == pytest.approx(F.cross_entropy(network()(x), y).item(), rel=1e-6)
        assert values["entropy"] == pytest.approx(network()(x).softmax(1).amax(1).mean().item(), rel=1e-6)

    def test_regression_with_a_torch_loss(self):
        x = torch.linspace(-1, 1, 30)[:, None]
        objective = Objective(nn.Linear(1, 1), (x, x**2), loss=nn.MSELoss())
        assert objective.metric_names == ["loss"]

    def test_a_language_model_with_padded_sequences_of_different_lengths(self):
        model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11))
        batches = [(torch.randint(11, (3, n)), torch.randint(11, (3, n))) for n in (5, 7)]

        def loss(output, target):
            return F.cross_entropy(output.flatten(0, 1), target.flatten())

        objective = Objective(model, batches, loss=loss)
        expected = sum(loss(model(x), y).item() for x, y in batches) / 2
        assert objective.evaluate(objective.origin)["loss"] == pytest.approx(expected, rel=1e-6)
        assert "differ in shape" in objective.notes[0]

    def test_a_forward_of_the_users(self):
        objective = Objective(
            network(), [{"image": DATA[0], "label": DATA[1]}],
            forward=lambda model, batch: model(batch["image"]),
            loss=lambda output, batch: F.cross_entropy(output, batch["label"]),
        )  # fmt: skip
        expected = F.cross_entropy(network()(DATA[0]), DATA[1]).item()
        assert objective.evaluate(objective.origin)["loss"] == pytest.approx(expected, rel=1e-6)

    def test_only_the_trainable_parameters_of_a_fine_tuned_model(self):
        model = network()
        model[0].requires_grad_(False)
        objective = Objective(model, DATA, select="trainable")
        assert objective.layout.names == ("2.weight", "2.bias")
        model[2].weight.data.zero_()
        model[2].bias.data.zero_()
        zero = torch.zeros(objective.layout.p)
        assert objective.evaluate(zero)["loss"] == pytest.approx(np.log(3), rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
    def test_class_indices_of_any_integer_type(self, dtype):
        values = Objective(network(), (DATA[0], DATA[1].to(dtype))).evaluate_model()
        assert values == Objective(network(), DATA).evaluate_model()

    def test_a_target_that_is_no_class(self):
        x, y = DATA
        y = y.clone()
        y[20:25] = -100
        with pytest.raises(ValueError, match=r"a target is -100, .* 0 to 2.*pass loss=function"):
            Objective(network(), (x, y))
        objective = Objective(network(), (x, y), loss=F.cross_entropy)
        expected = F.cross_entropy(network()(x), y).item()
        assert objective.evaluate(objective.origin) == {"loss": pytest.approx(expected, rel=1e-6)}
        assert "no accuracy" in objective.notes[0]

    def test_one_logit_has_no_accuracy_of_classes(self):
        def loss(output, target):
            return F.binary_cross_entropy_with_logits(output[:, 0], target.double())

        assert Objective(nn.Linear(4, 1).double(), (DATA[0].double(), DATA[1] % 2), loss=loss).metric_names == ["loss"]

    def test_complex_buffers_stay_complex_in_another_precision(self):
        class Rotated(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = network()
                self.register_buffer("phase", torch.tensor(0.6 + 0.8j))

            def forward(self, x):
                return (self.net(x) * self.phase).imag

        values = [Objective(Rotated(), DATA, dtype=dtype).evaluate_model()["loss"] for dtype in (None, torch.float64)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)

    def test_a_shuffling_loader_is_refused(self):
        with pytest.raises(ValueError, match="shuffle"):
            Objective(network(), DataLoader(TensorDataset(*DATA), batch_size=10, shuffle=True))

    def test_tied_weights_move_together(self):
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        x = torch.arange(5)
        objective = Objective(model, (x, x))
        theta = objective.origin + 0.3
        moved = objective.layout.unflatten(theta)["0.weight"]
        expected = F.cross_entropy(moved @ moved.T, x).item()
        assert objective.evaluate(theta)["loss"] == pytest.approx(expected, rel=1e-6)


class TestAnyLoss:
    def test_a_sum_is_found_out(self):
        def summed(output, target):
            return F.cross_entropy(output, target, reduction="sum")

        with pytest.raises(ValueError, match="reduction='sum'"):
            Objective(network(), DATA, loss=summed)
        with pytest.raises(ValueError, match="reduction='sum'"):
            Objective(network(), DATA, loss=summed, chunk_size=7)
        values = Objective(network(), DATA, loss=summed, reduction="sum", chunk_size=7).evaluate_model()
        assert values["loss"] == pytest.approx(summed(network()(DATA[0]), DATA[1]).item(), rel=1e-5)

    def test_a_mean_announced_as_a_sum_is_found_out(self):
        with pytest.raises(ValueError, match="reduction='mean'"):
            Objective(network(), DATA, loss=F.cross_entropy, reduction="sum")

    def test_a_loss_that_depends_on_the_batch_keeps_the_batches_given(self):
        def spread(output, target):
            return output.std()

        x, y = DATA
        objective = Objective(network(), [(x[:30], y[:30]), (x[30:], y[30:])], loss=spread)
        model = network()
        expected = 0.6 * model(x[:30]).std().item() + 0.4 * model(x[30:]).std().item()
        assert objective.evaluate(objective.origin)["loss"] == pytest.approx(expected, rel=1e-6)
        assert "not a mean over its samples" in objective.notes[0]

    def test_randomness_in_the_forward_pass_is_refused(self):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = network()

            def forward(self, x):
                return self.net(x + 0.1 * torch.randn_like(x))

        with pytest.raises(ValueError, match="randomness"):
            Objective(Noisy(), DATA)

    def test_a_metric_that_depends_on_the_batch_keeps_the_batches_given(self):
        objective = Objective(network(), DATA, metrics={"top": lambda o, t: o.max().item()}, chunk_size=7)
        assert objective.evaluate(objective.origin)["top"] == pytest.approx(network()(DATA[0]).max().item())
        assert "the top of a batch is not a mean" in objective.notes[0]

    def test_a_plain_call_uses_the_same_batches_where_the_loss_depends_on_them(self):
        objective = Objective(network(), class_data(600, (4,), 3), loss=lambda o, t: o.std())
        values = objective.evaluate(objective.origin)
        assert values["loss"] == pytest.approx(objective.evaluate_model()["loss"], rel=1e-6)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (None, "loss is NoneType; expected a number or one value per sample"),
            ((torch.tensor(1.0), torch.tensor(2.0)), r"loss is \(tensor"),
            (torch.zeros(3), r"loss has shape \(3,\) for 50 samples"),
        ],
    )
    def test_what_is_no_loss_is_said(self, value, message):
        with pytest.raises((TypeError, ValueError), match=message):
            Objective(network(), DATA, loss=lambda output, target: value)

    def test_a_name_used_twice_is_refused(self):
        with pytest.raises(ValueError, match="test_loss would be used twice"):
            Objective(network(), DATA, test=DATA, metrics={"test_loss": F.cross_entropy})

    def test_nan_and_infinity_are_results(self):
        objective = Objective(TwoParameters(), one_sample(), loss=lambda o, t: o[:, 0].log())
        assert np.isnan(objective.evaluate(torch.tensor([-1.0, 0.0], dtype=torch.float64))["loss"])
        assert objective.evaluate(torch.tensor([0.0, 0.0], dtype=torch.float64))["loss"] == -np.inf

    def test_no_default_for_a_regression(self):
        x = torch.zeros(5, 1)
        with pytest.raises(TypeError, match="pass loss=function"):
            Objective(nn.Linear(1, 1), (x, x))

    def test_a_model_that_does_not_fit_the_data_is_said(self):
        with pytest.raises(ValueError, match=r"cannot be called on a batch.*tensor \(2, 5\).*forward=function"):
            Objective(network(), class_data(10, (5,), 3))


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet", "vgg", "recurrent", "transformer"])
def test_every_family_agrees_with_a_plain_call_in_float64(name):
    shape = (1, 8, 8)
    arguments = {"depth": 8} if name == "resnet" else {}
    model = build(name, input_shape=shape, classes=4, seed=0, **arguments)
    x, y = class_data(24, shape, 4)
    objective = Objective(model, (x, y), chunk_size=10)
    theta = objective.origin + 0.01
    wide = copy.deepcopy(model).double().eval()
    nn.utils.vector_to_parameters(theta.double(), wide.parameters())
    expected = F.cross_entropy(wide(x.double()), y).item()
    assert objective.evaluate(theta)["loss"] == pytest.approx(expected, rel=1e-6)


def test_functions_are_told_apart_by_code_and_arguments_alike_in_every_process():
    def described(seed):
        code = (
            "from functools import partial; from landscape.losses import describe_callable as d\n"
            "def loss(o, t): return sum(x for x in o if x in {1, 'a', 'b', None}) + (lambda z: z + 1)(t)\n"
            "print(d(loss), d(partial(loss, 1)))"
        )
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        return shown.stdout

    assert described(1) == described(2)
    assert describe_callable(lambda o, t: o + 1) != describe_callable(lambda o, t: o + 2)
    assert describe_callable(partial(max, 1)) != describe_callable(partial(max, 2))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"forward": lambda model, batch: model(batch[0]) * 1.5}, "forward"),
        ({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "loss and metrics"),
        ({"chunk_size": 25, "batch_norm": "batch"}, "batches"),
        ({"running_mean": 1.0}, "fixed parameters and buffers"),
        ({"bias": 1.0}, "fixed parameters and buffers"),
    ],
)
def test_the_fingerprint_knows_what_the_values_depend_on(change, part):
    def fingerprint(running_mean=0.0, bias=0.0, **options):
        model = normed()
        model[1].running_mean.fill_(running_mean)
        model[3].bias.data.fill_(bias)
        options = {"loss": nn.CrossEntropyLoss(), "select": "0.*", **options}
        return Objective(model, DATA, **options).fingerprint()

    plain = fingerprint(**({"chunk_size": 10, "batch_norm": "batch"} if part == "batches" else {}))
    other = fingerprint(**change)
    assert [name for name in plain if plain[name] != other[name]] == [part]
    assert fingerprint(chunk_size=10) == fingerprint(chunk_size=25)


def test_a_description_holds_no_address():
    assert " at 0x" not in describe_callable(partial(F.cross_entropy, weight=lambda x: x, ignore_index=object()))

"""The rewrites of convolutional networks: each way to write one, against the plain call in float64."""

import sys

import numpy as np
import pytest
import torch
from problems import class_data
from torch import nn
from torch.nn import functional as F

from landscape.directions import random_directions
from landscape.evaluation import layered, layers, stage
from landscape.evaluation.graph import trace
from landscape.evaluation.layered import Layered
from landscape.evaluation.reference import reference_values
from landscape.models import build
from landscape.objective import Objective

COLOR = class_data(23, (3, 8, 10), 4)
GRAY = class_data(23, (1, 12, 12), 4)
POINTS = np.random.default_rng(0).uniform(-1, 1, (5, 2))
ONEDNN = layers.can_fuse(torch.device("cpu"), torch.float32)


class Block(nn.Module):
    """A residual network of one block, its sum written in the way asked for."""

    def __init__(self, way, norm=True, width=6):
        super().__init__()
        self.way = way
        self.stem, self.conv1 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 6, 3, padding=1, bias=not norm)
        self.conv2, self.conv3 = nn.Conv2d(6, 6, 3, padding=1, bias=not norm), nn.Conv2d(6, 6, 1)
        make = nn.BatchNorm2d if norm else nn.Identity
        self.norm0, self.norm1, self.norm2 = make(width), make(6), make(6)
        self.shortcut = nn.Sequential() if width == 6 else nn.Sequential(nn.Conv2d(width, 6, 1), make(6))
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 4)
        self.places = nn.Parameter(torch.randn(1, 6, 8, 10))

    def forward(self, x):
        x = self.relu(self.norm0(self.stem(x)))
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out = getattr(self, self.way)(out, x)
        return self.head(out.mean((2, 3)))

    def in_place(self, out, x):
        out += self.shortcut(x)
        return self.relu(out)

    def functions(self, out, x):
        return F.relu(torch.add(self.shortcut(x), out))

    def methods(self, out, x):
        return self.shortcut(x).add(out).relu()

    def slices(self, out, x):  # option A of He et al., where it does nothing
        return F.relu(out + F.pad(x[:, :, ::1, ::1], (0, 0, 0, 0, 0, 0)))

    def padded_and_changed(self, out, x):
        y = F.pad(x, (0, 0))
        y.mul_(out)
        return torch.relu(y + x)

    def no_relu(self, out, x):
        return out + x

    def own_input(self, out, x):
        return torch.relu(self.conv3(out) + out)

    def both_convolutions(self, out, x):
        return torch.relu(out + self.conv3(x))

    def used_afterwards(self, out, x):
        return torch.relu(out + x) * x.sigmoid()

    def seen_afterwards_by_a_convolution(self, out, x):
        late = self.conv3(x)  # fused with the second sum, after the first one
        return torch.relu(late + torch.relu(out + x))

    def view_used_afterwards(self, out, x):
        rows = x.flatten(1)
        out = torch.relu(out + x)
        return out * rows.view(-1, 6, 8, 10)

    def broadcast(self, out, x):
        return torch.relu(out + self.places)

    def broadcast_gate(self, out, x):
        return torch.relu(self.conv3(out) + out.mean((2, 3), keepdim=True))

    def twice(self, out, x):
        y = self.conv3(out)
        return torch.relu(y + y)

    def scaled(self, out, x):
        return torch.relu(torch.add(out, x, alpha=0.5))


WAYS = [name for name in vars(Block) if not name.startswith("_") and name != "forward"]


def pooled(*parts):
    front = nn.Sequential(nn.Conv2d(1, 6, 5), *parts, nn.Flatten())
    return nn.Sequential(front, nn.Linear(front(GRAY[0]).shape[1], 9), nn.Tanh(), nn.Linear(9, 4))


def grouped(groups, stride=1):
    return nn.Sequential(nn.Conv2d(6, 6, 3, stride, 1, groups=groups), nn.BatchNorm2d(6), nn.ReLU(inplace=True))


CASES = {
    **{way: (Block(way), COLOR) for way in WAYS},
    **{f"{way}, no norm": (Block(way, norm=False), COLOR) for way in ("in_place", "slices")},
    **{f"{way}, wider": (Block(way, width=8), COLOR) for way in ("in_place", "functions", "methods")},
    "lenet, average": (build("lenet", input_shape=(1, 12, 12), classes=4, seed=0, pool="average"), GRAY),
    "lenet, relu": (build("lenet", input_shape=(1, 12, 12), classes=4, seed=0, activation="relu"), GRAY),
    "vgg, no norm": (build("vgg", input_shape=(3, 8, 10), classes=4, seed=0, width=2, norm="none"), COLOR),
    "vgg": (build("vgg", input_shape=(3, 8, 10), classes=4, seed=0, width=2), COLOR),
    "norm of a linear layer": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)
        ),
        COLOR,
    ),
    "norm over places": (
        nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Flatten(2), nn.Linear(80, 5), nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(30, 4)
        ),
        COLOR,
    ),
    "norm before pooling": (pooled(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)), GRAY),
    "pooling before norm": (pooled(nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU()), GRAY),
    "gelu": (pooled(nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(6, 7, 3), nn.GELU()), GRAY),
    "tanh": (pooled(nn.Tanh(), nn.Conv2d(6, 7, 3), nn.Tanh(), nn.MaxPool2d(2)), GRAY),
    "window of 3": (pooled(nn.ReLU(), nn.MaxPool2d(3)), GRAY),
    "depthwise": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), grouped(6), nn.Flatten(), nn.Linear(288, 4)), COLOR),
    "grouped, strided": (
        nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), grouped(3, 2), nn.Flatten(), nn.Linear(24, 4)),
        COLOR,
    ),
    "nothing but a convolution": (nn.Sequential(nn.Conv2d(3, 4, (8, 10)), nn.Flatten()), COLOR),
    "relu after relu": (pooled(nn.ReLU(), nn.ReLU(inplace=True), nn.MaxPool2d(2)), GRAY),
}  # fmt: skip


def randomized(model):
    """No number is special: statistics and scales of the norms too."""
    torch.manual_seed(1)
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.5) if "weight" in name else nn.init.uniform_(tensor, -0.3, 0.3)
    for tensor in model.buffers():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def prepared(name, dtype=torch.float32, memory=1 << 30, chunk=10):
    model, data = CASES[name]
    objective = Objective(randomized(model), data, dtype=dtype, chunk_size=chunk)
    plane = random_directions(objective, biases=True)
    return objective, plane, Layered(objective, plane, trace(objective.model), memory)


@pytest.fixture(autouse=True)
def kernel_of_small_networks(monkeypatch):
    monkeypatch.setattr(layered, "_WORTH_COMPILING", 0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_way_to_write_a_network_has_the_values_of_the_plain_call(name, channels_last):
    exact, plane, wide = prepared(name, torch.float64)
    expected = reference_values(exact, plane, 10)(POINTS)
    assert np.ptp(expected["loss"]) > 1e-4
    wide.channels_last = channels_last
    np.testing.assert_allclose(wide.values(POINTS)["loss"], expected["loss"], rtol=1e-11)
    _, _, narrow = prepared(name)
    narrow.channels_last = channels_last
    for _ in range(2):  # the second time from what is kept
        found = narrow.values(POINTS)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=3e-6)
        np.testing.assert_allclose(found["accuracy"], expected["accuracy"], atol=1e-12)


@pytest.mark.parametrize("name", ["lenet, relu", "vgg, no norm", "window of 3", "nothing but a convolution"])
def test_without_compiled_code_values_are_the_same(name, monkeypatch):
    _, _, plan = prepared(name)
    monkeypatch.setattr(layered, "_WORTH_COMPILING", 1 << 40)
    _, _, plain = prepared(name)
    assert plain.settings()["kernel"] is None
    np.testing.assert_allclose(plain.values(POINTS)["loss"], plan.values(POINTS)["loss"], rtol=3e-6)


@pytest.mark.parametrize("name", ["in_place", "lenet, relu", "vgg, no norm", "tanh"])
def test_a_point_has_the_same_digits_alone_and_in_company(name):
    for channels_last in (False, True):
        _, _, plan = prepared(name)
        plan.channels_last = channels_last
        together = plan.values(POINTS)
        for i in range(len(POINTS)):
            assert plan.values(POINTS[i : i + 1])["loss"][0] == together["loss"][i]


@pytest.mark.skipif(not ONEDNN, reason="this torch has no fused convolutions of oneDNN")
class TestFusion:
    @pytest.mark.parametrize(
        ("way", "n_sums", "n_into"),
        [
            ("in_place", 1, 1), ("functions", 1, 1), ("methods", 1, 1), ("slices", 1, 1), ("no_relu", 1, 1),
            ("own_input", 1, 0), ("both_convolutions", 1, 1), ("used_afterwards", 1, 0),
            ("seen_afterwards_by_a_convolution", 2, 1), ("view_used_afterwards", 1, 0), ("padded_and_changed", 0, 0),
            ("broadcast", 0, 0), ("broadcast_gate", 0, 0), ("twice", 0, 0), ("scaled", 0, 0),
        ],
    )  # fmt: skip
    def test_sums_are_merged_and_use_memory_again_where_nobody_needs_it(self, way, n_sums, n_into):
        _, _, plan = prepared(way)
        nodes = [n for n in plan.traced.graph.nodes if isinstance(n.target, layers.Layer)]
        assert sum(len(node.args) == 2 for node in nodes) == n_sums
        assert sum(node.target.into_other for node in nodes) == n_into

    def test_a_fused_convolution_keeps_nan_and_infinity(self, monkeypatch):
        model, data = nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(1),
            nn.Linear(16 * 6 * 8, 4),
        ), COLOR  # fmt: skip
        objective = Objective(randomized(model), data, chunk_size=10)
        plane = random_directions(objective, normalization="none")
        plan = Layered(objective, plane, trace(objective.model), 1 << 30)
        points = np.array([[0.0, 0.0], [1e12, 0.0], [1e22, 1e22], [-3e37, 1e37]])
        reference = reference_values(objective, plane, 10)(points)["loss"]
        assert np.isfinite(reference[0])
        assert not np.isfinite(reference).all()
        np.testing.assert_array_equal(np.isnan(plan.values(points)["loss"]), np.isnan(reference))
        np.testing.assert_array_equal(np.isinf(plan.values(points)["loss"]), np.isinf(reference))

    def test_nan_parameters(self):
        model, data = CASES["in_place"]
        objective = Objective(randomized(model), data, chunk_size=10)
        plane = random_directions(objective)
        objective.layout.unflatten(plane.origin)["conv1.weight"][0, 0, 0, 0] = torch.nan
        plan = Layered(objective, plane, trace(objective.model), 1 << 30)
        assert np.isnan(plan.values(POINTS)["loss"]).all()


def test_a_linear_layer_takes_in_the_norm_after_it_only_if_its_features_are_normalized():
    for name, folded in (("norm of a linear layer", True), ("norm over places", False)):
        assert ("1 batch norm(s) folded" in " ".join(prepared(name)[2].notes)) == folded


class TestSettings:
    def test_a_plan_made_again_has_the_same_digits(self):
        objective, plane, plan = prepared("lenet, relu")
        plan.tune()
        settings = plan.settings()
        assert settings["kernel"] == ("numba" if stage.available() else None)
        again = Layered(objective, plane, trace(objective.model), 1 << 30)
        again.restore(settings)
        np.testing.assert_array_equal(again.values(POINTS)["loss"], plan.values(POINTS)["loss"])
        assert again.settings() == settings

    def test_the_kernel_is_used(self, monkeypatch):
        pytest.importorskip("numba", reason="the extra `fast` is not installed")
        used = []
        for name in ("add_up", "pool"):
            own = getattr(stage, name)
            monkeypatch.setattr(stage, name, lambda *a, own=own, name=name: used.append((name, a[-1])) or own(*a))
        prepared("lenet, relu")[2].values(POINTS)
        assert set(used) == {("add_up", True), ("pool", True)}
        used.clear()
        monkeypatch.setattr(layered, "_WORTH_COMPILING", 1 << 40)
        prepared("lenet, relu")[2].values(POINTS)
        assert set(used) == {("add_up", False)}

    def test_without_numba_a_plan_that_needs_it_says_so(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "numba", None)
        _, _, plan = prepared("lenet, relu")
        assert plan.settings()["kernel"] is None
        assert "pip install landscape[fast]" in " ".join(plan.notes)
        with pytest.raises(ValueError, match="begun with compiled code"):
            plan.restore({**plan.settings(), "kernel": "numba"})

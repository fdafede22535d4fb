"""The compiled kernel: its functions against float64, networks against the reference, the same digits always."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import class_data, randomize
from torch import nn
from torch.nn import functional as F

from landscape.directions import random_directions
from landscape.evaluation import make_plan
from landscape.evaluation import narrow as narrow_module
from landscape.evaluation.dense import Dense
from landscape.evaluation.graph import trace
from landscape.evaluation.reference import reference_values
from landscape.models import build
from landscape.objective import Objective

numba = pytest.importorskip("numba", reason="the kernel is compiled by numba: pip install landscape[fast]")
from landscape.evaluation import kernel  # noqa: E402, the import compiles it

POINTS = np.random.default_rng(0).uniform(-1, 1, (5, 2))
ROWS = class_data(37, (12,), 4)
EDGES = np.array([np.nan, np.inf, -np.inf, 0.0, 1e-30, -1e-30], dtype=np.float32)
ACTIVATIONS = {
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "elu": nn.ELU(0.7),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "identity": nn.Identity(),
}


def with_kernel(objective, slice):
    """A dense plan that uses the kernel, whether that pays or not."""
    dense = Dense(objective, slice, trace(objective.model), 1 << 30)
    dense.restore({"chunk_size": kernel.TILE, "group": 32, "kernel": "numba"})
    return dense


def truth(objective, model, data, slice, points):
    """The reference in float64, at the same points as float32 coordinates lead to."""
    wide = Objective(model, data, dtype=torch.float64, reduction=objective.reduction, chunk_size=1000)
    wide_slice = type(slice)(slice.origin.double(), slice.directions.double(), slice.info, slice.extent)
    return reference_values(wide, wide_slice, 1000)(np.float32(points).astype(np.float64))


def applied(function, x):
    @numba.njit(error_model="numpy")
    def each(x):
        y = np.empty_like(x)
        for i in range(len(x)):
            y[i] = function(x[i])
        return y

    return each(x)


FUNCTIONS = {  # name: ends, exact, units in the last place
    "tanh": (-12, 12, np.tanh, 6),
    "exp": (-87, 88, np.exp, 2),
    "log1p": (0, 1000, np.log1p, 2),
    "erf": (-6, 6, scipy.special.erf, 6),
    "expm1_of_negative": (-30, 0, np.expm1, 8),
}


class TestFunctions:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_right_to_a_few_units_in_the_last_place(self, name):
        low, high, exact, units = FUNCTIONS[name]
        near = np.geomspace(1e-30, max(abs(low), high), 100_000)
        x = np.concatenate([np.linspace(low, high, 400_001), near, -near]).astype(np.float32)
        x = x[(x >= low) & (x <= high)]
        wanted = exact(x.astype(np.float64))
        error = np.abs(applied(getattr(kernel, name), x) - wanted) / np.spacing(np.abs(wanted).astype(np.float32))
        assert error.max() <= units, (x[error.argmax()], error.max())

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_nan_stays_nan_and_infinities_have_their_limits(self, name):
        x = np.array([np.nan, np.inf, -np.inf], dtype=np.float32)
        found = applied(getattr(kernel, name), x)
        assert np.isnan(found[0])
        if name in ("tanh", "exp", "erf"):
            np.testing.assert_allclose(found[1:], FUNCTIONS[name][2](x[1:]), rtol=2e-7)
        if name == "expm1_of_negative":
            assert found[2] == pytest.approx(-1, abs=2e-7)

    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_activations_as_torch_has_them(self, name):
        x = np.concatenate([EDGES, np.linspace(-20, 20, 2 * kernel.TILE - len(EDGES))]).astype(np.float32)
        h = x.reshape(2, kernel.TILE).copy()
        parameter = {"leaky_relu": 0.2, "elu": 0.7}.get(name, 0)
        kernel._activate(h, 2, getattr(kernel, name.upper()), np.float32(parameter))
        wanted = ACTIVATIONS[name](torch.tensor(x, dtype=torch.float64)).numpy()
        np.testing.assert_allclose(h.ravel(), wanted, rtol=1e-6, atol=6e-7)


@settings(max_examples=40)
@given(
    widths=st.lists(st.integers(1, 21), max_size=4),
    names=st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=5, max_size=5),
    classes=st.integers(2, 6),
    n=st.sampled_from([1, 2, 255, 256, 257, 600]),
    k=st.integers(1, 3),
)
def test_any_chain_agrees_with_float64(widths, names, biases, classes, n, k):
    sizes = [5, *widths, classes]
    layers = []
    for (n_in, n_out), bias, name in zip(pairwise(sizes), biases, [*names, "identity"], strict=False):
        layers += [nn.Linear(n_in, n_out, bias=bias), ACTIVATIONS[name], nn.Dropout(0.3)]
    model = randomize(nn.Sequential(*layers[:-2])).eval()
    data = class_data(n, (5,), classes)
    objective = Objective(model, data, test=class_data(7, (5,), classes, seed=1), chunk_size=1000)
    slice = random_directions(objective, k, biases=True)
    points = np.random.default_rng(1).uniform(-1, 1, (3, k))
    found = with_kernel(objective, slice).values(points)
    wanted = truth(objective, model, data, slice, points)
    # a logit of 20 is known to 2e-6 in float32, and a small loss is a difference of such numbers
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=5e-6, atol=3e-6)
    if biases[len(widths)]:  # without, logits may all be next to 0: ties in float32 only
        np.testing.assert_allclose(found["accuracy"], wanted["accuracy"], atol=1e-12)
    assert found.keys() == set(objective.metric_names)
    alone = reference_values(objective, slice, 1000)(points)
    np.testing.assert_allclose(found["test_loss"], alone["test_loss"], rtol=1e-5)


class Written(nn.Module):
    """Sizes taken in `forward`, activations as functions and as methods."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(12, 9), nn.Linear(9, 8), nn.Linear(8, 7), nn.Linear(7, 4)

    def forward(self, x):
        h = F.leaky_relu(self.a(x.view(x.size(0), -1)), negative_slope=0.3)
        h = F.elu(F.linear(h, self.b.weight, self.b.bias), 0.5)
        return self.d(F.dropout(self.c(h).tanh(), training=False))


class Residual(Written):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.d(torch.tanh(self.c(torch.tanh(self.b(h + torch.sin(h))))))


class TestWhatIsServed:
    def layers(self, model, data=ROWS, **options):
        objective = Objective(model.eval(), data, **options)
        return narrow_module.layers_of(objective, trace(objective.model))

    def test_functions_methods_and_sizes(self):
        found = self.layers(Written())
        assert [(activation, parameter) for _, activation, parameter in found] == [
            ("leaky_relu", 0.3),
            ("elu", 0.5),
            ("tanh", 0.0),
            ("identity", 0.0),
        ]
        objective = Objective(randomize(Written()), ROWS)
        plane = random_directions(objective)
        wanted = truth(objective, objective.model, ROWS, plane, POINTS)
        np.testing.assert_allclose(with_kernel(objective, plane).values(POINTS)["loss"], wanted["loss"], rtol=2e-6)

    @pytest.mark.parametrize(
        "model",
        [
            Residual(),
            nn.Sequential(nn.Linear(12, 9), nn.Softplus(), nn.Linear(9, 4)),
            nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Sigmoid(), nn.Linear(9, 4)),
            nn.Sequential(nn.Tanh(), nn.Linear(12, 4)),
            nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)),
            nn.Sequential(nn.Linear(12, narrow_module.WIDEST + 1), nn.Linear(narrow_module.WIDEST + 1, 4)),
            build("mlp", input_shape=(12,), classes=4, seed=0, activation="maxout"),
        ],
    )
    def test_everything_else_is_left_to_the_products(self, model):
        assert self.layers(model) is None

    def test_so_are_other_precisions_and_losses(self):
        model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))
        assert self.layers(model) is not None
        assert self.layers(model, dtype=torch.float64) is None
        objective = Objective(model, ROWS, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
        assert Dense(objective, random_directions(objective), trace(model), 1 << 30)._make_kernel() is None

    def test_sums_and_torchs_own_cross_entropy(self):
        model = randomize(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)))
        objective = Objective(model, ROWS, loss=lambda o, t: F.cross_entropy(o, t, reduction="sum"), reduction="sum")
        assert Dense(objective, random_directions(objective), trace(model), 1 << 30)._make_kernel() is None
        objective = Objective(model, ROWS, loss=F.cross_entropy, metrics={})
        plane = random_directions(objective)
        found = with_kernel(objective, plane).values(POINTS)
        assert list(found) == ["loss"]
        np.testing.assert_allclose(found["loss"], reference_values(objective, plane, 37)(POINTS)["loss"], rtol=1e-6)

    def test_only_some_parameters_move(self):
        model = randomize(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)))
        for select in ("0.weight", "0.bias", "2.*"):
            objective = Objective(model, ROWS, select=select)
            plane = random_directions(objective, normalization="none")
            found, wanted = (
                values(POINTS)["loss"]
                for values in (with_kernel(objective, plane).values, reference_values(objective, plane, 37))
            )
            np.testing.assert_allclose(found, wanted, rtol=2e-6)


class TestUnusualValues:
    def values(self, model, data=ROWS, points=POINTS):
        objective = Objective(model, data)
        plane = random_directions(objective, biases=True)
        return with_kernel(objective, plane).values(points), reference_values(objective, plane, 37)(points)

    @pytest.mark.parametrize("stray", [torch.nan, torch.inf, -torch.inf, 3e38])
    @pytest.mark.parametrize("place", ["0.weight", "0.bias", "2.weight", "2.bias"])
    def test_parameters_that_overflow_give_what_the_reference_gives(self, stray, place):
        objective = Objective(randomize(nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))), ROWS)
        plane = random_directions(objective)
        origin = plane.origin.clone()
        objective.layout.unflatten(origin)[place].view(-1)[1] = stray
        plane = replace(plane, origin=origin)
        found, wanted = with_kernel(objective, plane).values(POINTS), reference_values(objective, plane, 37)(POINTS)
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)

    def test_one_sample_that_is_nan(self):
        x, y = ROWS
        stray = x.index_fill(0, torch.tensor(3), torch.nan)
        found, wanted = self.values(
            randomize(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))),
            (stray, y),
        )
        assert np.isnan(found["loss"]).all()
        np.testing.assert_array_equal(found["accuracy"], wanted["accuracy"])

    def test_ties_count_as_right(self):
        model = nn.Linear(12, 4)
        nn.init.zeros_(model.weight), nn.init.constant_(model.bias, 0.5)
        found, _ = self.values(model, points=np.zeros((1, 2)))
        assert found["accuracy"] == 1
        assert found["loss"] == pytest.approx(np.log(4), rel=1e-7)

    def test_a_small_loss_keeps_its_digits(self):
        model = nn.Linear(2, 3)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[30.0, 0], [0, 30], [0, 0]])), model.bias.zero_()
        x = torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1]])
        data = (x, torch.tensor([0, 1, 0]))
        objective = Objective(model, data)
        plane = random_directions(objective)
        found = with_kernel(objective, plane).values(np.zeros((1, 2)))["loss"]
        assert 0 < found < 1e-9
        np.testing.assert_allclose(found, truth(objective, model, data, plane, np.zeros((1, 2)))["loss"], rtol=2e-5)


class TestDigits:
    @pytest.fixture
    def dense(self):
        data = class_data(3000, (12,), 4)
        model = randomize(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 9), nn.SiLU(), nn.Linear(9, 4)))
        objective = Objective(model, data, chunk_size=1000)
        return with_kernel(objective, random_directions(objective, biases=True))

    def test_they_do_not_depend_on_the_number_of_points_or_threads(self, dense):
        points = np.random.default_rng(0).uniform(-1, 1, (33, 2))
        wanted = dense.values(points)
        before = torch.get_num_threads()
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                for cut in (1, 7, 33):
                    parts = [dense.values(points[i : i + cut]) for i in range(0, 33, cut)]
                    for name in wanted:
                        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), wanted[name])
        finally:
            torch.set_num_threads(before)


class TestPlan:
    @pytest.fixture
    def asked(self):
        objective = Objective(build("mlp", input_shape=(1, 8, 8), classes=4, seed=0), class_data(600, (1, 8, 8), 4))
        return objective, random_directions(objective)

    def test_it_is_used_where_it_pays_and_made_again(self, asked, monkeypatch):
        monkeypatch.setattr("landscape.evaluation.dense._KERNEL_PAYS", 0.0)
        monkeypatch.setattr(Dense, "_time_one", lambda self, group, batch: 1e3)
        plan = make_plan(*asked)
        assert plan.settings["kernel"] == "numba"
        assert "a kernel compiled by numba" in plan.describe()
        again = make_plan(*asked, stored=plan.stored())
        assert again.settings == plan.settings
        np.testing.assert_array_equal(again.values(POINTS)["loss"], plan.values(POINTS)["loss"])
        monkeypatch.setattr(Dense, "_time_one", lambda self, group, batch: 0.0)
        assert make_plan(*asked).settings["kernel"] is None  # slower

    def test_not_for_a_surface_that_is_quickly_done(self, asked, monkeypatch):
        monkeypatch.setattr(Dense, "_make_kernel", None)
        plan = make_plan(*asked)
        assert plan.name == "dense"
        assert plan.settings["kernel"] is None

    def test_not_beyond_the_memory_allowed(self, asked):
        objective, plane = asked
        assert Dense(objective, plane, trace(objective.model), 1000)._make_kernel() is None

    def test_without_numba_the_plan_says_what_would_help(self, asked, monkeypatch):
        stored = with_kernel(*asked).settings()
        monkeypatch.setattr("landscape.evaluation.dense._KERNEL_PAYS", 0.0)
        monkeypatch.delattr("landscape.evaluation.kernel")
        monkeypatch.setitem(sys.modules, "landscape.evaluation.kernel", None)
        plan = make_plan(*asked)
        assert plan.settings["kernel"] is None
        assert "pip install landscape[fast]" in plan.describe()
        objective, plane = asked
        with pytest.raises(ValueError, match=r"cannot be imported here .*pip install landscape\[fast\]"):
            Dense(objective, plane, trace(objective.model), 1 << 30).restore(stored)

    def test_a_stored_plan_without_a_kernel_stays_without(self, asked):
        plan = make_plan(*asked, stored={"name": "dense", "chunk_size": 100, "group": 8})
        assert plan.settings == {"chunk_size": 100, "group": 8, "kernel": None}


def test_it_is_compiled_where_no_folder_can_be_written(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    twice = kernel._compile("f4(f4)")(lambda x: x + x)
    assert twice(1.5) == 3
    assert twice.stats.cache_path is None

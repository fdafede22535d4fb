"""The fast plans: what they match, and that they never differ from the reference."""

import numpy as np
import pytest
import torch
from problems import class_data, randomize
from torch import nn
from torch.nn import functional as F

from landscape.directions import random_directions
from landscape.evaluation import evaluate, make_plan
from landscape.evaluation import plan as plan_module
from landscape.evaluation.dense import Dense
from landscape.evaluation.layers import MaxPool, Point
from landscape.models import build
from landscape.objective import Objective
from landscape.surface import Surface, SurfaceStore

IMAGES = class_data(37, (1, 8, 8), 4)
COLOR = class_data(37, (3, 9, 11), 4)
ROWS = class_data(37, (12,), 4)
POINTS = np.random.default_rng(0).uniform(-1, 1, (5, 2))


class Residual(nn.Module):
    """A dense network with a skip connection, layer norm, and sizes taken in `forward`."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(64, 9), nn.Linear(9, 9), nn.Linear(9, 4)
        self.norm = nn.LayerNorm(9)

    def forward(self, x):
        h = F.gelu(self.first(x.view(x.size(0), -1)))
        return self.last(self.norm(h + torch.sin(self.middle(h))))


class Functional(nn.Module):
    """A convolutional network written with functions, in-place additions and a module called twice."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.twice = nn.Conv2d(5, 5, 1)
        self.head = nn.Linear(5 * 4 * 4, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        out = self.norm(self.conv2(x))
        out += x
        out = torch.relu(out)
        out = F.relu(self.twice(self.twice(out)) + out)
        return self.head(torch.flatten(out, 1))


class Sliced(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.scale = nn.Linear(5, 4), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.net(x[:, 2:7]) * self.scale


def dense(*layers):
    return nn.Sequential(nn.Linear(12, 9), *layers, nn.Linear(9, 4))


def convolutional(*layers, channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )


def made(name, input_shape=(1, 8, 8), **arguments):
    return build(name, input_shape=input_shape, classes=4, seed=0, **arguments)


CASES = {
    "tanh": ("dense", made("mlp"), IMAGES),
    "relu with dropout": ("dense", made("mlp", (12,), activation="relu", dropout=0.3), ROWS),
    "gelu": ("dense", made("mlp", (12,), activation="gelu"), ROWS),
    "sigmoid": ("dense", made("mlp", (12,), activation="sigmoid"), ROWS),
    "maxout": ("dense", made("mlp", (12,), activation="maxout"), ROWS),
    "step": ("dense", made("mlp", (12,), activation="step"), ROWS),
    "softmax regression": ("dense", nn.Linear(12, 4), ROWS),
    "no biases": ("dense", nn.Sequential(nn.Linear(12, 5, bias=False), nn.ELU(), nn.Linear(5, 4, bias=False)), ROWS),
    "batch norm of features": ("dense", dense(nn.BatchNorm1d(9), nn.SiLU()), ROWS),
    "layer norm without parameters": ("dense", dense(nn.LayerNorm(9, elementwise_affine=False)), ROWS),
    "residual": ("dense", Residual(), IMAGES),
    "few inputs": ("dense", nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 4)), class_data(37, (2,), 4)),
    "element-wise before flattening": ("dense", nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(64, 4)), IMAGES),
    "linear on rows": ("layered", nn.Sequential(nn.Linear(8, 3), nn.Flatten(), nn.Linear(24, 4)), IMAGES),
    "sliced": ("layered", Sliced(), ROWS),
    "lenet": ("layered", made("lenet"), IMAGES),
    "lenet, average": ("layered", made("lenet", pool="average"), IMAGES),
    "resnet": ("layered", made("resnet", depth=8), IMAGES),
    "resnet, no norm": ("layered", made("resnet", depth=8, norm="none"), IMAGES),
    "resnet, no skip": ("layered", made("resnet", depth=8, skip=False), IMAGES),
    "vgg": ("layered", made("vgg", depth=9, width=4), IMAGES),
    "functional": ("layered", Functional(), IMAGES),
    "odd sizes": ("layered", convolutional(nn.Tanh(), nn.MaxPool2d(2), nn.MaxPool2d(3)), COLOR),
    "overlapping pool": ("layered", convolutional(nn.ReLU(), nn.MaxPool2d(3, 2, 1)), COLOR),
    "strided, dilated, grouped": (
        "layered",
        convolutional(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, 2, 2, 2, groups=3), nn.BatchNorm2d(6, affine=False)),
        COLOR,
    ),
    "norm before convolution": ("layered", convolutional(nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)), COLOR),
    "transposed": ("layered", convolutional(nn.ConvTranspose2d(6, 6, 2), nn.PReLU()), COLOR),
    "padded by reflection": ("layered", convolutional(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")), COLOR),
    "padding same": ("layered", convolutional(nn.Conv2d(6, 6, 3, padding="same"), nn.ReLU()), COLOR),
    "recurrent": ("reference", made("recurrent"), IMAGES),
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


@pytest.mark.parametrize("name", CASES)
def test_the_plan_that_matches_agrees_with_the_reference_in_float64(name):
    expected, model, data = CASES[name]
    objective = Objective(randomized(model), data, test=tuple(part[:13] for part in data), dtype=torch.float64)
    plane = random_directions(objective, biases=True)
    plan = make_plan(objective, plane)
    reference = make_plan(objective, plane, engine="reference")
    assert plan.name == expected, plan.describe()
    found, wanted = plan.values(POINTS), reference.values(POINTS)
    assert found.keys() == wanted.keys() == set(objective.metric_names)
    for metric in wanted:
        np.testing.assert_allclose(found[metric], wanted[metric], rtol=1e-11, err_msg=plan.describe())
    assert np.ptp(wanted["loss"]) > 1e-3


@pytest.mark.parametrize("name", ["tanh", "residual", "lenet", "resnet", "functional", "vgg"])
def test_float32_agrees_with_float64(name):
    _, model, data = CASES[name]
    narrow, wide = (Objective(randomized(model), data, dtype=dtype) for dtype in (torch.float32, torch.float64))
    plane, wide_plane = random_directions(narrow, biases=True), random_directions(wide, biases=True)
    plan = make_plan(narrow, plane)
    assert plan.name != "reference"
    expected = make_plan(wide, wide_plane, engine="reference").values(POINTS)
    np.testing.assert_allclose(plan.values(POINTS)["loss"], expected["loss"], rtol=2e-6)


def test_the_notes_say_what_was_matched():
    def notes(name):
        _, model, data = CASES[name]
        objective = Objective(randomized(model), data)
        return make_plan(objective, random_directions(objective)).describe()

    assert "first layer affine" in notes("tanh")
    assert "first layer affine" not in notes("few inputs")
    assert "2 max-pooling(s) as maxima of views, 2 of them before the activation" in notes("lenet")
    assert "7 batch norm(s) folded" in notes("resnet")
    assert "not dense: it has Conv2d" in notes("resnet")
    if torch.backends.mkldnn.is_available():
        assert "4 convolution(s) fused with ReLU, 3 with addition and ReLU" in notes("resnet")
    assert "checked against the reference at 4 points" in notes("lenet")


class TestWhatIsLeftToTheReference:
    def reason(self, model, data=ROWS, **options):
        objective = Objective(model, data, **options)
        plan = make_plan(objective, random_directions(objective))
        assert plan.name == "reference"
        return plan.describe()

    def test_a_forward_pass_that_depends_on_values(self):
        class Branching(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(12, 4)

            def forward(self, x):
                return self.net(x) if x.sum() > 0 else self.net(-x)

        assert "cannot be traced" in self.reason(Branching())

    def test_hooks(self):
        model = dense(nn.Tanh())
        model[0].register_forward_hook(lambda module, inputs, output: output * 2)
        assert "hooks" in self.reason(model)

    def test_other_batch_norm_policies(self):
        model = randomized(convolutional(nn.BatchNorm2d(6)))
        assert "statistics are batch" in self.reason(model, COLOR, batch_norm="batch")

    def test_batches_that_are_dictionaries(self):
        data = [{"x": ROWS[0], "y": ROWS[1]}]
        reason = self.reason(
            nn.Linear(12, 4), data, forward=lambda m, b: m(b["x"]), loss=lambda o, b: F.cross_entropy(o, b["y"])
        )
        assert "not called on one tensor" in reason

    def test_a_plan_that_differs(self, monkeypatch):
        monkeypatch.setattr(Dense, "_normalize", lambda self, node, h, parameters: h)
        assert "differs from the reference by" in self.reason(dense(nn.LayerNorm(9), nn.Tanh()))

    def test_whoever_asks_for_it(self):
        objective = Objective(nn.Linear(12, 4), ROWS)
        assert make_plan(objective, random_directions(objective), engine="reference").name == "reference"
        with pytest.raises(ValueError, match="engine must be one of auto, reference"):
            make_plan(objective, random_directions(objective), engine="fast")


class TestAnyLossAndSelection:
    @pytest.mark.parametrize("name", ["relu with dropout", "lenet"])
    def test_a_loss_and_metrics_of_the_users(self, name):
        _, model, data = CASES[name]

        def margin(output, target):
            return F.multi_margin_loss(output, target, reduction="none")

        objective = Objective(
            model, data, loss=margin, metrics={"size": lambda o, t: o.square().mean()}, dtype=torch.float64
        )
        plane = random_directions(objective)
        plan = make_plan(objective, plane)
        assert plan.name != "reference"
        expected = make_plan(objective, plane, engine="reference").values(POINTS)
        for metric in ("loss", "size"):
            np.testing.assert_allclose(plan.values(POINTS)[metric], expected[metric], rtol=1e-11)

    def test_torchs_own_cross_entropy_and_sums(self):
        for loss, reduction in [
            (nn.CrossEntropyLoss(), "mean"),
            (nn.CrossEntropyLoss(label_smoothing=0.1), "mean"),
            (lambda o, t: F.cross_entropy(o, t, reduction="sum"), "sum"),
        ]:
            objective = Objective(dense(nn.Tanh()), ROWS, loss=loss, reduction=reduction, dtype=torch.float64)
            plane = random_directions(objective)
            plan, reference = (make_plan(objective, plane, engine=engine) for engine in ("auto", "reference"))
            assert plan.name == "dense"
            np.testing.assert_allclose(plan.values(POINTS)["loss"], reference.values(POINTS)["loss"], rtol=1e-11)

    @pytest.mark.parametrize("select", ["0.weight", "3.*", "*.bias", ["1.weight", "3.weight"]])
    def test_only_some_parameters_move(self, select):
        folded = convolutional(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))
        for model, data in ((dense(nn.BatchNorm1d(9), nn.Tanh()), ROWS), (folded, COLOR)):
            objective = Objective(randomized(model), data, select=select, dtype=torch.float64)
            plane = random_directions(objective, normalization="none")
            plan, reference = (make_plan(objective, plane, engine=engine) for engine in ("auto", "reference"))
            assert plan.name != "reference"
            np.testing.assert_allclose(plan.values(POINTS)["loss"], reference.values(POINTS)["loss"], rtol=1e-11)

    def test_lines_and_volumes(self):
        for k in (1, 3):
            objective = Objective(randomize(dense(nn.Tanh())), ROWS, dtype=torch.float64)
            slice = random_directions(objective, k)
            points = np.random.default_rng(1).uniform(-1, 1, (4, k))
            plan, reference = (make_plan(objective, slice, engine=engine) for engine in ("auto", "reference"))
            assert plan.name == "dense"
            np.testing.assert_allclose(plan.values(points)["loss"], reference.values(points)["loss"], rtol=1e-11)


@pytest.mark.parametrize(("name", "refusal"), [("tanh", "not kept"), ("lenet", "made anew for each group")])
def test_nothing_is_kept_beyond_the_memory_allowed(name, refusal):
    _, model, data = CASES[name]
    objective = Objective(model, data, dtype=torch.float64, chunk_size=10)
    plane = random_directions(objective)
    small, large = (make_plan(objective, plane, memory=memory) for memory in (100, 1 << 30))
    assert refusal in small.describe()
    assert refusal not in large.describe()
    for _ in range(2):  # the second time from what is kept
        np.testing.assert_array_equal(small.values(POINTS)["loss"], large.values(POINTS)["loss"])


def test_max_pooling_as_maxima_of_views():
    x = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = torch.nan
    for size in (2, 3):
        torch.testing.assert_close(
            MaxPool(size)(Point([], {}), x), F.max_pool2d(x, size), equal_nan=True, rtol=0, atol=0
        )


class TestInASurface:
    def objective(self):
        return Objective(build("mlp", input_shape=(1, 8, 8), classes=4, seed=0), IMAGES)

    def test_interrupted_in_the_middle_of_a_group_it_ends_with_the_same_digits(self, tmp_path, monkeypatch):
        objective = self.objective()
        plane = random_directions(objective)
        whole = evaluate(objective, plane, resolution=(9, 7), path=tmp_path / "whole.h5", progress=False)
        plan = whole.provenance["plan"]
        assert plan["name"] == "dense"
        monkeypatch.setattr(
            plan_module.Dense, "tune", lambda self, *_: vars(self).update(group=plan["group"], chunk=plan["chunk_size"])
        )
        calls = 0
        record = plan_module.Dense.values

        def interrupted(self, coordinates):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return record(self, coordinates)

        monkeypatch.setattr(plan_module.Dense, "values", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(objective, plane, resolution=(9, 7), path=tmp_path / "a.h5", progress=False)
        assert 0 < Surface.load(tmp_path / "a.h5").done.sum() < 63
        monkeypatch.setattr(plan_module.Dense, "values", record)
        monkeypatch.setattr(plan_module.Dense, "tune", None)  # the stored plan is made again, not tuned
        again = evaluate(objective, plane, resolution=(9, 7), path=tmp_path / "a.h5", progress=False)
        assert again.provenance["plan"]["group"] == plan["group"]
        for metric in whole.values:
            np.testing.assert_array_equal(again.values[metric], whole.values[metric])

    def test_a_plan_that_goes_wrong_later_is_noticed_and_all_is_done_anew(self, monkeypatch, caplog):
        objective = self.objective()
        plane = random_directions(objective)
        right = evaluate(objective, plane, resolution=(9, 7), progress=False, engine="reference")
        record, calls = plan_module.Dense.values, 0

        def wrong_later(self, coordinates):
            nonlocal calls
            calls += 1
            values = record(self, coordinates)
            return {name: array * (1 + 1e-3 * (calls > 1)) for name, array in values.items()}

        monkeypatch.setattr(plan_module.Dense, "values", wrong_later)
        surface = evaluate(objective, plane, resolution=(9, 7), progress=False)
        assert "doing it all anew" in caplog.text
        assert surface.provenance["plan"]["name"] == "reference"
        np.testing.assert_allclose(surface.values["loss"], right.values["loss"], rtol=1e-12)

    @pytest.mark.parametrize("written", [False, True])
    def test_a_kill_as_a_plan_has_gone_wrong_leaves_none_of_its_values(self, tmp_path, monkeypatch, written):
        objective, path = self.objective(), tmp_path / "a.h5"
        plane = random_directions(objective)
        right = evaluate(objective, plane, resolution=(9, 7), progress=False, engine="reference")
        record, calls = plan_module.Dense.values, []

        def wrong_later(self, coordinates):
            calls.append(len(coordinates))
            return {name: array * (1 + 1e-3 * (len(calls) > 1)) for name, array in record(self, coordinates).items()}

        def kill(store):
            if written:
                store.surface._write(store.path, store.fingerprint)
            raise KeyboardInterrupt

        monkeypatch.setattr(plan_module.Dense, "values", wrong_later)
        monkeypatch.setattr(SurfaceStore, "save", kill)
        monkeypatch.setattr(SurfaceStore, "finish", SurfaceStore.close)
        with pytest.raises(KeyboardInterrupt):
            evaluate(objective, plane, resolution=(9, 7), path=path, interval=0, progress=False)
        assert not Surface.load(path).done.any()
        monkeypatch.undo()
        again = evaluate(objective, plane, resolution=(9, 7), path=path, progress=False)
        np.testing.assert_allclose(again.values["loss"], right.values["loss"], rtol=1e-6)

    def test_the_layout_of_images_is_kept_too(self, tmp_path, monkeypatch):
        _, model, data = CASES["lenet"]
        objective = Objective(model, data)
        plane = random_directions(objective)
        for layout in (True, False):
            path = tmp_path / f"{layout}.h5"
            monkeypatch.setattr(
                plan_module.Layered, "tune", lambda self, *_, own=layout: vars(self).update(channels_last=own)
            )
            evaluate(objective, plane, resolution=2, path=path, progress=False)
            stored = Surface.load(path).provenance["plan"]
            assert stored["channels_last"] == layout
            assert make_plan(objective, plane, stored=stored).settings["channels_last"] == layout

    def test_points_of_earlier_sessions_are_done_anew_too(self, tmp_path, monkeypatch):
        objective = self.objective()
        plane = random_directions(objective)
        path = tmp_path / "a.h5"
        evaluate(objective, plane, resolution=(9, 7), path=path, progress=False)
        surface = Surface.load(path, vectors=True)
        surface.values["loss"] += 1  # what a plan gone wrong left behind
        surface.done.reshape(-1)[-40:] = False
        fingerprint = {**objective.fingerprint()}
        surface._write(path, fingerprint)
        monkeypatch.setattr("landscape.evaluation.run.fingerprint_of", lambda *arguments: fingerprint)
        monkeypatch.setattr("landscape.evaluation.run.RTOL", -1.0)  # every check fails
        again = evaluate(objective, plane, resolution=(9, 7), path=path, progress=False)
        right = evaluate(objective, plane, resolution=(9, 7), progress=False, engine="reference")
        np.testing.assert_allclose(again.values["loss"], right.values["loss"], rtol=1e-12)
        assert Surface.load(path).provenance["plan"]["name"] == "reference"

    def test_another_engine_for_the_rest_is_said_in_the_file(self, tmp_path):
        objective = self.objective()
        plane = random_directions(objective)
        path = tmp_path / "a.h5"
        evaluate(objective, plane, resolution=3, path=path, progress=False)
        evaluate(objective, plane, resolution=3, path=path, progress=False, engine="reference")
        plan = Surface.load(path).provenance["plan"]
        assert plan["name"] == "reference"
        assert plan["notes"][-1] == "begun with the dense plan"


@pytest.mark.parametrize(("name", "plan"), [("mlp", "dense"), ("lenet", "layered"), ("recurrent", "reference")])
def test_a_weight_penalty_is_part_of_the_loss_of_every_plan(name, plan):
    model = randomize(build(name, input_shape=[1, 8, 8], classes=4, seed=0))
    with_penalty, without = (Objective(model, IMAGES, penalty=penalty) for penalty in (0.3, 0.0))
    plane = random_directions(with_penalty, biases=True)
    chosen = make_plan(with_penalty, plane)
    assert chosen.name == plan
    found, bare = chosen.values(POINTS), make_plan(without, plane, engine="reference").values(POINTS)
    penalties = [0.15 * plane.at(point).double().square().sum().item() for point in POINTS]
    np.testing.assert_allclose(found["loss"], bare["loss"] + penalties, rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], bare["accuracy"], atol=1e-12)

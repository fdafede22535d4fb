"""Whatever is passed: a right result, or an error that says what came. Nothing of the caller's is changed.

Each table names a public function and what is passed to it, with words that the message has to hold, or `RIGHT` where
the result is checked. An error from deep inside (IndexError, AttributeError, RuntimeError, ...) fails every test here.
"""

import copy
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import landscape
from landscape import checkpoint, figures, interchange, mesh, report, sanity, statistics
from landscape.arguments import expect, file_path, folder_path, real_number, whole_number
from landscape.comparison import compare_studies
from landscape.figures.topology import topology_figures
from landscape.surface import ProjectedTrajectory, Surface, lowest_point
from landscape.topology import analyze, descend, random_starts

HELPFUL = (TypeError, ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
NAN, INF = math.nan, math.inf
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
mse = nn.functional.mse_loss


def net(seed=0, *extra, width=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), *extra, nn.Linear(width, 3))


def objective(model=None, data=None, **arguments):
    return landscape.Objective(net() if model is None else model, (X, Y) if data is None else data, **arguments)


class OneWeight(nn.Module):
    """A network whose only parameter has any dtype."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return x @ self.weight.to(x.dtype)


O = objective()  # noqa: E741
P = O.layout.p
LINE, PLANE = landscape.random_directions(O, 1), landscape.random_directions(O)
SYMMETRIES = landscape.symmetries(net(), X)


def spent():
    batches = iter([(X, Y)])
    list(batches)
    return batches


def shuffled():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 4, shuffle=True)


def refuses(call, words):
    """The call ends in one error that helps: of a usual kind, in one line, and with these words."""
    with pytest.raises(HELPFUL, match=words) as caught:
        call()
    assert str(caught.value).strip()


def table(entries):
    return pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            pytest.param(name, value, words, id=f"{name}-{i}")
            for name, rows in entries.items()
            for i, (value, words) in enumerate(rows)
        ],
    )


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """Random generators, precision settings and threads are those of before."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.get_num_threads()  # noqa: NPY002
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2:] == (random.getstate(), torch.get_num_threads())


# the values of one kind that are refused wherever a number of that kind is asked for
NO_COUNT = [0, -1, 1.5, NAN, "a", None, True]
NO_SEED = [-1, 1.5, NAN, "a", None]
NO_POSITIVE = [0, -1, NAN, INF, "a", 1j]


class TestChecks:
    @settings(max_examples=60, derandomize=True)
    @given(st.one_of(st.integers(-5, 5), st.floats(), st.booleans(), st.text(max_size=3), st.none()), st.integers(0, 3))
    def test_a_whole_number_is_one(self, value, least):
        good = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if good:
            assert whole_number("n", value, least) == value
        else:
            refuses(lambda: whole_number("n", value, least), "n must be a whole number")

    @settings(max_examples=60, derandomize=True)
    @given(st.one_of(st.integers(-5, 5), st.floats(), st.booleans(), st.text(max_size=3), st.complex_numbers()))
    def test_a_real_number_is_finite_and_in_range(self, value):
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        if good:
            assert real_number("t", value, above=0) == value
        else:
            refuses(lambda: real_number("t", value, above=0), "t must be a finite number, above 0")

    def test_types_and_paths(self, tmp_path):
        refuses(
            lambda: expect("model", nn.Linear, nn.Module, "a network"), "model must be a network, got the class Linear"
        )
        (tmp_path / "file").touch()
        for path, words in [
            (tmp_path, "is a folder"),
            (tmp_path / "file" / "x.h5", "is a file"),
            (tmp_path / ("x" * 300), "bytes"),
            ("", "name of a file"),
            ("a\0b", "name of a file"),
            (3, "path of a file"),
        ]:
            refuses(lambda path=path: file_path(path), words)
        refuses(lambda: folder_path(tmp_path / "file"), "is a file")
        assert file_path(tmp_path / "new" / "a:b#c? ü.h5").name == "a:b#c? ü.h5"


MODELS = {
    "a text": ("mlp", "model must be a network"),
    "nothing": (5, "model must be a network"),
    "a class": (nn.Linear, "got the class Linear"),
    "no parameters": (nn.Flatten(), "matches no parameter"),
    "complex": (OneWeight(torch.ones(3, 3, dtype=torch.cfloat)), "complex64"),
    "integers": (OneWeight(torch.ones(3, 3, dtype=torch.long)), "int64"),
    "float16 on float32": (net().half(), "cannot be called on a batch"),
    "bfloat16 on float32": (net().bfloat16(), "cannot be called on a batch"),
    "meta": (net().to("meta"), "meta device"),
}
DATA = {
    "a number": (lambda: 3, "got int"),
    "a network": (net, "is a Linear"),
    "no samples": (lambda: (X[:0], Y[:0]), "no samples"),
    "no batches": (lambda: [], "empty"),
    "unequal lengths": (lambda: (X, Y[:5]), "equal length"),
    "above the classes": (lambda: (X, Y + 5), "a target is 5"),
    "below the classes": (lambda: (X, Y - 1), "a target is -1"),
    "targets that are no classes": (lambda: (X, Y.float()), "no default loss"),
    "complex inputs": (lambda: (X.cfloat(), Y), "cannot be called"),
    "integer inputs": (lambda: (X.long(), Y), "cannot be called"),
    "float16 inputs": (lambda: (X.half(), Y), "cannot be called"),
    "meta": (lambda: (X.to("meta"), Y.to("meta")), "meta device"),
    "objects": (lambda: (np.array([None] * 12), Y.numpy()), "dtype object"),
    "other features": (lambda: (X[:, :2], Y), "cannot be called"),
    "shuffled": (shuffled, "shuffle=False"),
    "spent": (spent, "empty"),
    "a sample": (lambda: torch.tensor(3.0), "single number"),
}
LOSSES = {
    "no function": (3, "loss must be a function"),
    "a name": ("mse", "loss must be a function"),
    "of one argument": (lambda output: output, "loss cannot be computed"),
    "that fails": (lambda output, target: {}["a"], "loss cannot be computed"),
    "of other shapes": (mse, "loss cannot be computed"),
    "nothing": (lambda output, target: None, "loss is"),
    "a text": (lambda output, target: "a", "loss is"),
    "complex": (lambda output, target: output.mean().to(torch.cfloat), "complex"),
    "another shape": (lambda output, target: torch.zeros(5), "shape"),
    "random": (lambda output, target: output.mean() + torch.rand(()), "differs between two evaluations"),
    "a sum": (nn.CrossEntropyLoss(reduction="sum"), "reduction='sum'"),
}


class TestObjective:
    @pytest.mark.parametrize("kind", MODELS)
    def test_models(self, kind):
        model, words = MODELS[kind]
        refuses(lambda: objective(model), words)

    @pytest.mark.parametrize("split", ["data", "test"])
    @pytest.mark.parametrize("kind", DATA)
    @pytest.mark.filterwarnings("ignore:Casting complex")
    def test_data(self, kind, split):
        data, words = DATA[kind]
        if split == "test" and kind == "targets that are no classes":
            return  # the training targets decide what the loss is
        refuses(lambda: objective(data=data()) if split == "data" else objective(test=data()), words)

    @pytest.mark.parametrize("kind", LOSSES)
    @pytest.mark.filterwarnings("ignore:Using a target size")
    def test_losses(self, kind):
        loss, words = LOSSES[kind]
        refuses(lambda: objective(loss=loss), words)

    @table(
        {
            "penalty": [(v, "penalty must be") for v in (-1, NAN, INF, "a", None, 1j)],
            "reduction": [(v, "reduction must be") for v in ("max", None)],
            "batch_norm": [(v, "batch_norm must be") for v in ("x", None)],
            "chunk_size": [(v, "chunk_size must be") for v in (0, -1, 2.5, "a", NAN, True)],
            "select": [([], "matches no"), ("none.*", "matches no"), (3, "select must be"), (None, "select must be")],
            "dtype": [(v, "dtype must be") for v in (torch.int64, torch.cfloat, "float32", np.float32)],
            "device": [(v, "device") for v in ("meta", "nonsense", "cuda:99", 7)],
            "metrics": [
                (3, "metrics must be"),
                ({"loss": mse}, "'loss' is taken"),
                ({1: mse}, "metric name 1"),
                ({"a/b": mse}, "metric name 'a/b'"),
                ({"": mse}, "metric name ''"),
                ({"m": 3}, "m must be a function"),
            ],
            "forward": [(3, "forward must be"), (lambda model: 1, "cannot be called")],
        }
    )
    def test_options(self, name, value, words):
        refuses(lambda: objective(**{name: value}), words)

    def test_select_trainable_of_a_frozen_network(self):
        frozen = net().requires_grad_(False)
        refuses(lambda: objective(frozen, select="trainable"), "matches no parameter")
        assert objective(frozen).evaluate(O.origin) == O.evaluate(O.origin)

    @pytest.mark.parametrize("policy", ["recalibrated", "batch"])
    def test_batch_norm_of_one_sample(self, policy):
        model = net(0, nn.BatchNorm1d(4))
        refuses(lambda: objective(model, (X[:1], Y[:1]), batch_norm=policy), "1 sample")
        if policy == "batch":
            refuses(lambda: objective(model, test=(X[:1], Y[:1]), batch_norm=policy), "test data has 1 sample")
            refuses(lambda: objective(model, chunk_size=1, batch_norm=policy), "1 sample")

    @pytest.mark.parametrize("policy", ["frozen", "interpolated"])
    def test_frozen_statistics_of_one_sample(self, policy):
        model = net(0, nn.BatchNorm1d(4))
        one = objective(model, (X[:1], Y[:1]), batch_norm=policy)
        expected = nn.functional.cross_entropy(copy.deepcopy(model).eval()(X[:1]), Y[:1]).item()
        assert one.evaluate(one.origin)["loss"] == pytest.approx(expected, rel=1e-6)

    def test_a_spatial_batch_norm_takes_one_sample(self):
        model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
        one = objective(model, (torch.randn(1, 1, 3, 3), Y[:1]), batch_norm="batch")
        with torch.no_grad():
            expected = nn.functional.cross_entropy(copy.deepcopy(model).train()(one.splits[""].items[0][0]), Y[:1])
        assert one.evaluate(one.origin)["loss"] == pytest.approx(expected.item(), rel=1e-5)

    @pytest.fixture(autouse=True)
    def seeded(self):
        with torch.random.fork_rng(devices=[]):
            yield

    def test_not_finite_data_one_class_and_one_sample_are_results(self):
        assert math.isnan(objective(data=(X * NAN, Y)).evaluate(O.origin)["loss"])
        assert objective(data=(X, Y * 0)).evaluate(O.origin)["loss"] == pytest.approx(
            nn.functional.cross_entropy(net()(X), Y * 0).item(), rel=1e-6
        )
        assert objective(data=(X[:1], Y[:1])).evaluate(O.origin)["loss"] == pytest.approx(
            nn.functional.cross_entropy(net()(X[:1]), Y[:1]).item(), rel=1e-6
        )

    def test_losses_without_a_gradient(self):
        for loss in (
            lambda output, target: torch.tensor(1.0),
            lambda output, target: output.mean().item(),
            lambda output, target: (output.argmax(1) != target).float(),
        ):
            found = objective(loss=loss)
            assert math.isfinite(found.evaluate(O.origin)["loss"])
            for call in (
                lambda found=found: found.gradient(O.origin),
                lambda found=found: landscape.extreme_eigenpairs(found),
                lambda found=found: landscape.trace(found),
                lambda found=found: landscape.spectral_density(found),
                lambda found=found: landscape.index(found),
                lambda found=found: landscape.eigenvector_directions(found),
                lambda found=found: landscape.polish(found),
                lambda found=found: landscape.certify(found),
                lambda found=found: landscape.curvature_map(found, LINE, resolution=2, progress=False),
                lambda loss=loss: landscape.train(net(), (X, Y), loss=loss, epochs=1, progress=False),
                lambda loss=loss: landscape.train_many([net()], (X, Y), loss=loss, epochs=1, progress=False),
            ):
                refuses(call, "the loss has no gradient")

    @pytest.mark.parametrize("extra", [nn.Dropout(0.5), nn.BatchNorm1d(4)])
    @pytest.mark.parametrize("policy", ["frozen", "recalibrated", "batch"])
    def test_the_network_and_the_data_stay_as_they_were(self, extra, policy):
        model, x = net(0, extra).train(), X.clone()
        model[0].weight.grad = torch.ones_like(model[0].weight)
        before = copy.deepcopy(model)
        found = objective(model, (x, Y), batch_norm=policy)
        found.evaluate(found.origin + 1)
        found.gradient(found.origin)
        landscape.evaluate(found, landscape.random_directions(found, 1), resolution=3, progress=False)
        assert all(module.training for module in model.modules())
        assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(x, X)


THETAS = {
    "too short": (O.origin[:-1], r"theta has shape \(30,\), expected \(31,\)"),
    "two axes": (O.origin[None], r"theta has shape \(1, 31\)"),
    "a list": (O.origin.tolist(), "theta must be a torch tensor"),
    "an array": (O.origin.numpy(), "theta must be a torch tensor"),
    "a text": ("a", "theta must be a torch tensor"),
    "complex": (O.origin.cfloat(), "theta is torch.complex64"),
    "integers": (O.origin.long(), "theta is torch.int64"),
    "meta": (O.origin.to("meta"), "meta device"),
}
AT_A_POINT = {
    "evaluate": O.evaluate,
    "gradient": O.gradient,
    "penalty": objective(penalty=1.0).penalty_at,
    "Hessian": lambda theta: landscape.Hessian(O, theta),
    "extreme_eigenpairs": lambda theta: landscape.extreme_eigenpairs(O, theta),
    "trace": lambda theta: landscape.trace(O, theta),
    "spectral_density": lambda theta: landscape.spectral_density(O, theta),
    "index": lambda theta: landscape.index(O, theta),
    "polish": lambda theta: landscape.polish(O, theta),
    "certify": lambda theta: landscape.certify(O, theta),
    "find_minimum": lambda theta: landscape.find_minimum(O, theta),
    "gradient_norms": lambda theta: landscape.gradient_norms(O, theta),
    "activation_slopes": lambda theta: landscape.activation_slopes(O, theta, (nn.Tanh,)),
    "barrier": lambda theta: landscape.barrier(O, O.origin, theta),
    "barrier from": lambda theta: landscape.barrier(O, theta, O.origin),
}
OF_AN_OBJECTIVE = {
    "random_directions": landscape.random_directions,
    "pca_directions": lambda o: landscape.pca_directions(o, []),
    "directions_between": lambda o: landscape.directions_between(o, net(1)),
    "given_directions": lambda o: landscape.given_directions(o, torch.ones(1, P)),
    "evaluate": lambda o: landscape.evaluate(o, PLANE),
    "audit": lambda o: landscape.audit(o, PLANE, None),
    "extreme_eigenpairs": landscape.extreme_eigenpairs,
    "trace": landscape.trace,
    "spectral_density": landscape.spectral_density,
    "eigenvector_directions": landscape.eigenvector_directions,
    "curvature_map": lambda o: landscape.curvature_map(o, LINE),
    "index": landscape.index,
    "polish": landscape.polish,
    "certify": landscape.certify,
    "find_minimum": landscape.find_minimum,
    "gradient_norms": landscape.gradient_norms,
    "activation_slopes": landscape.activation_slopes,
    "barrier": lambda o: landscape.barrier(o, O.origin, O.origin),
    "barrier_matrix": lambda o: landscape.barrier_matrix(o, O.origin[None]),
}


@pytest.mark.parametrize("kind", THETAS)
@pytest.mark.parametrize("function", AT_A_POINT)
def test_what_is_no_point(function, kind):
    theta, words = THETAS[kind]
    refuses(lambda: AT_A_POINT[function](theta), words)


@pytest.mark.parametrize("kind", THETAS)
@pytest.mark.parametrize("function", ["align", "polish_many", "find_minima", "barrier_matrix", "identify"])
def test_what_is_no_list_of_points(function, kind):
    theta, _ = THETAS[kind]
    several = theta[None] if isinstance(theta, torch.Tensor | np.ndarray) else theta
    refuses(
        {
            "align": lambda: landscape.align(SYMMETRIES, theta, O.origin),
            "polish_many": lambda: landscape.polish_many(O, several, progress=False),
            "find_minima": lambda: landscape.find_minima(O, several, progress=False),
            "barrier_matrix": lambda: landscape.barrier_matrix(O, several, progress=False),
            "identify": lambda: landscape.identify(several, [0.0, 0.0], symmetries=SYMMETRIES),
        }[function],
        r"theta|the points to start from",
    )


@pytest.mark.parametrize("function", OF_AN_OBJECTIVE)
def test_a_network_in_place_of_an_objective(function):
    refuses(lambda: OF_AN_OBJECTIVE[function](net()), "objective must be an Objective")


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_point_that_is_not_finite_is_a_result(value):
    theta = O.origin * 0 + value
    assert math.isnan(O.evaluate(theta)["loss"])
    assert O.gradient(theta).isnan().any()
    assert np.isnan(landscape.extreme_eigenpairs(O, theta).values).all()
    assert math.isnan(landscape.trace(O, theta).value)
    assert landscape.polish(O, theta).status == landscape.certify(O, theta).kind == "not finite"
    refuses(lambda: landscape.index(O, theta), "not finite")
    refuses(lambda: landscape.spectral_density(O, theta), "not finite")


def test_another_precision_of_a_point_is_the_same_point():
    theta = O.origin.half()
    kept = theta.clone()
    assert O.evaluate(theta) == O.evaluate(theta.double()) == O.evaluate(theta.float())
    assert torch.equal(O.gradient(theta), O.gradient(theta.float()))
    assert torch.equal(theta, kept)
    assert not theta.requires_grad


class TestGradients:
    @table(
        {
            "by": [(v, "by must be 'module'") for v in ("layer", 3, None, ["0.weight"])]
            + [({"a": "9.*"}, "no parameter in group"), ({"a": 3}, "a pattern of"), ({"a": [3]}, "a pattern of")],
        }
    )
    def test_norms(self, name, value, words):
        refuses(lambda: landscape.gradient_norms(O, **{name: value}), words)

    @table(
        {
            "kinds": [
                (nn.Tanh, "a tuple of classes"),
                ((nn.ReLU,), "no module of the kinds ReLU"),
                ((), "no module of the kinds"),
                (("Tanh",), "a class of modules"),
            ]
        }
    )
    def test_slopes(self, name, value, words):
        refuses(lambda: landscape.activation_slopes(O, **{name: value}), words)

    @table(
        {
            "function": [(v, "expected an Objective or a function") for v in (3, None, "f")]
            + [(lambda t: t, "0-D tensor in the precision"), (lambda t: 1.0, "0-D tensor in the precision")],
            "theta": [
                ([1.0], "a torch tensor"),
                (torch.ones(2, 2), r"a vector \[p\]"),
                (torch.ones(0), r"a vector \[p\]"),
                (torch.ones(2, dtype=torch.cfloat), "real floating-point"),
            ],
            "h": [(v, "the step h must be a finite number") for v in NO_POSITIVE],
            "kind": [(v, "kind must be one of") for v in ("backward", None)],
        }
    )
    def test_difference_quotients(self, name, value, words):
        arguments = {"function": torch.sum, "theta": torch.ones(2, dtype=torch.float64), "h": 0.1, name: value}
        refuses(lambda: landscape.difference_gradient(**arguments), words)

    @table(
        {
            "steps": [
                (0.1, "a sequence of numbers"),
                ([], "a sequence of numbers"),
                ("ab", "a sequence of numbers"),
                ([0.1, NAN], "the step h"),
            ],
            "dtypes": [(v, "precisions") for v in (torch.float32, [], ["float32"], [torch.int64])],
            "reference": [(torch.ones(3), "reference has shape"), ([1.0, 1.0], "a torch tensor")],
            "theta": [(torch.zeros(2), "the gradient at theta has norm 0")],
        }
    )
    def test_errors_of_quotients(self, name, value, words):
        arguments = {"theta": torch.ones(2), "steps": [0.1], name: value}
        refuses(lambda: landscape.compare_gradients(lambda t: t.square().sum(), **arguments), words)

    @table(
        {
            "function": [
                (3, "a Python function"),
                (lambda x, y: x, "got 1 inputs"),
                (lambda x: 1.0, "must return a tensor"),
                (lambda x: x.expand(2), "must have one entry"),
                (lambda x: x.detach(), "does not depend"),
            ],
            "input": [("a", "input 0 must be a number"), (None, "input 0 must be a number"), (1j, "expected real")],
        }
    )
    def test_computational_graphs(self, name, value, words):
        arguments = {"function": lambda x: x * x, "input": 2.0, name: value}
        refuses(lambda: landscape.computational_graph(*arguments.values()), words)

    def test_not_finite_numbers_flow_through_a_graph(self):
        nodes = landscape.computational_graph(lambda x: x * x, INF).nodes
        assert [float(node.value) for node in nodes] == [INF, INF]

    @table(
        {
            "n": [(v, "n must be a whole number") for v in [-1, 1.5, NAN, "a", None]],
            "seed": [(v, "seed must be a whole number") for v in NO_SEED],
            "topology": [([1, 2, 1], "what `analyze` returns")],
        }
    )
    def test_random_starts(self, name, value, words):
        refuses(lambda: random_starts(**{"topology": analyze([2, 1, 3]), "n": 3, name: value}), words)

    @table(
        {
            "starts": [
                ([0.5], "starts need shape"),
                ([["a"]], "an array of numbers"),
                ([[NAN]], "outside the window"),
                ([[9.0]], "outside the window"),
                ([[INF]], "outside the window"),
            ],
            "topology": [([1, 2, 1], "what `analyze` returns")],
        }
    )
    def test_descents(self, name, value, words):
        refuses(lambda: descend(**{"topology": analyze([2, 1, 3]), "starts": [[0.5]], name: value}), words)

    def test_no_start_is_no_descent(self):
        assert len(random_starts(analyze([2, 1, 3]), 0)) == len(descend(analyze([2, 1, 3]), np.empty((0, 1)))) == 0


class TestDirections:
    @table(
        {
            "k": [(v, "k must be a whole number") for v in NO_COUNT] + [(P + 1, "cannot be independent")],
            "seed": [(v, "seed must be a whole number") for v in [*NO_SEED, [1, 2]]],
            "normalization": [(v, "normalization must be") for v in ("x", None)],
        }
    )
    def test_random(self, name, value, words):
        refuses(lambda: landscape.random_directions(O, **{name: value}), words)

    def test_a_huge_seed_is_one(self):
        first, second = (landscape.random_directions(O, seed=10**30 + i).directions for i in range(2))
        assert not torch.equal(first, second)

    def test_networks_without_a_direction(self):
        zero = net()
        for parameter in zero.parameters():
            parameter.data.zero_()
        refuses(lambda: landscape.random_directions(objective(zero)), "zero everywhere")
        refuses(lambda: landscape.random_directions(objective(select="*bias")), "zero everywhere")
        lost = net()
        lost[0].weight.data.fill_(NAN)
        refuses(lambda: landscape.random_directions(objective(lost)), "not finite")
        refuses(lambda: landscape.directions_between(O, lost), "not finite")
        with torch.random.fork_rng(devices=[]):
            one = nn.Linear(1, 1)
        narrow = objective(one, (X[:, :1], X[:, :1]), loss=mse)
        refuses(lambda: landscape.random_directions(narrow, orthogonal=True), "orthogonal")

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            (None, "directions must be"),
            (3, "directions must be"),
            ("abc", "directions must be"),
            ([], "at least one"),
            ({}, "at least one"),
            (torch.ones(0, P), "at least one"),
            (torch.zeros(2, P), "direction 1 is zero"),
            (torch.full((1, P), NAN), "not finite"),
            (torch.full((1, P), INF), "not finite"),
            (torch.ones(2, P - 1), r"\[k, 31\]"),
            (torch.ones(2, 2, P), r"\[k, 31\]"),
            ([torch.ones(P), torch.ones(P - 1)], "direction 2"),
            (torch.ones(1, P, dtype=torch.cfloat), "complex64"),
            (torch.ones(1, P, device="meta"), "meta device"),
            ([None], "direction 1 must be numbers"),
            (["a"], "direction 1 must be numbers"),
            (np.array([None]), "direction 1 must be numbers"),
            ({"0.weight": torch.ones(4, 3)}, "'0.bias' is missing"),
            ({name: t.cfloat() for name, t in net(1).state_dict().items()}, "complex64"),
        ],
    )
    def test_given(self, rows, words):
        refuses(lambda: landscape.given_directions(O, rows), words)

    def test_given_in_other_types_are_the_same(self):
        rows = [[float(i == j) for j in range(P)] for i in range(2)]
        expected = torch.tensor(rows)
        for same in (rows, np.array(rows), expected.long(), expected.half(), list(expected)):
            assert torch.equal(landscape.given_directions(O, same).directions, expected)

    def test_info_of_given_directions(self):
        refuses(lambda: landscape.given_directions(O, torch.ones(1, P), info={"labels": []}), "1 label")
        refuses(lambda: landscape.given_directions(O, torch.ones(1, P), info={"a": object()}), "JSON")

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (net(), "same parameters"),
            (None, "a network must be"),
            (3, "a network must be"),
            (net(width=5), "of another shape"),
            ({}, "missing"),
            ("nosuch.safetensors", "no checkpoint"),
            ({"0.weight": "a"}, "'0.weight' must be a tensor"),
            (net(1).to("meta"), "meta device"),
            ({name: t.cfloat() for name, t in net(1).state_dict().items()}, "complex64"),
        ],
    )
    def test_between(self, other, words):
        refuses(lambda: landscape.directions_between(O, other), words)

    @pytest.mark.parametrize(
        ("runs", "words"), [(None, "trajectories must"), ([], "needs a trajectory"), ([3], "a trajectory must")]
    )
    def test_pca(self, runs, words):
        refuses(lambda: landscape.pca_directions(O, runs), words)

    def test_parallel_directions_are_evaluated_and_projected(self):
        plane = landscape.given_directions(O, torch.ones(2, P))
        values = landscape.evaluate(O, plane, axes=[[0.0, 1.0], [0.0, 1.0]], progress=False).values["loss"]
        assert values[0, 1] == pytest.approx(values[1, 0], rel=1e-6)
        coordinates, distance = plane.project(O.origin + 1)
        assert coordinates.sum() == pytest.approx(1, rel=1e-5)
        assert distance[0] == pytest.approx(0, abs=1e-5)


class TestEvaluate:
    @table(
        {
            "resolution": [(v, "resolution must be") for v in (0, -1, 1.5, "a", NAN)]
            + [((3, 3, 3), r"got 3 resolution\(s\)"), ((), r"got 0 resolution\(s\)")]
            + [(10**6, "GB are free: ask for fewer points"), ((10**6, 10**6), "ask for fewer points")],
            "extent": [
                ((1, -1), "low < high"),
                ((0, 0), "low < high"),
                ((NAN, 1), "low end"),
                ((0, INF), "high end"),
                ("ab", "range"),
                (3, "extent must be"),
                (((0, 1),), r"1 range\(s\)"),
                (((0, 1), (0, 1, 2)), "a pair"),
            ],
            "engine": [(v, "engine must be") for v in ("fast", None)],
            "memory": [(v, "memory must be") for v in (0, -1, "1G", 2.5, NAN)],
            "workers": [
                (0, "1 worker"),
                (1.5, "workers must"),
                (None, "workers must"),
                ("x", "no device 'x'"),
                ([], "asked for"),
            ],
            "interval": [(v, "interval must be") for v in (-1, "a", NAN)],
            "checkpoint": [(3, "checkpoint must be"), ({"a": object()}, "JSON")],
            "trajectories": [
                (3, "trajectories must be"),
                ({"a/b": None}, "a/b"),
                ({1: None}, "name 1"),
                ({"a": None}, "trajectory 'a' must be"),
            ],
            "path": [
                ("", "name of a file"),
                ("a\x00b", "name of a file"),
                (3, "path of a file"),
                (".", "is a folder"),
                ("/dev/null/x.h5", "is a file"),
                ("x" * 300, "bytes"),
            ],
        }
    )
    def test_options(self, name, value, words):
        arguments = {} if name == "resolution" else {"resolution": 2}
        refuses(lambda: landscape.evaluate(O, PLANE, progress=False, **{**arguments, name: value}), words)

    @pytest.mark.parametrize(
        ("axes", "words"),
        [
            ([[1.0, 0.0], [0.0]], "increasing"),
            ([[0.0, 0.0], [0.0]], "increasing"),
            ([[0.0, NAN], [0.0]], "finite"),
            ([[], [0.0]], "n >= 1"),
            ([[0.0]], "got 1 axes"),
            ([[[0.0]], [0.0]], r"shape \[n\]"),
            ([None, [0.0]], r"shape \[n\]"),
            (3, "axes must be"),
            ([["a"], [0.0]], "array of numbers"),
            ([[1j], [0.0]], "array of numbers"),
            ([np.linspace(0, 1, 10**6)] * 2, "ask for fewer points"),
        ],
    )
    def test_axes(self, axes, words):
        refuses(lambda: landscape.evaluate(O, PLANE, axes=axes, progress=False), words)
        refuses(lambda: landscape.curvature_map(O, PLANE, axes=axes, progress=False), words)

    def test_what_is_no_slice(self):
        for wrong in (None, torch.ones(2, P), net()):
            refuses(lambda wrong=wrong: landscape.evaluate(O, wrong), "slice must be a Slice")
        refuses(lambda: landscape.evaluate(objective(net(width=5)), LINE, resolution=2, progress=False), "shape")

    def test_one_point_is_the_network(self):
        surface = landscape.evaluate(O, PLANE, resolution=1, progress=False)
        assert surface.values["loss"].shape == (1, 1)
        assert surface.values["loss"][0, 0] == pytest.approx(O.evaluate(O.origin)["loss"], rel=1e-6)

    def test_coordinates_beyond_float32_are_results(self):
        surface = landscape.evaluate(O, LINE, axes=[[0.0, 1e300]], progress=False)
        assert surface.finished
        assert math.isfinite(surface.values["loss"][0])
        assert not math.isfinite(surface.values["loss"][1])

    @settings(max_examples=8, derandomize=True)
    @given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=40))
    def test_any_name_of_a_file(self, tmp_path_factory, name):
        if name in (".", ".."):
            return
        path = tmp_path_factory.mktemp("names") / f"{name}.h5"
        SURFACES["normal", 1].save(path)
        assert np.array_equal(Surface.load(path).values["loss"], SURFACES["normal", 1].values["loss"])

    @pytest.mark.parametrize("name", ["a:b#c?.h5", "with space/ü 漢.h5", "-dash.h5", "none", ".hidden", "a*b[c]%20.h5"])
    def test_odd_names_of_files(self, tmp_path, name):
        surface = landscape.evaluate(O, LINE, resolution=3, progress=False, path=tmp_path / name)
        assert np.array_equal(Surface.load(tmp_path / name).values["loss"], surface.values["loss"])
        with landscape.Recorder(tmp_path / f"t{name}", net()) as recorder:
            recorder.step(loss=1.0)
        assert len(landscape.Trajectory.load(tmp_path / f"t{name}")) == 2


class TestCurvature:
    @pytest.mark.parametrize(
        ("function", "least"),
        [
            (landscape.extreme_eigenpairs, {"k": 1, "max_products": 1}),
            (landscape.eigenvector_directions, {"k": 1, "max_products": 1}),
            (landscape.trace, {"n_samples": 6}),
            (landscape.spectral_density, {"n_probes": 1, "n_steps": 1}),
            (landscape.index, {"max_products": 1}),
            (landscape.certify, {"max_products": 1}),
            (landscape.polish, {"max_steps": 1}),
            (landscape.find_minimum, {"max_steps": 1}),
        ],
    )
    def test_counts_and_seeds(self, function, least):
        for name in least:
            for value in [0, -1, 1.5, NAN, "a"]:
                refuses(lambda name=name, value=value: function(O, **{name: value}), f"{name} must be a whole number")
        if function not in (landscape.polish, landscape.find_minimum):
            for value in [*NO_SEED, 2**64]:
                refuses(lambda value=value: function(O, seed=value), "seed must be a whole number")

    @pytest.mark.parametrize(
        ("function", "name"),
        [
            (landscape.extreme_eigenpairs, "rtol"),
            (landscape.spectral_density, "sigma"),
            (landscape.polish, "gtol"),
            (landscape.certify, "gtol"),
            (landscape.find_minimum, "gtol"),
        ],
    )
    def test_tolerances(self, function, name):
        for value in NO_POSITIVE:
            refuses(lambda value=value: function(O, **{name: value}), f"{name} must be a finite number, above 0")

    def test_other_options(self):
        for call, words in [
            (lambda: landscape.extreme_eigenpairs(O, k=P + 1), f"at most {P} pairs"),
            (lambda: landscape.extreme_eigenpairs(O, which="x"), "which must be"),
            (lambda: landscape.trace(O, deflate=3), "deflate must be"),
            (lambda: landscape.spectral_density(O, grid="a"), "grid must be"),
            (lambda: landscape.spectral_density(O, grid=3), "grid needs shape"),
            (lambda: landscape.index(O, tol=-1), "tol must be"),
            (lambda: landscape.index(O, tol=NAN), "tol must be"),
            (lambda: landscape.polish(O, method="x"), "method must be"),
            (lambda: landscape.find_minimum(O, max_escapes=-1), "max_escapes must be"),
            (lambda: landscape.barrier(O, O.origin, O.origin, 2), "at least 3 points"),
            (lambda: landscape.barrier(O, O.origin, O.origin, 3.5), "number of points must be"),
            (lambda: landscape.barrier(O, O.origin, O.origin, 3, symmetries=3), "symmetries must be"),
            (lambda: landscape.align(3, O.origin, O.origin), "symmetries must be"),
            (lambda: landscape.align(SYMMETRIES, O.origin, O.origin, seed=-1), "seed must be"),
            (lambda: landscape.Hessian(O).products(torch.ones(P)), r"shape \[m, 31\]"),
            (lambda: landscape.Hessian(O).products([[1.0] * P]), "vectors must be"),
            (lambda: landscape.Hessian(O).products(torch.ones(1, P, dtype=torch.cfloat)), "complex64"),
            (lambda: landscape.symmetries(3, X), "model must be"),
            (lambda: landscape.symmetries(net(), X[:0]), "holds no numbers"),
            (lambda: landscape.symmetries(net(), X[:, :2]), "cannot be called on the sample"),
            (lambda: landscape.symmetries(net(), X.to("meta")), "meta device"),
            (lambda: landscape.identify(torch.ones(2, P), [0.0, 0.0]), "symmetries"),
            (lambda: landscape.identify(torch.ones(2, P), ["a", "b"]), "losses must be numbers"),
        ]:
            refuses(call, words)

    def test_as_many_pairs_as_parameters_are_the_spectrum(self):
        values = landscape.extreme_eigenpairs(O, k=P, rtol=1e-6).values
        assert values.sum() == pytest.approx(landscape.trace(O, n_samples=3 * P + 3).value, rel=1e-4)

    def test_no_points(self):
        none = torch.ones(0, P)
        assert landscape.polish_many(O, none, progress=False) == landscape.find_minima(O, none, progress=False) == []
        assert landscape.identify(none, [], symmetries=SYMMETRIES).n_minima == 0
        assert landscape.Hessian(O).products(none).shape == (0, P)
        refuses(lambda: landscape.barrier_matrix(O, none), "thetas need shape")


TRAINING = {
    "model": [
        (3, "model|build"),
        (nn.Flatten(), "matches no|requires a gradient"),
        (net().requires_grad_(False), "gradient"),
    ],
    "optimizer": [(v, "no optimizer") for v in ("sgdd", None, 3)],
    "learning_rate": [(v, "learning_rate must be") for v in NO_POSITIVE],
    "options": [
        ({"lr": 1}, "learning_rate="),
        ({"zzz": 1}, "no option 'zzz'"),
        (3, "options must be"),
        ({"betas": (2, 3)}, "beta"),
    ],
    "weight_decay": [(v, "(weight_decay|penalty) must be") for v in (-1, "a", NAN)],
    "batch_size": [(v, "batch_size must be") for v in (0, -1, 1.5, "a")],
    "epochs": [(v, "epochs must be") for v in NO_COUNT],
    "schedule": [("x", "no schedule"), (3, "no schedule")]
    + [(lambda s, v=v: v, "schedule.0. must be") for v in (NAN, None, -1)],
    "seed": [(v, "seed must be") for v in NO_SEED],
    "data": [(None, "got NoneType"), ((X[:0], Y[:0]), "no samples"), ((X, Y + 5), "a target is 5")],
    "metrics": [(3, "metrics must be")],
    "loss": [("x", "loss must be")],
}
NOT_FOR_MANY = {
    "folder": [
        ("", "name of a folder"),
        (3, "path of a folder"),
        ("a\0b", "name of a folder"),
        ("/dev/null", "a file"),
    ],
    "interval": [(v, "interval must be") for v in ("a", -1, NAN)],
    "arguments": [(3, "arguments must be"), ({"a": object()}, "JSON")],
    "record_every": [(v, "record_every must be") for v in (0, "a")],
    "record_unit": [("x", "record_unit must be")],
    "reduction": [("x", "reduction must be")],
}


class TestTraining:
    @table({**TRAINING, **NOT_FOR_MANY})
    def test_one(self, name, value, words):
        arguments = {"model": net(), "data": (X, Y), "epochs": 1, "progress": False, name: value}
        refuses(lambda: landscape.train(arguments.pop("model"), arguments.pop("data"), **arguments), words)

    @table(TRAINING)
    def test_many(self, name, value, words):
        arguments = {"model": [net(0), net(1)], "data": (X, Y), "epochs": 1, "progress": False}
        changed = {"seeds": [0, value]} if name == "seed" else {name: value}
        if isinstance(value, nn.Module):
            changed = {"model": [value, value]}
        arguments |= changed
        refuses(lambda: landscape.train_many(arguments.pop("model"), arguments.pop("data"), **arguments), words)

    @table(TRAINING)
    def test_restarts(self, tmp_path, name, value, words):
        setting, arguments, build, data = {"epochs": 1}, {"seeds": 2}, net, (X, Y)
        if name in ("optimizer", "learning_rate", "options", "batch_size", "epochs", "schedule"):
            setting[name] = value
        elif name == "model":
            build = (lambda seed: value) if isinstance(value, nn.Module) else value
        elif name == "data":
            data = value
        else:
            arguments |= {"weight_decay": {"penalty": value}, "seed": {"seeds": [0, value]}}.get(name, {name: value})
        path = tmp_path / "study.h5"
        call = lambda: landscape.run_restarts(  # noqa: E731
            build, data, path, settings={"adam": setting}, progress=False, **arguments
        )
        refuses(call, words)

    @table(
        {
            "seeds": [(v, "seeds|a seed") for v in (0, -1, "ab", 1.5, [], [0, 0], None)],
            "settings": [
                ({}, "no runs"),
                ([], "no runs"),
                (3, "settings must be"),
                (None, "settings must be"),
                ({"a": 3}, "settings 'a' must be"),
                ({"a": {"zzz": 1}}, "zzz"),
                ({1: {}}, "name of settings"),
            ],
            "batch": [(v, "batch must be") for v in (0, "a", 1.5)],
            "info": [(3, "info must be"), ({"a": object()}, "JSON")],
            "path": [(".", "is a folder"), (3, "path of a file"), ("/dev/null/x.h5", "is a file")],
            "workers": [(0, "1 worker"), ("x", "no device 'x'")],
        }
    )
    def test_options_of_restarts(self, tmp_path, name, value, words):
        arguments = {"path": tmp_path / "study.h5", "settings": {"adam": {"epochs": 1}}, "seeds": 2, name: value}
        refuses(lambda: landscape.run_restarts(net, (X, Y), progress=False, **arguments), words)

    def test_an_iterator_serves_all_runs_of_a_study(self, tmp_path):
        settings = {"adam": {"epochs": 1}, "gd": {"epochs": 1}}
        given, read = (
            landscape.run_restarts(net, data, tmp_path / name, settings=settings, seeds=2, progress=False)
            for name, data in (("a.h5", (X, Y)), ("b.h5", iter([(X, Y)])))
        )
        assert np.array_equal(given.final(), read.final())

    def test_many_that_do_not_fit(self):
        refuses(lambda: landscape.train_many([net(), net(width=5)], (X, Y), progress=False), "one architecture")
        refuses(lambda: landscape.train_many([], (X, Y), progress=False), "at least one network")
        refuses(lambda: landscape.train_many([net()], (X, Y), record={5: "x.h5"}, progress=False), r"\[5\]")
        refuses(lambda: landscape.train_many([net()], (X, Y), record=3, progress=False), "record must be")

    def test_batch_norm_of_one_sample(self):
        model = net(0, nn.BatchNorm1d(4))
        refuses(lambda: landscape.train(model, (X[:1], Y[:1]), progress=False), "one sample")

    def test_a_loss_that_is_not_finite_stops_the_run(self):
        run = landscape.train(net(), (X * NAN, Y), epochs=5, progress=False)
        assert np.isnan(run.history["loss"]).all()
        assert run.history["step"].tolist() == [0] or run.history["step"][-1] <= 1

    def test_the_network_stays_as_it_was(self):
        model = net(0, nn.Dropout(0.5), nn.BatchNorm1d(4)).eval()
        before = copy.deepcopy(model.state_dict())
        landscape.train(model, (X, Y), epochs=2, batch_size=5, progress=False)
        landscape.train_many([model, model], (X, Y), epochs=1, progress=False)
        assert not model.training
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


class TestRecords:
    @table(
        {
            "model": [
                (3, "model must be"),
                (nn.Flatten(), "matches no"),
                (OneWeight(torch.ones(2, dtype=torch.cfloat)), "complex"),
                (net().to("meta"), "meta device"),
            ],
            "every": [(v, "every must be") for v in NO_COUNT],
            "step": [(v, "step must be") for v in (-1, 1.5, "a")],
            "select": [("zzz", "matches no"), (3, "select must be")],
            "info": [(3, "info must be"), ({"a": object()}, "JSON")],
            "interval": [(v, "interval must be") for v in ("a", NAN, -1)],
            "path": [(".", "is a folder"), ("", "name of a file"), (3, "path of a file"), ("/dev/null/x.h5", "a file")],
        }
    )
    def test_recorder(self, tmp_path, name, value, words):
        arguments = {"path": tmp_path / "run.h5", "model": net(), name: value}
        refuses(lambda: landscape.Recorder(arguments.pop("path"), arguments.pop("model"), **arguments), words)

    @pytest.mark.parametrize("value", ["a", None, [1], torch.ones(2), 1j])
    def test_metrics(self, tmp_path, value):
        recorder = landscape.Recorder(tmp_path / "run.h5", net())
        refuses(lambda: recorder.step(loss=value), "metric 'loss' must be a number")
        recorder.close()
        refuses(lambda: recorder.step(loss=1.0), "is closed")

    @pytest.mark.parametrize(
        "load", [Surface.load, landscape.Trajectory.load, landscape.Study.load, landscape.Catalog.load, checkpoint.read]
    )
    def test_what_is_no_file_of_ours(self, tmp_path, load):
        (tmp_path / "empty.h5").touch()
        (tmp_path / "text.h5").write_text("hello")
        for path in ("nosuch.h5", tmp_path, "", tmp_path / "empty.h5", tmp_path / "text.h5"):
            refuses(lambda path=path: load(path), ".")
        for path in (3, None):
            refuses(lambda path=path: load(path), f"not '?{type(path).__name__}")  # quoted since Python 3.12


def surface_of(kind, k):
    shape = {"one point": (1,) * k, "one row": (5, *[1] * (k - 1))}.get(kind, (5, 4, 3)[:k])
    axes = {n: np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for n, size in zip("xyz", shape, strict=False)}
    values = 0.5 + sum((grid - 0.1) ** 2 for grid in np.meshgrid(*axes.values(), indexing="ij"))
    done = np.ones(shape, dtype=bool)
    first = (0,) * k
    if kind == "nothing done":
        done[:] = False
    elif kind == "one point done":
        done[:] = False
        done[first] = True
    elif kind in ("all NaN", "one finite"):
        values[:] = NAN
        if kind == "one finite":
            values[tuple(n // 2 for n in shape)] = 1.0
    elif kind in ("all infinite", "constant", "zero"):
        values[:] = {"all infinite": INF, "constant": 1.0, "zero": 0.0}[kind]
    elif kind in ("one infinite", "one minus infinite"):
        values[first] = INF if kind == "one infinite" else -INF
    elif kind in ("negative", "tiny"):
        values = values * (-1 if kind == "negative" else 1e-300)
    surface = Surface(axes, {"loss": values, "accuracy": np.clip(1 - values / 10, 0, 1)}, done)
    if kind.startswith("run"):
        t = 1 if kind == "run of one" else 3
        filled = np.full(t, NAN) if kind == "run of NaN" else np.ones(t)
        run = ProjectedTrajectory(np.arange(t), np.outer(filled, np.linspace(-1, 1, k)), filled, filled, filled)
        surface.trajectories["a<b>&c"] = run
    return surface


KINDS = [
    *("normal", "nothing done", "one point done", "all NaN", "one finite", "all infinite", "one infinite"),
    *("one minus infinite", "constant", "zero", "negative", "tiny", "one point", "one row"),
    *("run", "run of NaN", "run of one"),
]
SURFACES = {(kind, k): surface_of(kind, k) for kind in KINDS for k in (1, 2, 3)}


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
class TestSurfaces:
    def test_every_figure(self, kind, k):
        surface = SURFACES[kind, k]
        kept = copy.deepcopy(surface.values)
        for scale in ("linear", "log"):
            calls = {
                "plot": lambda scale=scale: [figures.plot(surface, scale=scale)],
                "figures_of": lambda scale=scale: figures.figures_of(surface, scale=scale).values(),
                "topology": lambda scale=scale: topology_figures(surface, analyze(surface), scale).values(),
                "trajectory": lambda scale=scale: [figures.plot_trajectory(surface)],
            }
            for call in calls.values():
                try:
                    drawn = list(call())
                except HELPFUL as error:
                    assert any(word in str(error) for word in ("log", "no trajectory"))  # noqa: PT017
                else:
                    assert all(figure.to_json() for figure in drawn)
        for name, values in surface.values.items():
            assert np.array_equal(values, kept[name], equal_nan=True)

    def test_numbers(self, kind, k):
        surface = SURFACES[kind, k]
        known = surface.metric()
        finite = known[np.isfinite(known)]
        lowest = lowest_point(surface)
        assert (lowest is None) == (finite.size == 0)
        if lowest is not None:
            assert lowest[1] == finite.min()
        found = analyze(surface, border="include")
        n_known = int((~np.isnan(known)).sum())
        assert found.minima.n_cells.sum() == n_known
        assert (len(found.minima.value) > 0) == (n_known > 0)
        if n_known:
            assert found.minima.value[0] == np.nanmin(known)
        assert found.describe()
        assert all(row.text for row in sanity.findings(surface))

    def test_files(self, kind, k, tmp_path):
        surface = SURFACES[kind, k]
        surface.save(tmp_path / "a.h5")
        again = Surface.load(tmp_path / "a.h5")
        assert np.array_equal(again.metric(), surface.metric(), equal_nan=True)
        if k < 3:
            interchange.write_li_surface(surface, tmp_path / "li.h5")
            assert interchange.read_li_surface(tmp_path / "li.h5").shape == surface.shape
            page = report.page("a", report.surface_sections(surface, "a"), tmp_path / "a.html")
            assert "<html" in page.read_text()
        target = tmp_path / {1: "a.stl", 2: "a.stl", 3: "a.vti"}[k]
        try:
            mesh.export_mesh(surface, target)
        except ValueError as error:
            words = ("cannot export a surface with 1 axes", "two points", "nothing to export", "left at its corners")
            assert any(word in str(error) for word in words)  # noqa: PT017
        else:
            assert target.stat().st_size > 0


SURFACE = SURFACES["normal", 2]
ARRAYS = {
    "nothing": None,
    "a number": 3,
    "a text": "a",
    "no cells": [],
    "complex": np.ones(3) * 1j,
    "ragged": [[1], [1, 2]],
    "texts": ["a", "b"],
}


class TestAnalysis:
    @pytest.mark.parametrize("kind", ARRAYS)
    def test_values(self, kind):
        refuses(lambda: analyze(ARRAYS[kind]), "values")

    def test_float32_keeps_its_rounding(self):
        values = np.linspace(1, 2, 9, dtype=np.float32)
        narrow, wide = (analyze(array).minima.noise for array in (values, values.astype(np.float64)))
        assert (narrow >= wide).all()

    def test_options(self, tmp_path):
        group = {"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.0]}
        for call, words in [
            (lambda: analyze(SURFACE, "zzz"), "no metric 'zzz'; the surface has loss, accuracy"),
            (lambda: analyze(SURFACE, threshold=-1), "threshold must"),
            (lambda: analyze(SURFACE, threshold="a"), "threshold must"),
            (lambda: analyze(SURFACE, neighborhood="x"), "neighborhood must"),
            (lambda: analyze(SURFACE, border=None), "border must"),
            (lambda: figures.plot(None), "surface must be a Surface"),
            (lambda: figures.plot(np.ones((3, 3))), "surface must be a Surface"),
            (lambda: figures.plot_contour(np.ones((3, 3))), "surface must be a Surface"),
            (lambda: figures.figures_of(None), "surface must be a Surface"),
            (lambda: figures.plot(SURFACE, "zzz"), "no metric 'zzz'"),
            (lambda: figures.plot(SURFACE, scale="x"), "scale must"),
            *((lambda v=v: figures.plot_contour(SURFACE, ceiling=v), "ceiling must") for v in (-1, 0, NAN, INF, "a")),
            *((lambda v=v: figures.plot_surface(SURFACE, ceiling=v), "ceiling must") for v in (-1, 0, NAN, INF, "a")),
            *(
                (lambda v=v: mesh.export_mesh(SURFACE, tmp_path / "a.stl", ceiling=v), "ceiling")
                for v in (-1, NAN, "a")
            ),
            *((lambda v=v: mesh.export_mesh(SURFACE, tmp_path / "a.stl", height=v), "height") for v in NO_POSITIVE),
            (lambda: mesh.export_mesh(None, tmp_path / "a.stl"), "surface must be"),
            (lambda: mesh.export_mesh(SURFACE, tmp_path / "a.xyz"), "cannot export"),
            (lambda: SURFACE.save(tmp_path), "is a folder"),
            (lambda: SURFACE.save("/dev/null/x.h5"), "is a file"),
            (lambda: Surface({"x": np.arange(3.0)}, {"loss": np.ones(4)}, np.ones(3, dtype=bool)), r"shape \(4,\)"),
            (lambda: Surface({"x": [0, 1]}, {"loss": [1, 2]}, [True, True]), "loss must be a NumPy array"),
            (lambda: Surface({}, {"loss": np.ones(())}, np.ones((), dtype=bool)), "at least one axis"),
            (lambda: statistics.compare(None), "groups must be"),
            (lambda: statistics.compare({"a": [1.0]}), "two groups"),
            (lambda: statistics.compare({"a": ["x"], "b": ["y"]}), "a must be one list of numbers"),
            (lambda: statistics.compare({"a": [1j], "b": [1j]}), "a must be one list of numbers"),
            *((lambda v=v: statistics.compare(group, level=v), "level must") for v in (0, 1, NAN, "a")),
            *((lambda v=v: statistics.compare(group, n_permutations=v), "n_permutations must") for v in (0, -1, "a")),
            *((lambda v=v: statistics.compare(group, seed=v), "seed must") for v in (-1, "a", 1.5)),
            (lambda: statistics.summarize([[1.0]]), "groups must be"),
            (lambda: statistics.summarize({"a": [NAN]}), "no finite value"),
            *((lambda v=v: statistics.unseen(v), "hit|run") for v in ([0, 0], [-1, 2], [1.5], [NAN], [[1, 2]])),
        ]:
            refuses(call, words)

    @pytest.mark.parametrize(
        ("given", "folder", "words"),
        [
            (None, ".", "figures must be"),
            ([3], ".", "figures must be"),
            ({"a": None}, ".", "figure 'a' must be"),
            ({"a/b": figures.plot(SURFACE)}, ".", "without a folder"),
            ({"../b": figures.plot(SURFACE)}, ".", "without a folder"),
            ({"x" * 300: figures.plot(SURFACE)}, ".", "bytes"),
            ({"a": figures.plot(SURFACE)}, "/dev/null/x", "is a file"),
            ({"a": figures.plot(SURFACE)}, "", "name of a folder"),
        ],
    )
    def test_saving_figures(self, given, folder, words):
        refuses(lambda: figures.save_figures(given, folder, ["html"]), words)

    def test_formats_and_odd_names(self, tmp_path):
        drawn = {"a:b#c? ü": figures.plot(SURFACE)}
        refuses(lambda: figures.save_figures(drawn, tmp_path, ["pdf"]), "formats must be")
        assert figures.save_figures(drawn, tmp_path, ["html"])[0].exists()


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Studies of one run, of runs that all diverged, and of a few."""
    folder = tmp_path_factory.mktemp("studies")
    jobs = {
        "one": ({"adam": {"epochs": 1}}, 1, X),
        "diverged": ({"gd": {"epochs": 3}}, 2, X * NAN),
        "few": ({"adam": {"epochs": 1}, "gd": {"epochs": 1}}, 2, X),
    }
    return {
        name: landscape.run_restarts(
            net, (x, Y), folder / f"{name}.h5", settings=given, seeds=seeds, penalty=1e-2, progress=False
        )
        for name, (given, seeds, x) in jobs.items()
    }


class TestStudies:
    @pytest.mark.parametrize("kind", ["one", "diverged", "few"])
    def test_every_table_and_figure(self, studies, kind, tmp_path):
        found = compare_studies({"s": studies[kind]})
        for finding in found:
            assert finding.figure is None or finding.figure.to_json()
        assert report.page("s", report.study_sections(found), tmp_path / "a.html").exists()
        assert np.isnan(studies["diverged"].final()).all()

    def test_minima_of_one_run(self, studies, tmp_path):
        catalog = landscape.survey_minima(
            studies["one"], net(), (X, Y), tmp_path / "c.h5", max_steps=300, progress=False
        )
        assert len(catalog.table()) <= 1
        assert all(f.figure is None or f.figure.to_json() for f in compare_studies({"s": studies["one"]}, [catalog]))

    @table(
        {
            "study": [(3, "study must be")],
            "network": [(3, "model must be"), (net(width=5), "not those of the study")],
            "data": [(None, "got NoneType"), ((X + 1, Y), "training_data"), ((X, Y + 5), "a target is 5")],
            "path": [(".", "is a folder"), (3, "path of a file")],
            "runs": [
                ([], "0 runs chosen"),
                ([99], "no run 99"),
                ([-1], "a run|no run"),
                (["a"], "a run must be"),
                (3, "runs must be"),
                ([0.5], "a run must be"),
            ],
            "relation": [("x", "relation must be")],
            "tolerance": [(v, "tolerance must be") for v in (0, "a", NAN)],
            "gtol": [(v, "gtol must be") for v in (0, "a")],
            "max_steps": [(0, "max_steps must be")],
            "max_escapes": [(v, "max_escapes must be") for v in (-1, "a")],
            "batch": [(v, "batch must be") for v in (0, "a")],
        }
    )
    def test_options_of_a_survey(self, studies, tmp_path, name, value, words):
        arguments = {"study": studies["few"], "network": net(), "data": (X, Y), "path": tmp_path / "c.h5", name: value}
        refuses(lambda: landscape.survey_minima(**{"max_steps": 2, "progress": False, **arguments}), words)

    def test_runs_that_all_diverged(self, studies, tmp_path):
        call = lambda: landscape.survey_minima(  # noqa: E731
            studies["diverged"], net(), (X * NAN, Y), tmp_path / "c.h5", progress=False
        )
        refuses(call, "all of them diverged")

    def test_what_is_no_study(self, studies):
        refuses(lambda: compare_studies({}), "at least one study")
        refuses(lambda: compare_studies({"a": 3}), "study 'a' must be")
        refuses(lambda: compare_studies({"a": studies["few"]}, level=2), "level must")
        refuses(lambda: studies["few"].final("zzz"), "no metric 'zzz'")

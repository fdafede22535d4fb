import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.models import build, layers, names
from landscape.models.mlp import Maxout, Step
from landscape.models.recurrent import RecurrentLayer
from landscape.models.transformer import EncoderLayer
from landscape.models.vgg import vgg

# Every family and every choice that changes its structure, small.
NETWORKS = {
    "softmax": ("mlp", {"widths": []}),
    "mlp-step": ("mlp", {"widths": [6, 5], "activation": "step"}),
    "mlp-sigmoid": ("mlp", {"widths": [6, 5], "activation": "sigmoid"}),
    "mlp-tanh": ("mlp", {"init_scale": 1.5}),
    "mlp-relu": ("mlp", {"widths": [6, 5], "activation": "relu"}),
    "mlp-gelu": ("mlp", {"widths": [6, 5], "activation": "gelu"}),
    "mlp-maxout": ("mlp", {"widths": [6, 5], "activation": "maxout"}),
    "mlp-identity": ("mlp", {"widths": [6, 5], "activation": "identity"}),
    "mlp-dropout": ("mlp", {"widths": [6, 5], "dropout": 0.1}),
    "lenet-tanh": ("lenet", {"activation": "tanh", "pool": "average"}),
    "lenet-relu": ("lenet", {"activation": "relu", "pool": "max"}),
    "resnet": ("resnet", {"depth": 8, "width": 4, "skip": True, "norm": "batch"}),
    "resnet-plain": ("resnet", {"depth": 20, "width": 4, "skip": False, "norm": "none"}),
    "vgg": ("vgg", {"depth": 9, "width": 4, "norm": "batch"}),
    "vgg-plain": ("vgg", {"depth": 11, "width": 4, "norm": "none"}),
    "rnn": ("recurrent", {"cell": "rnn", "hidden": 6}),
    "gru": ("recurrent", {"cell": "gru", "hidden": 6, "layers": 2}),
    "lstm": ("recurrent", {"cell": "lstm", "hidden": 6, "layers": 1}),
    "transformer": ("transformer", {"width": 8, "heads": 2, "layers": 1}),
}
SMOOTH = [
    "softmax",
    "mlp-sigmoid",
    "mlp-tanh",
    "mlp-gelu",
    "mlp-identity",
    "lenet-tanh",
    "rnn",
    "gru",
    "lstm",
    "transformer",
]
every_network = pytest.mark.parametrize("key", NETWORKS)


def make(key, input_shape=(1, 8, 8), classes=3, seed=0):
    name, arguments = NETWORKS[key]
    return build(name, seed=seed, input_shape=input_shape, classes=classes, **arguments)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(n, classes=3):
    return torch.arange(n) % classes


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def n_parameters(network):
    return sum(p.numel() for p in network.parameters())


def logits_of(network, theta, x):
    """The network as a function of one flat vector."""
    shapes = [(key, p.shape) for key, p in network.named_parameters()]
    pieces = theta.split([shape.numel() for _, shape in shapes])
    return functional_call(network, {k: t.view(s) for (k, s), t in zip(shapes, pieces, strict=True)}, (x,))


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# --- build -----------------------------------------------------------------------------------------


def test_every_family_is_in_the_table():
    assert {name for name, _ in NETWORKS.values()} == set(names())


@every_network
def test_arguments_survive_json(key):
    name, arguments = NETWORKS[key]
    arguments = {"input_shape": (1, 8, 8), "classes": 3, **arguments}
    network = build(name, seed=1, **arguments)
    again = build(name, seed=1, **json.loads(json.dumps(arguments)))
    other = build(name, seed=2, **json.loads(json.dumps(arguments)))
    assert same_state(network, again)
    assert not same_state(network, other)
    other.load_state_dict(network.state_dict())
    x = noise(4, 1, 8, 8, dtype=torch.float32)
    assert torch.equal(network.eval()(x), other.eval()(x))


@every_network
def test_seed_decides_the_weights_and_leaves_the_callers_random_numbers_alone(key):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    network = make(key, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(321)
    assert same_state(network, make(key, seed=5))
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in make(key, seed=6).parameters() if p.ndim > 1]
    assert all(not torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_without_a_seed_the_callers_random_numbers_are_used():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first, second = (build("mlp", input_shape=(2,), classes=2) for _ in range(2))
        torch.manual_seed(7)
        assert same_state(first, build("mlp", input_shape=(2,), classes=2))
    assert not same_state(first, second)


def test_build_ignores_the_default_device():
    with torch.device("meta"):
        network = build("mlp", input_shape=(2,), classes=2, seed=0)
    assert {p.device.type for p in network.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("resnett", {}, ValueError, ["resnett", "did you mean 'resnet'", "mlp", "transformer"]),
        ("resnet", {"dept": 20}, TypeError, ["'dept'", "did you mean 'depth'", "norm='batch'"]),
        ("lenet", {"classes": 10}, TypeError, ["needs input_shape", "pool='max'"]),
        ("lenet", {}, TypeError, ["needs input_shape and classes"]),
        ("mlp", {"input_shape": 64, "classes": 2}, TypeError, ["input_shape", "64"]),
        ("mlp", {"input_shape": [], "classes": 2}, ValueError, ["input_shape"]),
        ("mlp", {"input_shape": [2], "classes": 0}, ValueError, ["classes", "at least 1", "0"]),
        ("mlp", {"input_shape": [2], "classes": 2.0}, TypeError, ["classes", "2.0"]),
        ("mlp", {"input_shape": [2], "classes": 2, "widths": [3, -1]}, ValueError, ["width", "-1"]),
        ("mlp", {"input_shape": [2], "classes": 2, "widths": 10}, TypeError, ["widths", "(10, 10)"]),
        ("mlp", {"input_shape": [2], "classes": 2, "activation": "sigmoyd"}, ValueError, ["'sigmoid'", "gelu"]),
        ("mlp", {"input_shape": [2], "classes": 2, "init_scale": -1}, ValueError, ["init_scale", "-1"]),
        ("mlp", {"input_shape": [2], "classes": 2, "init_scale": math.nan}, ValueError, ["init_scale", "nan"]),
        ("mlp", {"input_shape": [2], "classes": 2, "dropout": 1.0}, ValueError, ["dropout", "1.0"]),
        ("lenet", {"input_shape": [64], "classes": 2}, ValueError, ["(channels, height, width)", "(64,)"]),
        ("lenet", {"input_shape": [1, 3, 8], "classes": 2}, ValueError, ["4 x 4", "3 x 8"]),
        ("lenet", {"input_shape": [1, 8, 8], "classes": 2, "pool": "avg"}, ValueError, ["max, average"]),
        ("lenet", {"input_shape": [1, 8, 8], "classes": 2, "activation": "gelu"}, ValueError, ["tanh, relu"]),
        ("resnet", {"depth": 21}, ValueError, ["6 n + 2", "21", "20"]),
        ("resnet", {"depth": 2}, ValueError, ["at least 8"]),
        ("resnet", {"norm": "layer"}, ValueError, ["batch, none"]),
        ("resnet", {"skip": "no"}, TypeError, ["skip", "'no'"]),
        ("vgg", {"input_shape": [1, 8, 8], "classes": 2, "depth": 10}, ValueError, ["9, 11, 13", "10"]),
        ("recurrent", {"input_shape": [1, 8, 8], "classes": 2, "cell": "gr"}, ValueError, ["'gru'", "lstm"]),
        ("transformer", {"input_shape": [1, 8, 8], "classes": 2, "heads": 5}, ValueError, ["32", "5 heads"]),
    ],
)
def test_mistakes_are_named_with_the_choices(name, arguments, error, words):
    with pytest.raises(error) as caught:
        build(name, **arguments)
    for word in words:
        assert word in str(caught.value)


# --- what all networks promise ---------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 12)])
def test_logits_have_shape_batch_by_classes(key, input_shape):
    network = make(key, input_shape, classes=7)
    x = noise(2, *input_shape, dtype=torch.float32)
    assert network(x).shape == (2, 7)
    assert network(x).isfinite().all()


@every_network
def test_input_is_left_unchanged(key):
    network, x = make(key), noise(4, 1, 8, 8, dtype=torch.float32)
    before = x.clone()
    for training in (True, False):
        network.train(training)(x)
        assert torch.equal(x, before)


class MutatingOperations(TorchDispatchMode):
    """Collects the operations that write into an existing tensor."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._schema.is_mutable:
            self.found.append(str(operation))
        return operation(*args, **(kwargs or {}))


@every_network
def test_nothing_is_done_in_place(key):
    network, x = make(key).eval(), noise(4, 1, 8, 8, dtype=torch.float32)
    with MutatingOperations() as operations:
        network(x)
    assert operations.found == []


def test_an_operation_in_place_would_be_found():
    with MutatingOperations() as operations:
        torch.relu_(torch.zeros(2) + 1)
    assert operations.found == ["aten.relu_.default"]


@every_network
def test_in_evaluation_mode_samples_are_independent_in_float64(key):
    network, x = make(key).double(), noise(5, 1, 8, 8)
    network(x)  # moves the running statistics away from their initial values
    network.eval()
    together = network(x)
    alone = torch.cat([network(sample[None]) for sample in x])
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 0


@every_network
def test_training_and_evaluation_mode_differ_only_by_dropout_and_batch_norm(key):
    network, x = make(key).double(), noise(5, 1, 8, 8)
    a, b = network.train()(x), network.eval()(x)
    random = any(isinstance(module, nn.Dropout | nn.BatchNorm2d) for module in network.modules())
    assert torch.equal(a, b) != random


@every_network
def test_functional_call_uses_the_given_parameters(key):
    network, other, x = make(key).eval(), make(key, seed=1).eval(), noise(4, 1, 8, 8, dtype=torch.float32)
    called = functional_call(network, dict(other.named_parameters()), (x,))
    torch.testing.assert_close(called, other(x))
    assert not torch.allclose(called, network(x))


@every_network
def test_vmap_over_parameters_equals_a_loop(key):
    networks = [make(key, seed=seed).double().eval() for seed in range(3)]
    x = noise(4, 1, 8, 8)
    parameters, buffers = stack_module_state(networks)
    stacked = vmap(lambda p, b: functional_call(networks[0], (p, b), (x,)))(parameters, buffers)
    looped = torch.stack([network(x) for network in networks])
    torch.testing.assert_close(stacked, looped, rtol=1e-10, atol=1e-12)


def gradient_and_product(network, theta, v, x, y):
    theta = theta.clone().requires_grad_()
    loss = F.cross_entropy(logits_of(network, theta, x), y)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ v, theta)
    return gradient.detach(), product


@every_network
def test_second_derivatives_exist_and_are_symmetric(key):
    network, x, y = make(key).double().eval(), noise(4, 1, 8, 8), labels(4)
    theta = flat(network)
    u, v = noise(len(theta), seed=1), noise(len(theta), seed=2)
    _, hu = gradient_and_product(network, theta, u, x, y)
    _, hv = gradient_and_product(network, theta, v, x, y)
    assert hu.norm() > 0
    torch.testing.assert_close(v @ hu, u @ hv, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("key", SMOOTH)
def test_hessian_vector_product_equals_a_difference_of_gradients(key):
    network, x, y = make(key).double(), noise(4, 1, 8, 8), labels(4)
    theta = flat(network)
    v = noise(len(theta), seed=1)
    v /= v.norm()
    eps = 1e-4
    _, product = gradient_and_product(network, theta, v, x, y)
    plus, _ = gradient_and_product(network, theta + eps * v, v, x, y)
    minus, _ = gradient_and_product(network, theta - eps * v, v, x, y)
    difference = (plus - minus) / (2 * eps)
    assert (product - difference).norm() < 1e-6 * product.norm()


@every_network
def test_adam_reduces_the_loss(key):
    network, x, y = make(key), noise(12, 1, 8, 8, dtype=torch.float32), labels(12)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for dropout
        losses = []
        for _ in range(100):
            loss = F.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


# --- mlp -------------------------------------------------------------------------------------------

FORMULAS = {
    "step": lambda z: np.where(z > 0, 1.0, 0.0),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": lambda z: (np.exp(z) - np.exp(-z)) / (np.exp(z) + np.exp(-z)),
    "relu": lambda z: np.where(z > 0, z, 0.0),
    "gelu": lambda z: z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2,
    "identity": lambda z: z,
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_mlp_is_the_textbook_formula(activation):
    network = build("mlp", seed=3, input_shape=(2, 3), classes=4, widths=[5, 7], activation=activation).double()
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(noise(*p.shape, seed=i))
    x = noise(6, 2, 3)
    h = x.numpy().reshape(6, 6)
    w0, b0, w1, b1, w2, b2 = (p.detach().numpy() for p in network.parameters())
    h = FORMULAS[activation](h @ w0.T + b0)
    h = FORMULAS[activation](h @ w1.T + b1)
    np.testing.assert_allclose(network(x).detach().numpy(), h @ w2.T + b2, rtol=1e-12)


def test_maxout_is_the_larger_of_two_linear_functions():
    layer, x = Maxout(3, 2).double(), noise(5, 3)
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(noise(*p.shape, seed=i))
    w1, w0, v1, v0 = (p.detach().numpy() for p in layer.parameters())
    expected = np.maximum(w0 + x.numpy() @ w1.T, v0 + x.numpy() @ v1.T)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-13)
    chosen = {bool(c) for c in (layer.first(x) > layer.second(x)).flatten()}
    assert chosen == {True, False}


def test_step_is_0_at_0_and_has_gradient_0():
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0, math.inf], requires_grad=True)
    y = Step()(x)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [0] * 6


def test_mlp_structure_is_flatten_linear_activation():
    def kinds(**arguments):
        return [type(m) for m in build("mlp", input_shape=(1, 8, 8), classes=3, **arguments)]

    assert kinds(widths=[]) == [nn.Flatten, nn.Linear]
    assert kinds(widths=[4, 5], activation="step") == [
        nn.Flatten,
        *[nn.Linear, Step],
        *[nn.Linear, Step],
        nn.Linear,
    ]
    assert kinds(widths=[4], activation="maxout") == [nn.Flatten, Maxout, nn.Linear]
    assert kinds(widths=[4], dropout=0.5) == [nn.Flatten, nn.Linear, nn.Tanh, nn.Dropout, nn.Linear]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 5),
    st.lists(st.integers(1, 6), max_size=4),
    st.sampled_from(["tanh", "maxout"]),
)
def test_mlp_of_any_shape(input_shape, classes, widths, activation):
    network = build("mlp", input_shape=input_shape, classes=classes, widths=widths, activation=activation)
    assert network(torch.zeros(3, *input_shape)).shape == (3, classes)
    sizes = [math.prod(input_shape), *widths]
    pieces = 2 if activation == "maxout" else 1
    hidden = sum(pieces * (a + 1) * b for a, b in pairwise(sizes))
    assert n_parameters(network) == hidden + (sizes[-1] + 1) * classes


@pytest.mark.parametrize("activation", ["tanh", "relu", "maxout"])
def test_init_scale_multiplies_all_weights(activation):
    one, three = (
        build("mlp", seed=0, input_shape=(4,), classes=2, activation=activation, init_scale=scale)
        for scale in (1.0, 3.0)
    )
    torch.testing.assert_close(flat(three), 3 * flat(one), rtol=1e-6, atol=0)
    assert all(torch.equal(p, torch.zeros_like(p)) for p in one.parameters() if p.ndim == 1)


def test_dropout_has_the_given_probability():
    network = build("mlp", seed=0, input_shape=(4,), classes=2, widths=[20_000], dropout=0.3)
    hidden = network[:-1](noise(1, 4, dtype=torch.float32))
    assert (hidden == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)


# --- initialization --------------------------------------------------------------------------------


@given(st.integers(1, 12), st.sampled_from([1, 3, 5]), st.integers(1, 3))
def test_mean_taps_counts_kernel_entries_on_the_image(pixels, kernel, stride):
    ones = torch.ones(1, 1, pixels), torch.ones(1, 1, kernel)
    counted = F.conv1d(*ones, stride=stride, padding=kernel // 2).mean().item()
    assert layers.mean_taps(pixels, kernel, stride, kernel // 2) == pytest.approx(counted)


@pytest.mark.parametrize(
    ("activation", "variance"),
    [("tanh", 2 / 1000), ("sigmoid", 2 / 1000), ("relu", 2 / 400), ("gelu", 2 / 400), ("maxout", 1 / 400)],
)
def test_weights_have_the_documented_variance(activation, variance):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight = layers.linear(400, 600, activation).weight
        kernel = layers.convolution(100, 150, 2, (8, 8), activation, stride=2).weight  # the same fans
    for tensor in (weight, kernel):
        assert tensor.var().item() == pytest.approx(variance, rel=0.03)
        assert abs(tensor.mean().item()) < 5 * math.sqrt(variance / tensor.numel())


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("depth", [20, 56])
def test_signals_keep_their_size_through_a_resnet_without_normalization(depth, skip):
    network = build("resnet", seed=0, depth=depth, input_shape=(1, 8, 8), skip=skip, norm="none")
    assert 0.05 < network(noise(16, 1, 8, 8, dtype=torch.float32)).std().item() < 20


# --- convolutional families ------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [28, 32])
def test_lenet_has_the_size_of_lenet_5_with_full_connections(pixels):
    convolutions = (25 + 1) * 6 + (6 * 25 + 1) * 16
    dense = (16 * 5 * 5 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10
    assert convolutions + dense == 61_706
    assert n_parameters(build("lenet", input_shape=(1, pixels, pixels), classes=10)) == 61_706


@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(("pixels", "paddings"), [(8, (2, 2)), (28, (2, 0)), (32, (0, 0))])
def test_lenet_in_plain_operations(pixels, paddings, activation, pool):
    network = build(
        "lenet", seed=0, input_shape=(2, pixels, pixels), classes=5, activation=activation, pool=pool
    ).double()
    act = {"tanh": torch.tanh, "relu": torch.relu}[activation]
    x = h = noise(3, 2, pixels, pixels)
    tensors = iter(network.parameters())
    for padding in paddings:
        h = act(F.conv2d(h, next(tensors), next(tensors), padding=padding))
        corners = torch.stack([h[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])
        h = corners.amax(dim=0) if pool == "max" else corners.mean(dim=0)
    h = h.flatten(1)
    for _ in range(2):
        h = act(F.linear(h, next(tensors), next(tensors)))
    weight, bias = tensors
    torch.testing.assert_close(network(x), h @ weight.T + bias, rtol=1e-10, atol=1e-12)


def resnet_size(depth):
    """Layer by layer, with batch norm's scale and shift, option A."""
    n = (depth - 2) // 6
    total = 3 * 9 * 16 + 2 * 16
    for n_in, n_out in ((16, 16), (16, 32), (32, 64)):
        total += n_in * 9 * n_out + (2 * n - 1) * n_out * 9 * n_out + 2 * n * 2 * n_out
    return total + 64 * 10 + 10


@pytest.mark.parametrize(("depth", "published"), [(20, 0.27e6), (56, 0.85e6), (110, 1.7e6)])
def test_resnet_has_the_published_size(depth, published):
    network, plain = build("resnet", depth=depth), build("resnet", depth=depth, skip=False)
    assert n_parameters(network) == resnet_size(depth)
    assert resnet_size(20) == 269_722
    assert resnet_size(depth) == pytest.approx(published, rel=0.02)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == depth
    plain.load_state_dict(network.state_dict())


def test_resnet_in_plain_operations():
    network = build("resnet", seed=0, depth=14, input_shape=(3, 9, 8), width=2, classes=5).double()
    x = noise(4, 3, 9, 8)
    network(x)
    network.eval()
    state = {key: t for key, t in network.state_dict().items() if not key.endswith("tracked")}
    tensors = iter(state.values())

    def convolve(x, stride=1):
        x = F.conv2d(x, next(tensors), stride=stride, padding=1)
        scale, shift, mean, variance = (next(tensors)[:, None, None] for _ in range(4))
        return scale * (x - mean) / torch.sqrt(variance + 1e-5) + shift

    h = convolve(x).relu()
    for stride in (1, 1, 2, 1, 2, 1):
        branch = convolve(convolve(h, stride).relu())
        if stride == 2:
            h = torch.cat([h[:, :, ::2, ::2], torch.zeros_like(h[:, :, ::2, ::2])], dim=1)
        h = (h + branch).relu()
    weight, bias = tensors
    torch.testing.assert_close(network(x), h.mean(dim=(2, 3)) @ weight.T + bias, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("skip", [True, False])
def test_only_shortcuts_carry_a_signal_past_dead_branches(skip):
    network = build("resnet", seed=0, depth=14, input_shape=(3, 8, 8), width=4, skip=skip, norm="none").double()
    with torch.no_grad():
        for block in network[2:-3]:
            for p in block.parameters():
                p.zero_()
        network[-1].bias.copy_(noise(10))
    x = noise(2, 3, 8, 8)
    features = torch.zeros(2, 16, dtype=torch.float64)
    if skip:
        features[:, :4] = network[0](x).relu()[:, :, ::4, ::4].mean(dim=(2, 3))
    torch.testing.assert_close(network(x), features @ network[-1].weight.T + network[-1].bias)


@pytest.mark.parametrize(("depth", "published"), [(16, 14_714_688), (19, 20_024_384)])
def test_vgg_convolutions_have_the_published_size(depth, published):
    with torch.device("meta"):
        network = vgg((3, 32, 32), 10, depth=depth, norm="none")
    convolutions = [m for m in network if isinstance(m, nn.Conv2d)]
    assert sum(p.numel() for m in convolutions for p in m.parameters()) == published


@pytest.mark.parametrize("depth", [9, 11, 13, 16, 19])
@pytest.mark.parametrize(
    ("pixels", "n_pools"),
    [(1, 0), (8, 3), (28, 4), (64, 5)],  # 28 -> 14 -> 7 -> 3 -> 1
)
def test_vgg_has_depth_weight_layers_and_pools_down_to_one_pixel(depth, pixels, n_pools):
    with torch.device("meta"):
        network = vgg((1, pixels, pixels), classes=3, depth=depth, width=2)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network) == depth
    assert sum(isinstance(m, nn.MaxPool2d) for m in network) == min(n_pools, 3 if depth == 9 else 5)
    assert network(torch.empty(4, 1, pixels, pixels, device="meta")).shape == (4, 3)


# --- sequence families -----------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "oracle"), [("rnn", nn.RNN), ("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_layer_equals_pytorch(cell, oracle):
    layer, expected = RecurrentLayer(5, 4, cell).double(), oracle(5, 4, batch_first=True).double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(noise(*p.shape, seed=i))
        expected.weight_ih_l0.copy_(layer.from_input.weight)
        expected.bias_ih_l0.copy_(layer.from_input.bias)
        expected.weight_hh_l0.copy_(layer.from_hidden.weight)
        expected.bias_hh_l0.zero_()
    x = noise(3, 6, 5)
    torch.testing.assert_close(layer(x), expected(x)[0], rtol=1e-12, atol=1e-12)


def test_recurrent_reads_rows_from_the_top_with_channels_side_by_side():
    network, x = build("recurrent", seed=0, input_shape=(2, 4, 3), classes=5, layers=2).double(), noise(2, 2, 4, 3)
    h = torch.stack([torch.cat([x[:, 0, i], x[:, 1, i]], dim=-1) for i in range(4)], dim=1)
    for layer in network.layers:
        h = layer(h)
    torch.testing.assert_close(network(x), network.readout(h[:, 3]))


def test_lstm_starts_with_an_open_forget_gate_and_orthogonal_recurrence():
    layer = RecurrentLayer(5, 4, "lstm")
    assert layer.from_input.bias.tolist() == [0] * 4 + [1] * 4 + [0] * 8
    for gate in layer.from_hidden.weight.detach().split(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(4))


def test_encoder_layer_equals_pytorch():
    layer = EncoderLayer(8, 2).double()
    expected = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=32, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    ).double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(noise(*p.shape, seed=i))
        expected.self_attn.in_proj_bias.zero_()
        theirs = "norm1.weight norm1.bias self_attn.in_proj_weight"
        theirs += " self_attn.out_proj.weight self_attn.out_proj.bias norm2.weight norm2.bias"
        theirs += " linear1.weight linear1.bias linear2.weight linear2.bias"
        for name, p in zip(theirs.split(), layer.parameters(), strict=True):
            expected.get_parameter(name).copy_(p)
    x = noise(3, 5, 8)
    torch.testing.assert_close(layer(x), expected(x), rtol=1e-10, atol=1e-10)


def test_transformer_without_positions_does_not_see_the_order_of_rows():
    network, x = build("transformer", seed=0, input_shape=(2, 6, 3), classes=4).double(), noise(2, 2, 6, 3)
    turned = x.flip(2)
    assert (network(x) - network(turned)).abs().max() > 1e-6
    with torch.no_grad():
        network.position.zero_()
    torch.testing.assert_close(network(x), network(turned), rtol=1e-10, atol=1e-12)

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from landscape.models import build
from landscape.symmetry import Matcher, align, match, symmetries

FAMILIES = [
    *(
        ("mlp", {"input_shape": (2,), "classes": 3, "widths": [3, 4], "activation": name})
        for name in ("step", "sigmoid", "tanh", "relu", "gelu", "maxout", "identity")
    ),
    ("mlp", {"input_shape": (1, 2, 2), "classes": 2, "widths": [5], "dropout": 0.3}),
    *(
        ("lenet", {"input_shape": (1, 8, 8), "classes": 3, "activation": activation, "pool": pool})
        for activation, pool in itertools.product(("tanh", "relu"), ("max", "average"))
    ),
    *(
        ("resnet", {"depth": 8, "input_shape": (3, 6, 6), "width": 3, "skip": skip, "norm": norm})
        for skip, norm in itertools.product((True, False), ("batch", "none"))
    ),
    ("resnet", {"depth": 14, "input_shape": (1, 5, 4), "width": 2}),
    *(("vgg", {"input_shape": (3, 8, 8), "classes": 3, "width": 2, "norm": norm}) for norm in ("batch", "none")),
    ("transformer", {"input_shape": (1, 4, 4), "classes": 3, "width": 8, "heads": 2}),
]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_network(model, seed=0):
    """The network in float64, evaluation mode, with parameters and statistics that are not special."""
    model = model.double().eval()
    with torch.no_grad():
        for i, tensor in enumerate([*model.parameters(), *model.buffers()]):
            if tensor.is_floating_point():
                tensor.add_(0.2 * noise(*tensor.shape, seed=seed + i))
                if tensor.ndim == 1:
                    tensor.abs_().add_(0.1)
    return model


def moved_outputs(model, found, x, transformation):
    theta = found.layout.flatten(dict(model.named_parameters()), torch.float64)
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    tensors = {
        **found.layout.unflatten(found.transform(theta, *transformation)),
        **found.transform_buffers(buffers, *transformation),
    }
    return functional_call(model, tensors, (x,))


def assert_invariant(model, found, x):
    """Random transformations, and each kind of freedom alone, move theta and leave the outputs."""
    theta = found.layout.flatten(dict(model.named_parameters()), torch.float64)
    expected, same = model(x), found.identity()
    for seed in range(3):
        drawn = found.draw(seed)
        for alone in (
            drawn,
            drawn._replace(scales=same.scales),
            drawn._replace(permutations=same.permutations),
        ):
            torch.testing.assert_close(moved_outputs(model, found, x, alone), expected, rtol=1e-10, atol=1e-10)
    assert any(not torch.equal(found.random(theta, seed), theta) for seed in range(3))


@pytest.mark.parametrize(("name", "arguments"), FAMILIES)
def test_a_random_transformation_leaves_the_outputs(name, arguments):
    model = random_network(build(name, seed=0, **arguments))
    x = noise(4, *arguments["input_shape"], seed=9)
    found = symmetries(model, x)
    assert not any("claimed" in note for note in found.notes)
    assert found.groups
    assert_invariant(model, found, x)


def sizes(found):
    return sorted(group.size for group in found.groups if group.permutable)


def freedoms(found):
    return {(gain.signs, gain.scales) for gain in found.gains}


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("sigmoid", set()),
        ("gelu", set()),
        ("step", set()),
        ("tanh", {(True, False)}),
        ("relu", {(False, True)}),
        ("maxout", {(False, True)}),
        ("identity", {(True, True)}),
    ],
)
def test_the_activation_decides_on_signs_and_scales(activation, expected):
    model = build("mlp", seed=0, input_shape=(2,), classes=2, widths=[3, 4], activation=activation)
    found = symmetries(model, torch.randn(3, 2))
    assert sizes(found) == [3, 4]
    assert freedoms(found) == expected
    n_signs = 7 if (True, False) in expected or (True, True) in expected else 0
    assert found.order() == pytest.approx(math.log(6 * 24 * 2**n_signs))


def test_xor_has_eight_symmetries():
    found = symmetries(build("mlp", seed=0, input_shape=(2,), classes=1, widths=[2]), torch.zeros(1, 2))
    assert math.exp(found.order()) == pytest.approx(8)
    assert found.describe().splitlines()[0] == "8 discrete symmetries, 0 free scales"
    theta = noise(9)
    assert len({tuple(found.random(theta, seed).tolist()) for seed in range(200)}) == 8


def test_pooling_decides_on_the_signs_of_channels():
    for pool, n_signed in (("max", 2), ("average", 4)):
        found = symmetries(build("lenet", seed=0, input_shape=(1, 8, 8), classes=3, pool=pool), torch.randn(2, 1, 8, 8))
        assert sizes(found) == [6, 16, 84, 120]
        assert sum(gain.signs for gain in found.gains) == n_signed


def test_a_flattened_channel_owns_a_block_of_inputs():
    model = build("lenet", seed=0, input_shape=(1, 8, 8), classes=3)
    found = symmetries(model, torch.randn(2, 1, 8, 8))
    (place,) = [p for g in found.groups for p in g.places if p.name == "7.weight" and p.axis == 1]
    np.testing.assert_array_equal(place.index, np.arange(64).reshape(16, 4))


def test_shortcuts_tie_the_units_of_all_stages():
    model = build("resnet", seed=0, depth=8, input_shape=(3, 6, 6), width=3, norm="none")
    found = symmetries(model, torch.randn(2, 3, 6, 6))
    # the stream has 3 + 3 + 6 channels that appear one stage after the other; each block has units inside
    assert sizes(found) == sorted([3, 3, 6, 3, 6, 12])
    without = symmetries(build("resnet", depth=8, input_shape=(3, 6, 6), width=3, skip=False), torch.randn(2, 3, 6, 6))
    assert sizes(without) == sorted([3, 3, 3, 6, 6, 12, 12])


def test_signs_before_a_batch_norm_take_its_mean_and_weight_along():
    model = random_network(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2)))
    x = noise(3, 2, 6, 6)
    found = symmetries(model, x)
    assert freedoms(found) == {(True, False), (False, True)}
    assert_invariant(model, found, x)
    # in training mode, with the statistics of the batch, it is one, too
    transformation = found.draw(0)
    moved = moved_outputs(model.train(), found, x, transformation)
    torch.testing.assert_close(moved, model(x), rtol=1e-10, atol=1e-10)


class Branches(nn.Module):
    """Halves of the channels that go different ways and are added up again: equal places, unequal parts."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        a, b = F.relu(h[:, :2]), torch.tanh(h[:, 2:])
        return self.last(F.pad(a, (0, 2)) + F.pad(b, (2, 0)))


class Tied(nn.Module):
    """One weight used twice, so that inner units are those of both uses."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.inner(torch.tanh(self.inner(torch.tanh(self.first(x)))))))


class Scaled(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, 5), nn.Linear(5, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.squeeze, self.excite, self.last = (
            nn.Conv2d(2, 4, 3), nn.Linear(4, 3), nn.Linear(3, 4), nn.Conv2d(4, 2, 1),
        )  # fmt: skip

    def forward(self, x):
        h = torch.relu(self.first(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(h.mean(dim=(2, 3), keepdim=True).flatten(1)))))
        return self.last(h * gate.unflatten(1, (4, 1, 1))).flatten(1)


CUSTOM = {
    "branches": (Branches, (3,), [2, 2]),
    "tied": (Tied, (3,), [4]),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1)
        ),
        (2, 5, 5),
        [4],
    ),
    "grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)
        ),
        (2, 5, 5),
        [3, 3],
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        (2, 4, 4),
        [3, 3],
    ),
    "norm without weights": (
        lambda: nn.Sequential(nn.Linear(3, 6), nn.GroupNorm(3, 6, affine=False), nn.Tanh(), nn.Linear(6, 2)),
        (3,),
        [2, 2, 2],
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)), (3,), [6]),
    "batch norm after flatten": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 2)),
        (1, 3, 3),
        [3],
    ),
    "squeeze and excite": (SqueezeExcite, (2, 5, 5), [3]),
    "square": (lambda: Scaled(lambda h: h * h), (3,), [5]),
    "twice": (lambda: Scaled(lambda h: torch.cat([torch.relu(h), torch.relu(-h)], 1)[:, :5]), (3,), [5]),
    "shifted": (lambda: Scaled(lambda h: torch.tanh(h + 1)), (3,), [5]),
    "inverse": (lambda: Scaled(lambda h: 1 / (h * h + 1)), (3,), [5]),
    "hardtanh": (lambda: Scaled(nn.Hardtanh(-2, 2)), (3,), [5]),
    "lopsided hardtanh": (lambda: Scaled(nn.Hardtanh(-1, 2)), (3,), [5]),
    "sorted": (lambda: Scaled(lambda h: h.sort(dim=1)[0]), (3,), []),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)),
        (2, 3),
        [4, 5],
    ),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_units_are_followed_through_other_operations(name):
    make, shape, expected = CUSTOM[name]
    torch.manual_seed(0)
    model = random_network(make())
    x = noise(3, *shape)
    found = symmetries(model, x)
    assert not any("claimed" in note for note in found.notes)
    assert sizes(found) == expected
    if found.groups:
        assert_invariant(model, found, x)


def test_signs_are_not_claimed_where_a_function_is_not_odd():
    for name, signs in (("square", False), ("shifted", False), ("hardtanh", True), ("lopsided hardtanh", False)):
        model = random_network(CUSTOM[name][0]())
        assert any(gain.signs for gain in symmetries(model, noise(3, 3)).gains) == signs


def test_what_cannot_be_traced_has_no_symmetry_and_says_why():
    found = symmetries(build("recurrent", seed=0, input_shape=(1, 4, 4), classes=3), torch.randn(2, 1, 4, 4))
    assert found.groups == ()
    assert "cannot be traced" in found.notes[0]
    embedding = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    assert symmetries(embedding, torch.zeros(1, 2, dtype=torch.int64)).groups == ()
    sorted_units = symmetries(CUSTOM["sorted"][0](), torch.randn(2, 3))
    assert any("sort" in note for note in sorted_units.notes)


def test_a_wrong_derivation_is_found_out(monkeypatch):
    monkeypatch.setattr("landscape.symmetry.follow._ODD", {nn.GELU})
    found = symmetries(build("mlp", seed=0, input_shape=(2,), classes=2, activation="gelu"), torch.randn(3, 2))
    assert found.groups == found.gains == ()
    assert "no symmetry is claimed" in found.notes[-1]


def test_units_in_parameters_that_do_not_move_stay_in_place():
    model = build("mlp", seed=0, input_shape=(2,), classes=2, widths=[3, 4])
    found = symmetries(model, torch.randn(3, 2), select=["3.*", "5.*"])
    assert sizes(found) == [4]
    assert found.transform(noise(found.layout.p), *found.draw(0)).shape == (found.layout.p,)


def test_the_model_and_theta_are_not_changed():
    model = build("vgg", seed=0, input_shape=(1, 4, 4), classes=2, width=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = symmetries(model, torch.randn(2, 1, 4, 4))
    theta = noise(found.layout.p)
    copied = theta.clone()
    found.random(theta, 0), found.balance(theta), align(found, theta, theta)
    assert torch.equal(theta, copied)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_seeds_decide():
    found = symmetries(build("mlp", seed=0, input_shape=(2,), classes=2), torch.randn(3, 2))
    theta = noise(found.layout.p)
    assert torch.equal(found.random(theta, 1), found.random(theta, 1))
    assert not torch.equal(found.random(theta, 1), found.random(theta, 2))


def test_what_is_no_symmetry_is_refused():
    found = symmetries(build("mlp", seed=0, input_shape=(2,), classes=1, widths=[2]), torch.zeros(1, 2))
    theta = noise(9)
    with pytest.raises(ValueError, match="expected 1 permutation"):
        found.transform(theta, [])
    with pytest.raises(ValueError, match="none of 0 to 1"):
        found.transform(theta, [np.array([0, 0])])
    with pytest.raises(ValueError, match="must be 1 or -1"):
        found.transform(theta, [np.array([0, 1])], [np.array([1.0, 2.0])])
    with pytest.raises(ValueError, match="scales 0 must be 1"):
        found.transform(theta, [np.array([0, 1])], None, [np.array([1.0, 2.0])])
    relu = symmetries(
        build("mlp", seed=0, input_shape=(2,), classes=1, widths=[2], activation="relu"), torch.zeros(1, 2)
    )
    with pytest.raises(ValueError, match="positive"):
        relu.transform(theta, [np.array([0, 1])], None, [np.array([1.0, -2.0])])


# --- scales ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mlp", {"input_shape": (2,), "classes": 3, "widths": [3, 4], "activation": "relu"}),
        ("resnet", {"depth": 8, "input_shape": (1, 4, 4), "width": 2}),
    ],
)
def test_balancing_takes_all_scalings_to_the_one_of_smallest_norm(name, arguments):
    found = symmetries(build(name, seed=0, **arguments), torch.randn(2, *arguments["input_shape"]))
    theta = noise(found.layout.p)
    balanced = found.balance(theta)
    for seed in range(3):
        scaled = found.transform(theta, found.identity().permutations, None, found.draw(seed).scales)
        torch.testing.assert_close(found.balance(scaled), balanced, rtol=1e-9, atol=1e-9)
        assert scaled.norm() > balanced.norm()
        nearby = found.transform(balanced, found.identity().permutations, None, found.draw(seed).scales)
        assert nearby.norm() > balanced.norm()


def test_balancing_one_hidden_layer_is_a_closed_formula():
    found = symmetries(
        build("mlp", seed=0, input_shape=(2,), classes=2, widths=[3], activation="relu"), torch.zeros(1, 2)
    )
    theta = noise(found.layout.p)
    parts = found.layout.unflatten(found.balance(theta))
    into = parts["1.weight"].square().sum(1) + parts["1.bias"].square()
    torch.testing.assert_close(into, parts["3.weight"].square().sum(0))


def test_a_dead_unit_is_left_alone():
    found = symmetries(
        build("mlp", seed=0, input_shape=(2,), classes=2, widths=[3], activation="relu"), torch.zeros(1, 2)
    )
    theta = noise(found.layout.p)
    found.layout.unflatten(theta)["3.weight"][:, 1] = 0
    balanced = found.balance(theta)
    assert torch.isfinite(balanced).all()
    torch.testing.assert_close(
        found.layout.unflatten(balanced)["1.weight"][1], found.layout.unflatten(theta)["1.weight"][1]
    )


# --- alignment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arguments"), FAMILIES)
def test_a_symmetric_copy_is_brought_back(name, arguments):
    found = symmetries(build(name, seed=0, **arguments), torch.randn(2, *arguments["input_shape"]))
    for seed in range(3):
        theta = noise(found.layout.p, seed=seed)
        brought = align(found, theta, found.random(theta, seed))
        assert (brought - theta).norm() < 1e-9 * theta.norm()


def test_a_copy_of_a_deep_network_is_brought_back():
    found = symmetries(build("mlp", seed=0, input_shape=(3,), classes=2, widths=[12] * 6), torch.zeros(1, 3))
    for seed in range(5):
        theta = noise(found.layout.p, seed=seed)
        assert (align(found, theta, found.random(theta, seed)) - theta).norm() < 1e-9 * theta.norm()


def test_alignment_keeps_the_function_and_shortens_the_way():
    model = random_network(build("mlp", seed=0, input_shape=(4,), classes=3, widths=[6, 5]))
    x = noise(7, 4)
    found = symmetries(model, x)
    a, b = noise(found.layout.p, seed=1), noise(found.layout.p, seed=2)
    near = align(found, a, b)
    before, after = (functional_call(model, found.layout.unflatten(theta), (x,)) for theta in (b, near))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    assert (near - a).norm() < 0.95 * (b - a).norm()
    assert torch.equal(align(found, a, b), near)


def brute_force(found, a, b):
    """The smallest distance over all permutations and signs, one after the other."""
    best = math.inf
    orders = [list(itertools.permutations(range(group.size))) for group in found.groups]
    flips = [
        list(itertools.product((1, -1), repeat=found.groups[gain.group].size)) if gain.signs else [None]
        for gain in found.gains
    ]
    for order in itertools.product(*orders):
        for flip in itertools.product(*flips):
            signs = [
                np.ones(found.groups[g.group].size) if f is None else np.array(f)
                for g, f in zip(found.gains, flip, strict=True)
            ]
            moved = found.transform(b, [np.array(o) for o in order], signs)
            best = min(best, float((moved - a).norm()))
    return best


@pytest.mark.parametrize("widths", [[2], [3], [2, 2]])
def test_the_nearest_copy_is_the_nearest_of_all(widths):
    found = symmetries(build("mlp", seed=0, input_shape=(2,), classes=2, widths=widths), torch.zeros(1, 2))
    matcher = Matcher(found)
    descending = Matcher(found)
    descending.__dict__["copies"] = None  # not tried one by one
    for seed in range(4):
        a, b = noise(found.layout.p, seed=seed), noise(found.layout.p, seed=seed + 100)
        expected = brute_force(found, a, b)
        assert matcher.distances(a, b[None])[0] == pytest.approx(expected)
        assert float((align(found, a, b) - a).norm()) == pytest.approx(expected)
        reached = descending.distances(a, b[None])[0]
        assert reached == pytest.approx(expected) if len(widths) == 1 else reached >= expected - 1e-12


def test_linked_signs_around_a_batch_norm_are_found_together():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    found = symmetries(model, torch.randn(4, 2))
    assert [gain.signs for gain in found.gains] == [True, True]
    descending = Matcher(found)
    descending.__dict__["copies"] = None
    for seed in range(3):
        a, b = noise(found.layout.p, seed=seed), noise(found.layout.p, seed=seed + 100)
        assert descending.distances(a, b[None])[0] == pytest.approx(brute_force(found, a, b))


def test_a_match_is_a_transformation_with_scales():
    found = symmetries(
        build("mlp", seed=0, input_shape=(2,), classes=2, widths=[3, 3], activation="relu"), torch.zeros(1, 2)
    )
    a, b = noise(found.layout.p, seed=1), noise(found.layout.p, seed=2)
    torch.testing.assert_close(found.transform(b, *match(found, a, b)), align(found, a, b))
    # relative to a, the copy lies as the balanced copies lie to each other
    balance_a = found.balancing(a)
    moved = found.transform(align(found, a, b), *balance_a)
    assert float((moved - found.balance(a)).norm()) == pytest.approx(
        Matcher(found).distances(found.balance(a), found.balance(b)[None])[0]
    )


@pytest.mark.parametrize(("name", "arguments"), FAMILIES[::3])
def test_invariants_are_a_lower_bound_of_the_distance(name, arguments):
    found = symmetries(build(name, seed=0, **arguments), torch.randn(2, *arguments["input_shape"]))
    matcher = Matcher(found)
    a = found.balance(noise(found.layout.p, seed=1))
    copy = found.balance(found.random(a, 3))
    np.testing.assert_allclose(matcher.invariants(copy), matcher.invariants(a), atol=1e-9)
    for seed in range(2, 4):
        b = found.balance(a + 0.3 * noise(found.layout.p, seed=seed))
        difference = np.linalg.norm(matcher.invariants(a) - matcher.invariants(b))
        assert 0 < difference <= matcher.distances(a, b[None])[0] * (1 + 1e-12)

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from landscape import Objective
from landscape.minima.identify import identify, network_outputs
from landscape.models import build
from landscape.symmetry import symmetries

X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
Y = np.array([-1.0, 1.0, 1.0, -1.0])


@pytest.fixture(scope="module")
def xor():
    return symmetries(build("mlp", seed=0, input_shape=(2,), classes=1, widths=[2]), X)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def xor_loss(theta, penalty=0.02):
    """The 2-2-1 network with tanh in plain NumPy, squared error and a weight penalty."""
    w, b, v, c = theta[:4].reshape(2, 2), theta[4:6], theta[6:8], theta[8]
    outputs = np.tanh(X.numpy() @ w.T + b) @ v + c
    return np.mean((outputs - Y) ** 2) + penalty / 2 * theta @ theta


@pytest.fixture(scope="module")
def xor_minima():
    """End points of BFGS, polished to a gradient of 1e-9."""
    rng = np.random.default_rng(0)
    ends = [scipy.optimize.minimize(xor_loss, rng.normal(size=9) * 2, method="BFGS", tol=1e-6) for _ in range(24)]
    ends = [scipy.optimize.minimize(xor_loss, end.x, method="Nelder-Mead", tol=1e-10).x for end in ends]
    return np.array(ends), np.array([xor_loss(end) for end in ends])


def copies(theta):
    """All eight symmetric copies of a 2-2-1 network, written out by hand."""
    w, b, v = theta[:4].reshape(2, 2), theta[4:6], theta[6:8]
    for order in ([0, 1], [1, 0]):
        for first in (1, -1):
            for second in (1, -1):
                s = np.array([first, second])
                yield np.concatenate([(w[order] * s[:, None]).ravel(), b[order] * s, v[order] * s, theta[8:]])


def test_a_network_is_identified_with_itself_always(xor):
    for seed in range(200):
        theta = noise(9, seed=seed)
        copied = xor.random(theta, seed) + 1e-7 * noise(9, seed=seed + 1000)
        found = identify(torch.stack([theta, copied]), np.zeros(2), symmetries=xor)
        assert found.n_minima == 1
        assert found.distances[1] < 1e-6


def test_different_minima_are_never_the_same(xor):
    for seed in range(200):
        theta = noise(9, seed=seed)
        other = theta + 0.05 * noise(9, seed=seed + 1000)
        assert identify(torch.stack([theta, xor.random(other, seed)]), np.zeros(2), symmetries=xor).n_minima == 2
        # of equal norms, but a sign exchanged that is no symmetry
        theta[1] += 0.1 * theta[1].sign()
        flipped = theta * torch.tensor([1, -1, 1, 1, 1, 1, 1, 1, 1.0])
        assert identify(torch.stack([theta, flipped]), np.zeros(2), symmetries=xor).n_minima == 2


def test_xor_minima_agree_with_comparing_all_copies(xor, xor_minima):
    thetas, losses = xor_minima
    n = len(thetas)
    same = np.zeros((n, n), bool)
    for i in range(n):
        for j in range(n):
            nearest = min(np.linalg.norm(thetas[i] - copy) for copy in copies(thetas[j]))
            same[i, j] = nearest < 1e-2 and abs(losses[i] - losses[j]) < 1e-5
    found = identify(torch.tensor(thetas), losses, symmetries=xor, atol_loss=1e-5, tolerance=3e-3)
    assert 1 < found.n_minima < n
    assert found.hits.max() > 1
    np.testing.assert_array_equal(found.labels[:, None] == found.labels[None, :], same)
    assert found.hits.sum() == n
    np.testing.assert_array_equal(found.hits, np.bincount(found.labels))
    for k, i in enumerate(found.representatives):
        assert found.labels[i] == k
        assert losses[i] == losses[found.labels == k].min()
    assert (np.diff(losses[found.representatives]) >= 0).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": [5], "activation": "relu"},
        {"widths": [4, 3], "activation": "tanh"},
        {"widths": [8, 8], "activation": "relu"},
    ],
)
def test_many_copies_of_a_few_networks(arguments):
    own = symmetries(build("mlp", seed=0, input_shape=(3,), classes=2, **arguments), noise(2, 3))
    networks = [noise(own.layout.p, seed=k) for k in range(4)]
    kinds = np.random.default_rng(0).integers(4, size=30)
    thetas = torch.stack([own.random(networks[k], seed) for seed, k in enumerate(kinds)])
    found = identify(thetas, np.array([0.1, 0.1, 0.2, 0.2])[kinds], symmetries=own)
    assert found.n_minima == len(set(kinds))
    np.testing.assert_array_equal(found.labels[:, None] == found.labels, kinds[:, None] == kinds)
    assert "permutations" in found.relation
    assert ("signs" in found.relation) == (arguments["activation"] == "tanh")
    assert ("scales" in found.relation) == (arguments["activation"] == "relu")


def test_minima_with_equal_invariants_do_not_hide_the_right_one():
    own = symmetries(build("mlp", seed=0, input_shape=(3,), classes=2, widths=[6, 6]), noise(1, 3))
    theta = noise(own.layout.p)
    flipped = theta.clone()
    own.layout.unflatten(flipped)["3.weight"][0, 0] *= -1  # the same norms, another network
    near = theta + 1e-6 * noise(own.layout.p, seed=1)
    found = identify(torch.stack([flipped, near, own.random(theta, 0)]), np.zeros(3), symmetries=own)
    assert found.labels.tolist() == [0, 1, 1]


def test_equal_losses_are_needed(xor):
    theta = noise(9)
    thetas = torch.stack([theta, theta])
    assert identify(thetas, np.array([1.0, 1.1]), symmetries=xor).n_minima == 2
    assert identify(thetas, np.array([1.0, 1.1]), symmetries=xor, atol_loss=0.2).n_minima == 1


def linkage_counts(points, tolerances):
    """Single linkage by plain loops."""
    counts = []
    for tolerance in tolerances:
        labels = list(range(len(points)))
        for i in range(len(points)):
            for j in range(i):
                if abs(points[i] - points[j]) <= tolerance:
                    labels = [labels[j] if label == labels[i] else label for label in labels]
        counts.append(len(set(labels)))
    return counts


def test_the_count_at_a_tolerance_is_single_linkage():
    rng = np.random.default_rng(0)
    points = np.sort(rng.uniform(1, 2, 40))
    outputs = torch.tensor(points)[:, None, None]  # one sample, one output
    found = identify(torch.ones(40, 1), np.zeros(40), outputs=outputs, relation="function", tolerance=2e-2)
    tolerances = np.array([5e-3, 1e-2, 2e-2, 5e-2, 0.1, 1.0])
    expected = linkage_counts(points / np.sort(points)[19], tolerances)
    assert found.count_at(tolerances).tolist() == expected
    assert expected[0] > expected[2] > 1
    assert found.count_at(found.tolerance)[0] == found.n_minima == len(found.hits)
    assert found.count_at(0.0)[0] == 40
    with pytest.raises(ValueError, match="larger tolerance"):
        found.count_at(1e3)


def test_chains_are_one():
    outputs = torch.tensor([1.0, 1.0008, 1.0016, 1.0024, 1.1])[:, None, None]
    found = identify(torch.ones(5, 1), np.zeros(5), outputs=outputs, relation="function", tolerance=1e-3)
    assert found.hits.tolist() == [4, 1]


def test_function_relation_sees_through_what_is_no_symmetry():
    model = build("mlp", seed=0, input_shape=(2,), classes=2, widths=[3]).double()
    objective = Objective(model, (noise(20, 2), torch.arange(20) % 2))
    theta = objective.origin.clone()
    parts = objective.layout.unflatten(theta)
    parts["3.weight"][:, 2] = 0  # a unit that does nothing, whatever enters it
    other = theta.clone()
    objective.layout.unflatten(other)["1.weight"][2] += 1
    shifted = theta.clone()
    objective.layout.unflatten(shifted)["3.bias"].add_(2.0)  # the same for both logits
    thetas = torch.stack([theta, other, shifted, objective.origin])
    losses = np.array([objective.evaluate(t)["loss"] for t in thetas])
    outputs = network_outputs(objective, thetas)
    assert outputs.shape == (4, 20, 2)
    function = identify(thetas, losses, outputs=outputs, relation="function")
    assert function.labels[0] == function.labels[1] != function.labels[2]
    logits = identify(thetas, losses, outputs=outputs, relation="function", softmax=True)
    assert logits.labels[0] == logits.labels[1] == logits.labels[2] != logits.labels[3]
    assert "constant per sample" in logits.relation
    by_symmetry = identify(thetas, losses, symmetries=symmetries(model, noise(1, 2)))
    assert by_symmetry.n_minima == 4


def test_outputs_are_those_of_the_networks():
    model = build("vgg", seed=0, input_shape=(1, 4, 4), classes=3, width=1).double().eval()
    x = noise(10, 1, 4, 4)
    objective = Objective(model, (x, torch.arange(10) % 3), chunk_size=4)
    theta = objective.origin + 0.1 * noise(objective.layout.p)
    found = network_outputs(objective, torch.stack([objective.origin, theta]), n_samples=6)
    torch.testing.assert_close(found[0], model(x)[:6])
    nn.utils.vector_to_parameters(theta, model.parameters())
    torch.testing.assert_close(found[1], model(x)[:6])


def test_what_is_not_finite_is_left_out(xor):
    thetas = torch.stack([noise(9), noise(9), noise(9) * float("nan")])
    found = identify(thetas, np.array([np.inf, 0.0, 0.0]), symmetries=xor)
    assert found.labels.tolist() == [-1, 0, -1]
    assert found.hits.tolist() == [1]
    assert "2 not finite" in found.describe()
    none = identify(thetas[2:], np.array([np.nan]), symmetries=xor)
    assert none.n_minima == 0
    assert none.count_at(0.1).tolist() == [0]


def test_questions_that_make_no_sense(xor):
    theta = noise(2, 9)
    with pytest.raises(ValueError, match="one of symmetry, function"):
        identify(theta, np.zeros(2), relation="weights")
    with pytest.raises(ValueError, match="needs symmetries"):
        identify(theta, np.zeros(2))
    with pytest.raises(ValueError, match="needs outputs"):
        identify(theta, np.zeros(2), relation="function")
    with pytest.raises(ValueError, match=r"thetas \[n, p\]"):
        identify(theta, np.zeros(3), symmetries=xor)
    with pytest.raises(ValueError, match="8 entries"):
        identify(theta[:, :8], np.zeros(2), symmetries=xor)
    with pytest.raises(ValueError, match="above 0, got 0"):
        identify(theta, np.zeros(2), symmetries=xor, tolerance=0)

"""Products with the Hessian: against differences of the gradient, and the same whether graphs are kept or not."""

import copy

import pytest
import torch
from problems import TwoParameters, class_data, one_sample, randomize
from torch import nn

from landscape.hessian import Hessian
from landscape.models import build
from landscape.objective import Objective

DATA = class_data(50, (4,), 3)


def network(seed=0):
    return randomize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), seed)


def normed(seed=0):
    return randomize(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), seed)


class TestProducts:
    def products(self, data=DATA, model=None, m=3, **options):
        objective = Objective(model or network(), data, dtype=torch.float64, **options)
        vectors = torch.randn(m, objective.layout.p, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        return objective, vectors, Hessian(objective, objective.origin + 0.1).products(vectors)

    @pytest.mark.parametrize("chunk_size", [7, 50])
    def test_agree_with_differences_of_the_gradient(self, chunk_size):
        objective, vectors, products = self.products(chunk_size=chunk_size)
        theta, h = objective.origin + 0.1, 1e-5
        for vector, product in zip(vectors, products, strict=True):
            ahead, behind = (objective.gradient(theta + step * vector) for step in (h, -h))
            torch.testing.assert_close(product, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)

    def test_are_means_over_samples_whatever_the_batches_and_sums_where_the_loss_is_one(self):
        x, y = DATA
        _, _, whole = self.products(chunk_size=50)
        _, _, cut = self.products([(x[:20], y[:20]), (x[20:], y[20:])], chunk_size=7)
        torch.testing.assert_close(cut, whole, rtol=1e-11, atol=1e-13)
        _, _, summed = self.products(loss=nn.CrossEntropyLoss(reduction="sum"), reduction="sum", chunk_size=7)
        torch.testing.assert_close(summed, 50 * whole, rtol=1e-11, atol=1e-12)

    def test_batch_norm_policies_are_those_of_the_gradient(self):
        results = {}
        for policy in ("frozen", "recalibrated", "batch"):
            objective, vectors, products = self.products(model=normed(), batch_norm=policy)
            ahead, behind = (objective.gradient(objective.origin + 0.1 + s * vectors[0]) for s in (1e-6, -1e-6))
            torch.testing.assert_close(products[0], (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-6)
            results[policy] = products
        assert torch.equal(results["frozen"], results["recalibrated"])
        assert not torch.allclose(results["frozen"], results["batch"])

    def test_of_a_loss_that_is_linear_in_all_or_some_parameters_are_zero_there(self):
        linear = Objective(TwoParameters(), one_sample(), loss=lambda o, t: 2 * o[:, 0] + o[:, 1])
        assert Hessian(linear).products(torch.ones(2, 2)).tolist() == [[0, 0], [0, 0]]
        partly = Objective(TwoParameters(), one_sample(), loss=lambda o, t: o[:, 0] ** 2 + o[:, 1])
        assert Hessian(partly).products(torch.ones(1, 2)).tolist() == [[2, 0]]

    def test_leave_model_and_random_state_alone(self):
        model = normed().train()
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        self.products(model=model, batch_norm="batch")
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_vectors_of_another_shape_are_refused(self):
        objective = Objective(network(), DATA)
        with pytest.raises(ValueError, match=r"need shape \[m, 51\], got \(51,\)"):
            Hessian(objective).products(objective.origin)


class TestGraphsAreKept:
    """In chunks of 10 samples: five graphs."""

    def objective(self):
        return Objective(network(), DATA, dtype=torch.float64, chunk_size=10)

    def size_of_a_graph(self):
        hessian = Hessian(self.objective())
        return sum(graph.n_bytes() for graph, _ in hessian._graphs()) / 5

    @pytest.mark.parametrize(("n_graphs", "n_kept"), [(0, 0), (2.5, 2), (5.01, 5)])
    def test_as_far_as_memory_goes_and_the_digits_are_the_same(self, n_graphs, n_kept):
        vectors = torch.randn(3, 51, generator=torch.Generator().manual_seed(0)).double()
        anew = torch.cat([Hessian(self.objective()).products(row[None]) for row in vectors])
        hessian = Hessian(self.objective(), memory=max(1, int(n_graphs * self.size_of_a_graph())))
        assert hessian.n_kept == 0
        for row, expected in zip(vectors, anew, strict=True):
            assert torch.equal(hessian.products(row[None])[0], expected)
            assert hessian.n_kept == n_kept
        assert torch.equal(hessian.products(vectors), anew)

    def test_and_not_computed_again(self):
        objective, calls = self.objective(), []
        plain = objective.batch_loss
        objective.batch_loss = lambda *arguments: calls.append(1) or plain(*arguments)
        hessian = Hessian(objective)
        for _ in range(3):
            hessian.products(torch.ones(1, 51))
        assert len(calls) == 5

    def test_their_size_is_at_least_what_the_forward_pass_keeps(self):
        model = build("resnet", input_shape=(1, 8, 8), classes=10, depth=8, width=4, seed=0)
        objective = Objective(model, class_data(20, (1, 8, 8), 10), chunk_size=20)
        sizes = {}

        def count(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with objective.differentiating(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            point = objective.origin.clone().requires_grad_()
            value, _ = objective.batch_loss(point, next(iter(objective.chunks())))
            sizes_of_forward = sum(sizes.values())
            assert value.requires_grad  # the graph is alive
        hessian = Hessian(objective)
        hessian.products(torch.zeros(1, objective.layout.p))
        assert sizes_of_forward <= hessian._kept[0].n_bytes() <= 6 * sizes_of_forward

"""The Hessian of the training loss at one point, as something that vectors are multiplied with."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.evaluation.memory import memory_budget
from landscape.objective import Objective, check_differentiable
from landscape.parameters import real_tensor


class Hessian:
    """The Hessian at one point, by differentiating twice (Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147).

        H v = d/dtheta (g(theta) . v),    g = dL/dtheta

    Loss, batch-norm statistics and chunks of samples are those of `Objective.gradient`. What a product differentiates
    is the graph of a chunk's gradient. As many graphs as fit into memory are kept for the products that follow, the
    others are built anew for each call; the digits are the same.

    Args:
        objective: Loss and data.
        theta: `[p]`. Default: the objective's network.
        memory: Bytes that the graphs kept may take. Default: see `memory_budget`.

    Example:
        >>> hessian = Hessian(objective)  # doctest: +SKIP
        >>> hessian.products(torch.eye(3, objective.layout.p))  # doctest: +SKIP
    """

    def __init__(self, objective: Objective, theta: Tensor | None = None, memory: int | None = None) -> None:
        self.objective = objective
        self._theta = objective.point(objective.origin if theta is None else theta)
        self._room: int | None = memory_budget(memory, objective.device)
        self._kept: list[_Graph] = []

    @property
    def n_kept(self) -> int:
        """Return how many chunks of samples have their graph kept."""
        return len(self._kept)

    def products(self, vectors: Tensor) -> Tensor:
        """Multiply with vectors; several at once cost less than one after another.

        Args:
            vectors: `[m, p]`.

        Returns:
            `[m, p]` float64, the sum over chunks being taken in that precision.

        Raises:
            ValueError: The vectors have another shape, or the loss cannot be differentiated.
        """
        objective, p = self.objective, self.objective.layout.p
        if real_tensor("vectors", vectors).ndim != 2 or vectors.shape[1] != p:
            raise ValueError(f"vectors need shape [m, {p}], got {tuple(vectors.shape)}")
        total = torch.zeros(vectors.shape, dtype=torch.float64, device=objective.device)
        rows = vectors.detach().to(self._theta)
        # fused attention has no second derivative, the plain one has
        with objective.differentiating(), sdpa_kernel(SDPBackend.MATH):
            for graph, keep in self._graphs():
                if graph.gradient is None:
                    continue
                for i, row in enumerate(rows):
                    (product,) = torch.autograd.grad(
                        graph.gradient,
                        graph.point,
                        row,
                        retain_graph=keep or i < len(rows) - 1,
                        materialize_grads=True,
                    )
                    total[i] += product.double() * graph.weight
        if objective.reduction == "mean":
            total /= objective.splits[""].n_samples
        return total + objective.penalty * vectors.to(total)

    def _graphs(self) -> Iterator[tuple["_Graph", bool]]:
        """Yield the graph of each chunk, and whether it is kept; kept are those of the first chunks."""
        n_kept = len(self._kept)
        yield from ((graph, True) for graph in self._kept[:n_kept])
        for batch in islice(self.objective.chunks(), n_kept, None):
            graph = self._differentiate(batch)
            if self._room is not None:
                self._room -= graph.n_bytes()
                if self._room >= 0:
                    self._kept.append(graph)
                else:
                    self._room = None  # from here on, none is measured or kept
            yield graph, self._room is not None

    def _differentiate(self, batch: Any) -> "_Graph":
        point = self._theta.clone().requires_grad_()  # of its own: the graphs of two chunks have nothing in common
        value, weight = self.objective.batch_loss(point, batch)
        check_differentiable(value)
        (gradient,) = torch.autograd.grad(value, point, create_graph=True)
        return _Graph(point, gradient if gradient.requires_grad else None, weight)


class _Graph(NamedTuple):
    """What a product with the Hessian of one chunk's loss differentiates."""

    point: Tensor
    gradient: Tensor | None  # None where the loss is linear in theta
    weight: int

    def n_bytes(self) -> int:
        """Return the size of the tensors that the graph keeps, each counted once."""
        sizes: dict[int, int] = {}
        todo: list[Any] = [] if self.gradient is None else [self.gradient.grad_fn]
        seen = set(todo)
        while todo:
            node = todo.pop()
            for tensor in _saved(node):
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    todo.append(child)
        return sum(sizes.values())


def _saved(node: Any) -> Iterator[Tensor]:
    """Yield what a node of the graph keeps: attributes `_saved_...`, or `saved_tensors` of a custom function."""
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            try:
                found = getattr(node, name)
            except RuntimeError:  # changed in place since: the product says so, if it is needed there
                continue
            for entry in found if isinstance(found, list | tuple) else [found]:
                if isinstance(entry, Tensor) and entry.layout == torch.strided:
                    yield entry

"""What the compiled kernel serves: narrow chains of linear layers and activations, with the cross-entropy."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.data import Batches, split_batch
from landscape.evaluation.graph import is_flatten, is_identity, linear_parameters, module_of
from landscape.objective import Objective
from landscape.slice import Slice

WIDEST = 128  # units of a layer up to which the kernel is tried: beyond, a matrix library is faster
_TIMED = 32  # tiles that a timing takes
_CHUNK = 16  # tiles whose first layer is computed together
_Layer = tuple[tuple[str, str | None], str, float]  # names of weight and bias, activation and its parameter

_PLAIN = {
    "tanh": (nn.Tanh, torch.tanh, F.tanh, "tanh"),
    "relu": (nn.ReLU, torch.relu, F.relu, "relu"),
    "sigmoid": (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"),
    "silu": (nn.SiLU, F.silu),
}
_WITH_PARAMETER = {
    "leaky_relu": (nn.LeakyReLU, F.leaky_relu, "negative_slope", 0.01),
    "elu": (nn.ELU, F.elu, "alpha", 1.0),
}


def layers_of(objective: Objective, traced: fx.GraphModule) -> list[_Layer] | None:
    """Read a graph that the dense plan serves as a chain of linear layers, each with at most one activation.

    Returns:
        The layers from the data on; None where the network or what is asked of it is something else: another
        precision than float32, another device than the processor, wide layers, an activation that is not compiled.
    """
    x, _ = split_batch(next(objective.splits[""].chunks(1)))
    if not (x.dtype == objective.dtype == torch.float32 and objective.device.type == "cpu"):
        return None
    tensors = _tensors(objective)
    layers: list[_Layer] = []
    value: Any = None  # the node that holds the last layer's values
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            value = node if node.users else value
        elif not node.args or node.args[0] is not value:
            continue  # a parameter, or a size; what is no chain ends with another value
        elif node.op == "output":
            return layers or None
        elif is_flatten(traced, node) or is_identity(traced, node):
            value = node
        elif (names := linear_parameters(traced, node)) is not None:
            if any(tensors[name].dtype != torch.float32 for name in names if name) or len(tensors[names[0]]) > WIDEST:
                return None
            layers.append((names, "identity", 0.0))
            value = node
        elif (activation := _activation(traced, node)) is not None and layers and layers[-1][1] == "identity":
            layers[-1] = (layers[-1][0], *activation)
            value = node
    return None


def _activation(traced: fx.GraphModule, node: fx.Node) -> tuple[str, float] | None:
    """Return the name and the parameter of an activation that the kernel has, None for every other node."""
    module = module_of(traced, node)
    kind = node.target if module is None else type(module)
    for name, kinds in _PLAIN.items():
        if kind in kinds:
            return name, 0.0
    for name, (own_module, own_function, argument, default) in _WITH_PARAMETER.items():
        if kind in (own_module, own_function):
            given = node.args[1] if len(node.args) > 1 else node.kwargs.get(argument, default)
            value = given if module is None else getattr(module, argument)
            return (name, float(value)) if isinstance(value, int | float) else None
    if kind in (nn.GELU, F.gelu):
        approximate = node.kwargs.get("approximate", "none") if module is None else module.approximate
        return {"none": ("gelu", 0.0), "tanh": ("gelu_tanh", 0.0)}.get(str(approximate))
    return None


def memory_of(objective: Objective, slice: Slice, layers: list[_Layer]) -> int:
    """Return the bytes that the first layer's products with the data take, which are kept for all points."""
    units = len(_tensors(objective)[layers[0][0][0]])
    return 4 * (slice.k + 1) * units * sum(batches.n_samples for batches in objective.splits.values())


class Narrow:
    """A chain of linear layers and activations, ready for the compiled kernel.

    Args:
        objective: The network and its data.
        slice: Where the points lie.
        layers: As `layers_of` returns them.
        kernel: The module `landscape.evaluation.kernel`.

    Attributes:
        tile: Samples that the kernel takes at once.
    """

    def __init__(self, objective: Objective, slice: Slice, layers: list[_Layer], kernel: ModuleType) -> None:
        self._kernel, self.tile = kernel, int(kernel.TILE)
        fixed = _tensors(objective)
        origin = objective.layout.unflatten(slice.origin)
        steps = [objective.layout.unflatten(direction) for direction in slice.directions]

        def rows(name: str | None, like: Tensor) -> Tensor:
            """Return a parameter at the origin and its change along each direction, `[k + 1, *shape]`."""
            if name is None:
                return like.new_zeros(slice.k + 1, len(like))
            if name in origin:
                return torch.stack([origin[name], *(step[name] for step in steps)])
            return torch.stack([fixed[name], *[torch.zeros_like(fixed[name])] * slice.k])

        parameters = [(rows(weight, fixed[weight]), rows(bias, fixed[weight])) for (weight, bias), _, _ in layers]
        first, *further = parameters
        parts = [np.zeros((slice.k + 1, 0)), *(_padded(*pair) for pair in further)]
        self._rows = np.concatenate(parts, axis=1)
        self._widths = np.array([weight.shape[1] for weight, _ in parameters])
        self._codes = np.array([getattr(kernel, activation.upper()) for _, activation, _ in layers])
        self._parameters = np.array([parameter for _, _, parameter in layers], dtype=np.float32)
        self._data = {
            prefix: (*_responses(batches, *first, self.tile), batches.n_samples)
            for prefix, batches in objective.splits.items()
        }

    def sums(self, coordinates: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield for each split its prefix and the sums over samples of cross-entropy and right answers, `[m]` float64.

        The digits depend neither on the number of threads nor on the other points.

        Args:
            coordinates: `[m, k]`.
        """
        c, weights = self._at(coordinates)
        for prefix, (responses, targets, n) in self._data.items():
            losses, right = self._by_tiles(responses, targets, n, c, weights)
            yield prefix, losses.sum(axis=1), right.sum(axis=1)

    def seconds(self, m: int) -> float:
        """Measure what one of `m` points takes, from a part of the training data: the shortest of a few times."""
        responses, targets, n = self._data[""]
        part = min(_TIMED, len(targets))
        c, weights = self._at(np.zeros((m, responses.shape[1] - 1)))
        times = []
        for _ in range(6):
            start = time.perf_counter()
            self._by_tiles(responses[:part], targets[:part], n, c, weights)
            times.append(time.perf_counter() - start)
        return min(times) / m * len(targets) / part

    def _at(self, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates and the weights of all layers but the first at these points, as the kernel takes them."""
        c = np.ascontiguousarray(coordinates, dtype=np.float32)
        weights = np.repeat(self._rows[:1], len(c), axis=0)
        for i, row in enumerate(self._rows[1:]):  # no matrix product, whose rounding depends on the number of points
            weights += c[:, i : i + 1] * row
        return c, weights.astype(np.float32)

    def _by_tiles(
        self, responses: np.ndarray, targets: np.ndarray, n: int, c: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums over each tile, `[m, tiles]` twice, with as many threads as torch has."""
        losses, right = np.empty((2, len(c), len(targets)))

        def add_up(first: int, last: int) -> None:
            self._kernel.add_up(  # lets other threads run
                responses, c, weights, self._widths, self._codes, self._parameters, targets, n, first, last,
                losses, right,
            )  # fmt: skip

        threads = min(torch.get_num_threads(), len(targets))
        if threads == 1:
            add_up(0, len(targets))
        else:
            cuts = np.linspace(0, len(targets), min(4 * threads, len(targets)) + 1).astype(int)
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(add_up, cuts[:-1], cuts[1:]))
        return losses, right


def _tensors(objective: Objective) -> dict[str, Tensor]:
    model = objective.model
    return {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def _padded(weight: Tensor, bias: Tensor) -> np.ndarray:
    """Lay out rows of weights `[k + 1, out, in]` and biases as the kernel reads them, `[k + 1, q]` float64."""
    together = torch.cat([weight, bias[..., None]], dim=2).double()
    return F.pad(together, (0, -together.shape[2] % 4, 0, together.shape[1] % 2)).flatten(1).cpu().numpy()


def _responses(batches: Batches, weight: Tensor, bias: Tensor, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiply rows of first layers `[k + 1, units, in]` with the data; returns `[tiles, k + 1, units, tile]`, targets.

    The last tile is filled up with zeros.
    """
    n_tiles = -(-batches.n_samples // tile)
    responses = np.empty((n_tiles, *weight.shape[:2], tile), dtype=np.float32)
    targets = np.zeros((n_tiles, tile), dtype=np.int32)
    for i, batch in enumerate(batches.chunks(_CHUNK * tile)):
        x, target = split_batch(batch)
        products = torch.addmm(bias.reshape(-1, 1), weight.flatten(0, 1), x.flatten(1).T)
        products = F.pad(products, (0, -len(x) % tile)).view(*weight.shape[:2], -1, tile)
        at = i * _CHUNK
        responses[at : at + products.shape[2]] = products.permute(2, 0, 1, 3).numpy()
        targets[at:].reshape(-1)[: len(x)] = target.numpy()
    return responses, targets

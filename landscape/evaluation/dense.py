"""The dense plan: chains of linear layers and element-wise functions, many points in one batched product.

Everything is laid out by features, `[points, features, samples]`, so that a linear layer is one batched matrix product
for a group of points. Chunks of samples are outside, all points of the group inside. The first layer is affine in the
coordinates,

    W(c) X + b(c) = (W_0 X + b_0) + sum_i c_i (D_i X + d_i),

so its products with the data are computed once for the whole surface, and a point costs one multiplication and addition
per direction and unit, however many inputs there are.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.data import split_batch
from landscape.evaluation.graph import (
    in_place_form,
    is_attribute,
    is_elementwise,
    is_flatten,
    is_identity,
    is_size,
    linear_parameters,
    module_of,
)
from landscape.evaluation.narrow import Narrow, layers_of, memory_of
from landscape.losses import accuracy, is_cross_entropy
from landscape.objective import Objective
from landscape.program import whole_float32
from landscape.slice import Slice

_CANDIDATES = {  # points and samples at once
    "cpu": [(group, chunk) for group in (8, 16, 32) for chunk in (500, 1000, 2000)],
    "cuda": [(group, chunk) for group in (32, 128) for chunk in (2000, 8000, 32000)],
}
_KERNEL_GROUP = 32
_KERNEL_PAYS = 3.0  # seconds of products from which on a kernel is compiled, which takes as long, once
_POINTS = 51 * 51  # of the usual surface
_NARROW = 64  # outputs up to which one pass through memory costs more than a product of an odd size
Array = np.ndarray


class NotDenseError(Exception):
    """The network is no chain of linear layers and element-wise functions; the text says what is in the way."""


class Dense:
    """A network of linear layers, evaluated at many points of a slice at once.

    Args:
        objective: Whose model is called on one tensor and returns one.
        slice: Where the points lie.
        traced: The graph of the model.
        memory: Bytes that the first layer's products with the data may take.

    Raises:
        NotDenseError: The graph has something else in it.
    """

    def __init__(self, objective: Objective, slice: Slice, traced: fx.GraphModule, memory: float) -> None:
        self.objective, self.slice, self.traced = objective, slice, traced
        self.notes: list[str] = []
        self._offsets = dict(zip(objective.layout.names, _offsets(objective.layout.sizes), strict=True))
        self._shapes = dict(zip(objective.layout.names, objective.layout.shapes, strict=True))
        self._fixed = {
            name: tensor.detach()
            for name, tensor in [*objective.model.named_parameters(), *objective.model.named_buffers()]
            if name not in self._shapes
        }
        self._last_use = _last_uses(traced)
        self._first: fx.Node | None = None
        self._keep = False
        self._check()
        self._buffers: dict[fx.Node, Tensor] = {}
        self._with_ones: dict[int, Tensor] = {}  # the buffers by where they begin
        self._responses: dict[tuple[str, int], Tensor] = {}
        self.group: int = 16
        self.chunk: int | None = 1000
        self._memory = memory
        self._kernel: Narrow | None = None
        self._choose_first()

    def _check(self) -> None:
        """Refuse what is not supported: every value must be one row of features per sample where it matters."""
        x, _ = split_batch(next(self.objective.splits[""].chunks(1)))
        values: dict[fx.Node, bool] = {}  # whether it is flat, [samples, features]
        sizes: set[fx.Node] = set()
        for node in self.traced.graph.nodes:
            sources = node.all_input_nodes
            if node.op == "placeholder":
                values[node] = x.ndim == 2
            elif node.op == "output":
                if not isinstance(node.args[0], fx.Node) or not values.get(node.args[0]):
                    raise NotDenseError("it returns something else than one row per sample")
            elif is_flatten(self.traced, node):
                values[node] = True
            elif is_size(node, sizes) or is_attribute(node):
                sizes.add(node)
            elif linear_parameters(self.traced, node) and sources[0] in values:
                if not values[sources[0]]:
                    raise NotDenseError(f"{node.target} is applied before the input is flattened")
                values[node] = True
            elif not all(source in values for source in sources):
                raise NotDenseError(f"{node.target} is applied to a size or a parameter")
            elif is_identity(self.traced, node) or is_elementwise(self.traced, node):
                if len({values[source] for source in sources}) != 1:
                    raise NotDenseError(f"{node.target} joins values of different shapes")
                values[node] = values[sources[0]]
            elif self._norm(node):
                if not values[sources[0]]:
                    raise NotDenseError(f"{node.target} is applied before the input is flattened")
                values[node] = True
            else:
                what = module_of(self.traced, node)
                raise NotDenseError(f"it has {type(what).__name__ if what is not None else node.target}")
        self._sizes = sizes

    def _norm(self, node: fx.Node) -> bool:
        module = module_of(self.traced, node)
        if isinstance(module, nn.LayerNorm):
            return len(module.normalized_shape) == 1
        if isinstance(module, nn.BatchNorm1d):
            return self.objective.batch_norm == "frozen" and module.running_mean is not None
        return False

    def _choose_first(self) -> None:
        """Find the linear layer that sees the data, and whether its products with the data are worth keeping."""
        for node in self.traced.graph.nodes:
            names = linear_parameters(self.traced, node)
            if names is None:
                continue
            source: Any = node.args[0]
            while is_flatten(self.traced, source) or is_identity(self.traced, source):
                source = source.args[0]
            n_out, n_in = self.objective.model.get_parameter(names[0]).shape
            if source.op == "placeholder" and n_in > self.slice.k + 1:
                samples = sum(batches.n_samples for batches in self.objective.splits.values())
                size = (self.slice.k + 1) * n_out * samples * self.objective.origin.element_size()
                self._first, self._keep = node, size <= self._memory
                kept = "kept" if self._keep else "not kept, they would need more memory than allowed"
                self.notes.append(
                    "first layer affine in the coordinates: its products with the data "
                    f"({size / 1e6:.0f} MB) are {kept}"
                )
            return

    def values(self, coordinates: Array) -> dict[str, Array]:
        """Evaluate all metrics at coordinates `[m, k]`; returns `[m]` float64 by name."""
        if self._kernel is not None:
            return self._kernel_values(self._kernel, coordinates)
        c = torch.as_tensor(coordinates, dtype=self.slice.directions.dtype, device=self.slice.directions.device)
        thetas = torch.addmm(self.slice.origin[None], c, self.slice.directions)
        result = {}
        with torch.inference_mode(), whole_float32():
            parameters = self._parameters(thetas)
            for prefix, batches in self.objective.splits.items():
                totals = {
                    name: torch.zeros(len(c), dtype=torch.float64, device=c.device) for name in self.objective.metrics
                }
                for i, batch in enumerate(batches.chunks(self.chunk)):
                    x, target = split_batch(batch)
                    output = self._forward(x, c, parameters, (prefix, i))
                    _add_metrics(totals, self.objective, output, target)
                for name, total in totals.items():
                    result[prefix + name] = self._mean(total.cpu().numpy(), prefix, name)
        return result

    def _kernel_values(self, kernel: Narrow, coordinates: Array) -> dict[str, Array]:
        result = {}
        for prefix, loss, right in kernel.sums(coordinates):
            for name, function in self.objective.metrics.items():
                is_loss = _by_features(function, self.objective) is _cross_entropy
                result[prefix + name] = self._mean(loss if is_loss else right, prefix, name)
        return result

    def _mean(self, total: Array, prefix: str, name: str) -> Array:
        is_sum = name == "loss" and self.objective.reduction == "sum"
        return total if is_sum else total / self.objective.splits[prefix].n_samples

    def tune(self, fits: Callable[[int, int], bool] = lambda group, chunk: True, n_points: int = _POINTS) -> None:
        """Time a few group and chunk sizes on the real data and keep the fastest, the compiled kernel among them.

        The kernel is tried where the whole surface would otherwise take longer than compiling it at the first time.

        Args:
            fits: Whether so many points and samples at once are allowed.
            n_points: Of the whole surface.
        """
        n, best, keep = self.objective.splits[""].n_samples, float("inf"), self._keep
        self._keep = True  # what the first layer costs once is not what is compared
        candidates = _CANDIDATES.get(self.objective.device.type, _CANDIDATES["cpu"])
        for group, chunk in dict.fromkeys((group, min(chunk, n)) for group, chunk in candidates):
            if not fits(group, chunk):
                continue
            try:
                seconds = self._time_one(group, next(self.objective.splits[""].chunks(chunk))) / (group * chunk)
            except torch.cuda.OutOfMemoryError:
                continue
            if seconds < best:
                best, self.group, self.chunk = seconds, group, chunk
        self._keep = keep
        self._responses.clear()
        if best == float("inf"):
            self.notes.append("not tuned, since trying would take more memory than allowed")
        elif best * n * n_points >= _KERNEL_PAYS:
            self._try_kernel(best * n)

    def _try_kernel(self, seconds: float) -> None:
        """Use the compiled kernel if a point takes it less than the seconds that the products take."""
        try:
            kernel = self._make_kernel()
        except ImportError as error:
            self.notes.append(f"a compiled kernel would be faster: pip install landscape[fast] ({error})")
            return
        if kernel is not None and kernel.seconds(_KERNEL_GROUP) < seconds:
            self._take(kernel)

    def _make_kernel(self) -> Narrow | None:
        """Compile the kernel and prepare the data for it; None if it does not serve this network.

        Raises:
            ImportError: There is no numba, or none that fits.
        """
        known = (_cross_entropy, _accuracy)
        layers = layers_of(self.objective, self.traced)
        if layers is None or any(_by_features(f, self.objective) not in known for f in self.objective.metrics.values()):
            return None
        if memory_of(self.objective, self.slice, layers) > self._memory:
            return None
        from landscape.evaluation import kernel  # compiles it, and needs numba, which is optional

        with torch.inference_mode(), whole_float32():
            return Narrow(self.objective, self.slice, layers, kernel)

    def _take(self, kernel: Narrow) -> None:
        self._kernel, self.chunk, self.group = kernel, kernel.tile, _KERNEL_GROUP
        self.notes.append("a kernel compiled by numba runs the whole network on one chunk after the other")

    def settings(self) -> dict[str, Any]:
        """Return what was tuned (JSON-able)."""
        kernel = None if self._kernel is None else "numba"
        return {"chunk_size": self.chunk, "group": self.group, "kernel": kernel}

    def restore(self, settings: Mapping[str, Any]) -> None:
        """Take over what was tuned before instead of tuning.

        Raises:
            ValueError: It needs the compiled kernel, which cannot be had here.
        """
        if settings.get("kernel") is not None:
            try:
                kernel = self._make_kernel()
            except ImportError as error:
                raise ValueError(
                    f"begun with a kernel compiled by {settings['kernel']}, which cannot be imported here ({error}): "
                    "pip install landscape[fast]"
                ) from error
            if kernel is None:
                raise ValueError("begun with a compiled kernel, which needs more memory now than allowed")
            self._take(kernel)
        self.chunk, self.group = settings["chunk_size"], settings["group"]

    def _time_one(self, group: int, batch: Any) -> float:
        c = self.slice.directions.new_zeros(group, self.slice.k)
        x, target = split_batch(batch)
        best = float("inf")
        self._responses.clear()
        with torch.inference_mode(), whole_float32():
            parameters = self._parameters(torch.addmm(self.slice.origin[None], c, self.slice.directions))
            for _ in range(4):
                start = time.perf_counter()
                output = self._forward(x, c, parameters, ("tuning", 0))
                totals = {name: c.new_zeros(group, dtype=torch.float64) for name in self.objective.metrics}
                _add_metrics(totals, self.objective, output, target)
                totals["loss"].sum().item()  # a GPU is done only when it is asked
                best = min(best, time.perf_counter() - start)
        return best

    def _parameters(self, thetas: Tensor) -> dict[str, Tensor]:
        """Cut points `[g, p]` into parameters `[g, *shape]`; what does not move has one entry for all points."""
        moving = {
            name: thetas[:, begin:end].view(len(thetas), *self._shapes[name])
            for name, (begin, end) in self._offsets.items()
        }
        return {**{name: tensor[None] for name, tensor in self._fixed.items()}, **moving}

    def _forward(self, x: Tensor, c: Tensor, parameters: dict[str, Tensor], key: tuple[str, int]) -> Tensor:
        """Run the graph on a chunk of samples `[n, ...]`; returns `[g, classes, n]`."""
        values: dict[fx.Node, Tensor] = {}
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return values[node.args[0]].expand(len(c), -1, -1)
            values_of_node = self._run(node, values, x, c, parameters, key)
            if values_of_node is not None:
                values[node] = values_of_node
            for done in self._last_use.get(node, ()):
                values.pop(done, None)
        raise AssertionError("a graph ends with its output")

    def _run(
        self, node: fx.Node, values: dict, x: Tensor, c: Tensor, parameters: dict[str, Tensor], key: tuple
    ) -> Tensor | None:
        if node.op == "placeholder":
            return x.reshape(len(x), -1).T[None]  # [1, features, n]: the same for all points
        if node in self._sizes:
            return None
        if is_flatten(self.traced, node) or is_identity(self.traced, node):
            return values[node.args[0]]
        if node is self._first:
            return self._first_layer(node, values[node.args[0]], c, key)
        names = linear_parameters(self.traced, node)
        if names is not None:
            return self._product(node, names, parameters, values[node.args[0]], len(c))
        if self._norm(node):
            return self._normalize(node, values[node.args[0]], parameters)
        in_place = in_place_form(self.traced, node)
        source: Any = node.args[0]
        if in_place is not None and len(source.users) == 1 and linear_parameters(self.traced, source) is not None:
            return in_place(values[source])
        args: Any = fx.node.map_arg(node.args, lambda n: values[n])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: values[n])
        module = module_of(self.traced, node)
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _first_layer(self, node: fx.Node, x: Tensor, c: Tensor, key: tuple[str, int]) -> Tensor:
        """Return `[g, out, n]` by one product of the coordinates with the kept responses of the layer."""
        responses = self._responses.get(key)
        if responses is None:
            names = linear_parameters(self.traced, node)
            assert names is not None
            origin = self._parameters(self.slice.origin[None])
            steps = self._parameters(self.slice.directions)
            parts = []
            for source, row in [(origin, 0), *((steps, i) for i in range(self.slice.k))]:
                moves = source is origin or names[0] in self._shapes
                weight = source[names[0]][row] if moves else torch.zeros_like(self._fixed[names[0]])
                product = weight @ x[0]
                if names[1] is not None and (source is origin or names[1] in self._shapes):
                    product += source[names[1]][row][:, None]
                constant = float(source is origin)  # the row of ones, see `_product`
                parts.append(F.pad(product, (0, 0, 0, 1), value=constant).reshape(1, -1))
            responses = torch.cat(parts)
            if self._keep:
                self._responses[key] = responses
        with_one = torch.cat([torch.ones_like(c[:, :1]), c], dim=1)
        memory = self._memory_for(node, (len(c), responses.shape[1] // x.shape[-1], x.shape[-1]), x)
        torch.mm(with_one, responses, out=memory.view(len(c), -1))
        return memory[:, :-1]

    def _product(
        self, node: fx.Node, names: tuple[str, str | None], parameters: dict[str, Tensor], h: Tensor, g: int
    ) -> Tensor:
        """Multiply weights `[g or 1, out, in]` with values `[g or 1, in, n]`, add the bias; returns `[g, out, n]`.

        The first layer's responses and the results of narrow layers carry a row of ones, so that a bias is a column of
        the weights: one pass through memory less than an addition.
        """
        weight, bias = parameters[names[0]], None if names[1] is None else parameters[names[1]]
        n_out = weight.shape[1]
        with_ones = self._with_ones.get(h.data_ptr())
        fits = with_ones is not None and with_ones.shape == (g, h.shape[1] + 1, h.shape[2]) and n_out <= _NARROW
        if bias is None or with_ones is None or not fits:
            weight, h = weight.expand(g, -1, -1), h.expand(g, -1, -1)
            memory = self._memory_for(node, (g, n_out, h.shape[2]), h)
            if bias is None:
                return torch.bmm(weight, h, out=memory)
            return torch.baddbmm(bias.expand(g, -1)[..., None], weight, h, out=memory)
        together = f"{names[0]} and bias"
        if together not in parameters:
            parts = (weight.expand(g, -1, -1), bias.expand(g, -1)[..., None])
            parameters[together] = F.pad(torch.cat(parts, dim=2), (0, 0, 0, 1))
        memory = self._memory_for(node, (g, n_out + 1, h.shape[2]), h)
        torch.bmm(parameters[together], with_ones, out=memory)
        memory[:, -1] = 1
        return memory[:, :-1]

    def _memory_for(self, node: fx.Node, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return memory for the result of a node, the same at every call: fresh pages would cost much."""
        memory = self._buffers.get(node)
        if memory is None or memory.shape != shape:
            if memory is not None:
                self._with_ones.pop(memory.data_ptr(), None)
            memory = self._buffers[node] = like.new_empty(shape)
            self._with_ones[memory.data_ptr()] = memory
        return memory

    def _normalize(self, node: fx.Node, h: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        module = module_of(self.traced, node)
        assert isinstance(module, nn.LayerNorm | nn.BatchNorm1d)
        if isinstance(module, nn.LayerNorm):
            mean, variance = h.mean(dim=1, keepdim=True), h.var(dim=1, keepdim=True, unbiased=False)
        else:
            mean = parameters[f"{node.target}.running_mean"][..., None]
            variance = parameters[f"{node.target}.running_var"][..., None]
        h = (h - mean) * torch.rsqrt(variance + module.eps)
        if module.weight is not None:
            h = h * parameters[f"{node.target}.weight"][..., None]
        return h if module.bias is None else h + parameters[f"{node.target}.bias"][..., None]


def _add_metrics(totals: dict[str, Tensor], objective: Objective, output: Tensor, target: Any) -> None:
    """Add the metrics of a chunk, `output` `[g, classes, n]`, to sums over samples `[g]`."""
    own = {name: _by_features(function, objective) for name, function in objective.metrics.items()}
    largest = of_target = None
    if any(own.values()):
        labels = target.expand(len(output), 1, -1)
        largest = output.amax(dim=1)
        of_target = output.gather(1, labels).squeeze(1)
    for name, function in objective.metrics.items():
        by_features = own[name]
        if by_features is not None:
            totals[name] += by_features(output, largest, of_target).sum(dim=1, dtype=torch.float64)
        else:
            for j, one in enumerate(output):
                value, weight = objective.weigh(function(one.T, target), len(one.T), name)
                totals[name][j] += value * weight


def _by_features(function: Callable, objective: Objective) -> Callable | None:
    """Return a metric for outputs `[g, classes, n]` that equals the one for `[n, classes]`, if it is known."""
    if objective.is_classification and is_cross_entropy(function):
        return _cross_entropy
    if objective.is_classification and function is accuracy:
        return _accuracy
    return None


def _cross_entropy(output: Tensor, largest: Tensor, of_target: Tensor) -> Tensor:
    """See `losses.cross_entropy`."""
    total = (output - largest[:, None]).exp_().sum(dim=1, dtype=torch.float64)
    return total.log_().add_(largest - of_target)


def _accuracy(output: Tensor, largest: Tensor, of_target: Tensor) -> Tensor:
    return (of_target == largest).to(output.dtype)


def _offsets(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _last_uses(traced: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Return for each node the values that nobody needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    frees: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        frees.setdefault(node, []).append(source)
    return frees

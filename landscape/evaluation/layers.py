"""Layers rewritten: what the nodes of a rewritten graph call, and the passes that put them there."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.evaluation.graph import is_identity, is_rising, linear_parameters, module_of

FEW_CHANNELS = 4  # up to so many input channels, a first convolution is cheap to share between points


@dataclass
class Point:
    """What a layer needs to know of the point it is called at.

    Attributes:
        coordinates: `[k]`.
        tensors: Parameters and buffers by name, batch norms folded in.
        responses: Of the first layer to the chunk of samples: under the origin and under each direction; one such list
            for each of the places in a pooling window.
    """

    coordinates: list[float]
    tensors: dict[str, Tensor]
    responses: list[list[Tensor]] = field(default_factory=list)


@dataclass(eq=False)
class Layer:
    """A convolution or linear layer with what follows it.

    Attributes:
        name: Of the module.
        module: The module.
        norm: Name of the batch norm folded into it.
        onednn: Whether oneDNN's own operator is called, which is faster than torch's and may do more in one call.
        relu: Whether a ReLU follows in the same call.
        first: Whether its responses to the data are shared between points.
        pool: Window of the max-pooling that follows a first layer in the same call; 1 for none.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: str | None = None
    onednn: bool = False
    relu: bool = False
    first: bool = False
    pool: int = 1
    _memory: list[Tensor] | None = None  # for the result: fresh pages would cost more than the sum

    def __call__(self, point: Point, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Apply the layer at a point; `other` is added before the ReLU."""
        if self.first:
            return self._from_responses(point)
        weight, bias = point.tensors[f"{self.name}.weight"], point.tensors.get(f"{self.name}.bias")
        return self.apply(x, weight, bias, other)

    def _from_responses(self, point: Point) -> Tensor:
        """Add up the responses; where a pooling follows, the places of its window one after another."""
        shape = point.responses[0][0].shape
        if self._memory is None or self._memory[0].shape != shape:
            self._memory = [torch.empty_like(point.responses[0][0]) for _ in point.responses[:2]]
        largest, further = self._memory[0], self._memory[-1]
        for i, (at_origin, first, *others) in enumerate(point.responses):
            result = torch.add(at_origin, first, alpha=point.coordinates[0], out=further if i else largest)
            for coordinate, step in zip(point.coordinates[1:], others, strict=True):
                result.add_(step, alpha=coordinate)
            if i:
                torch.maximum(largest, result, out=largest)
        return largest

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None = None) -> Tensor:
        """Apply the layer with given weights."""
        if isinstance(self.module, nn.Linear):
            return F.linear(x, weight, bias)
        module = self.module
        place = (_pair(module.stride), _pair(module.padding), _pair(module.dilation), module.groups)
        if not self.onednn:
            return F.conv2d(x, weight, bias, *place)
        stride, padding, dilation, groups = place
        operator = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            after = "relu" if self.relu else "none"
            return operator(x, weight, bias, padding, stride, dilation, groups, after, [], "")
        return operator.binary(x, other, weight, bias, padding, stride, dilation, groups, "add", None, "relu", [], "")


@dataclass(frozen=True, eq=False)
class MaxPool:
    """Max-pooling with square windows that do not overlap: the element-wise maximum of strided views."""

    size: int

    def __call__(self, point: Point, x: Tensor) -> Tensor:
        """Pool `[n, c, h, w]`; rows and columns left over at the end are dropped, as in `nn.MaxPool2d`."""
        first, second, *others = window_views(x, self.size)
        result = torch.maximum(first, second)
        for view in others:
            result = torch.maximum(result, view)
        return result


def window_views(x: Tensor, size: int) -> list[Tensor]:
    """Return what lies at each place of square windows that do not overlap: `size^2` views `[n, c, h/size, w/size]`."""
    h, w = (n // size * size for n in x.shape[-2:])
    return [x[..., i:h:size, j:w:size] for i in range(size) for j in range(size)]


def drop_identities(traced: fx.GraphModule) -> None:
    """Remove dropout and identities, which do nothing in evaluation mode."""
    for node in list(traced.graph.nodes):
        if is_identity(traced, node):
            _replace(traced, node, node.args[0])


def mark_layers(traced: fx.GraphModule) -> list[fx.Node]:
    """Put a `Layer` in the place of each convolution and linear layer; returns their nodes.

    A module called more than once stays as it is: what follows one call need not follow the other.
    """
    nodes = []
    for node in list(traced.graph.nodes):
        module: Any = module_of(traced, node)
        once = sum(other.op == "call_module" and other.target == node.target for other in traced.graph.nodes) == 1
        convolution = type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple)
        if once and (convolution or linear_parameters(traced, node)) and not node.kwargs:
            with traced.graph.inserting_before(node):
                new = _call(traced, Layer(str(node.target), module), node.args[0])
            _replace(traced, node, new)
            nodes.append(new)
    return nodes


def fold_norms(traced: fx.GraphModule) -> int:
    """Fold batch norms into the convolutions before them; returns how many."""
    n = 0
    for node in list(traced.graph.nodes):
        module = module_of(traced, node)
        if type(module) is nn.BatchNorm2d and module.running_mean is not None:
            layer = _layer_used_once(node.args[0])
            if layer is not None and isinstance(layer.module, nn.Conv2d) and layer.norm is None:
                layer.norm = str(node.target)
                _replace(traced, node, node.args[0])
                n += 1
    return n


def rewrite_pools(traced: fx.GraphModule) -> tuple[int, int]:
    """Rewrite max-poolings, and put them before a non-decreasing activation; returns how many, and how many moved."""
    n = n_swapped = 0
    for node in list(traced.graph.nodes):
        size = _pool_size(traced, node)
        if size is None:
            continue
        source = node.args[0]
        swap = isinstance(source, fx.Node) and is_rising(traced, source) and len(source.users) == 1
        with traced.graph.inserting_before(node):
            new = _call(traced, MaxPool(size), source.args[0] if swap else source)
            if swap:
                new = traced.graph.create_node(source.op, source.target, (new, *source.args[1:]), source.kwargs)
        _replace(traced, node, new)
        if swap:
            traced.graph.erase_node(source)
        n, n_swapped = n + 1, n_swapped + swap
    return n, n_swapped


def fuse(traced: fx.GraphModule) -> tuple[int, int]:
    """Merge convolution + ReLU, and convolution + addition + ReLU; returns how many of each."""
    n_relu = n_sum = 0
    for node in list(traced.graph.nodes):
        if not _is_relu(traced, node):
            continue
        source = node.args[0]
        layer = _fusable(source)
        if layer is not None:
            layer.relu = True
            _replace(traced, node, source)
            n_relu += 1
        elif isinstance(source, fx.Node) and _is_sum(source) and len(source.users) == 1:
            terms: Any = source.args
            for i in (1, 0):
                term, other = terms[i], terms[1 - i]
                layer = _fusable(term)
                if layer is not None:
                    layer.relu = True
                    with traced.graph.inserting_before(node):
                        new = _call(traced, layer, term.args[0], other)
                    _replace(traced, node, new)
                    traced.graph.erase_node(source)
                    traced.graph.erase_node(term)
                    n_sum += 1
                    break
    return n_relu, n_sum


def mark_first(traced: fx.GraphModule, layers: list[fx.Node], k: int) -> Layer | None:
    """Find the layer that sees the data and shares its responses between the points of a slice with `k` directions.

    A max-pooling right after it is done with it: its window is cut apart once, and the parts are contiguous.
    """
    for node in layers:
        layer = node.target
        assert isinstance(layer, Layer)
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "placeholder" or layer.norm or len(source.users) != 1:
            continue
        if isinstance(layer.module, nn.Linear):
            layer.first = layer.module.in_features > k + 1
        else:
            layer.first = layer.module.in_channels <= FEW_CHANNELS
        if layer.first:
            after = next(iter(node.users))
            if len(node.users) == 1 and isinstance(after.target, MaxPool):
                layer.pool = after.target.size
                _replace(traced, after, node)
            return layer
    return None


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Try oneDNN's fused convolution, a private operator, on a small example."""
    if device.type != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 5, 5), (4, 3, 3, 3)))
    layer = Layer("", nn.Conv2d(3, 4, 3, padding=1), onednn=True, relu=True)
    try:
        with torch.inference_mode():
            plain = F.conv2d(x, w, None, padding=1)
            one = layer.apply(x, w, None)
            two = layer.apply(x, w, None, plain)
        return bool(torch.allclose(one, plain.relu(), atol=1e-5) and torch.allclose(two, (2 * plain).relu(), atol=1e-5))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # another version of torch may not have it


def _call(traced: fx.GraphModule, target: Layer | MaxPool, *args: Any) -> fx.Node:
    return traced.graph.create_node("call_function", target, args, name=type(target).__name__.lower())


def _replace(traced: fx.GraphModule, node: fx.Node, new: Any) -> None:
    node.replace_all_uses_with(new)
    traced.graph.erase_node(node)


def _layer_used_once(node: Any) -> Layer | None:
    if isinstance(node, fx.Node) and isinstance(node.target, Layer) and len(node.users) == 1:
        return node.target
    return None


def _fusable(node: Any) -> Layer | None:
    layer = _layer_used_once(node)
    if layer is None or not isinstance(layer.module, nn.Conv2d) or layer.relu or layer.first:
        return None
    return layer


def _is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(traced, node)
    return (
        type(module) is nn.ReLU
        or node.target in (torch.relu, F.relu)
        or (node.op == "call_method" and node.target == "relu")
    )


def _is_sum(node: fx.Node) -> bool:
    plain = not node.kwargs and len(node.args) == 2 and all(isinstance(term, fx.Node) for term in node.args)
    return plain and node.target in (operator.add, operator.iadd, torch.add, "add", "add_")


def _pool_size(traced: fx.GraphModule, node: fx.Node) -> int | None:
    """Return the window of a max-pooling that can be rewritten: square, no overlap, no padding."""
    module = module_of(traced, node)
    if type(module) is nn.MaxPool2d:
        options: Any = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        if module.return_indices:
            return None
    elif node.target in (F.max_pool2d, torch.max_pool2d):
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        if given.pop("return_indices", False):
            return None
        defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
        options = tuple({**defaults, **given}.get(name) for name in names[:5])
    else:
        return None
    kernel, stride, padding, dilation, ceil = options
    size = _pair(kernel)
    plain = _pair(stride or kernel) == size and _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not ceil
    return size[0] if plain and size[0] == size[1] and 1 < size[0] <= 3 else None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)

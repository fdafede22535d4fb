"""Layers rewritten: what the nodes of a rewritten graph call."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.evaluation import stage

SAFE = 1e30  # a layer whose results are known to be smaller makes neither infinity nor NaN


@dataclass
class Point:
    """What a layer needs to know of the point it is called at.

    Attributes:
        coordinates: `[k]`.
        tensors: Parameters and buffers by name, batch norms folded in.
        first: What comes out of the first layer for a chunk of samples, where it is made of responses.
        packed: Weights of convolutions by name, laid out for oneDNN.
        gains: Of convolutions by name: the largest sum of absolute weights of a filter, and the largest absolute bias.
        compiled: Whether numba does what it can.
    """

    coordinates: list[float]
    tensors: dict[str, Tensor]
    first: Tensor | None = None
    packed: dict[str, Tensor] = field(default_factory=dict)
    gains: dict[str, tuple[float, float]] = field(default_factory=dict)
    compiled: bool = False


@dataclass(eq=False)
class Layer:
    """A convolution or linear layer with what follows it.

    oneDNN's fused ReLU makes 0 of NaN. So it is called only where the result is known to be finite, from a bound handed
    from layer to layer, `max |y| <= max_f sum |W_f| max |x| + max |b|`, and measured where it has grown too large; else
    convolution, addition and ReLU are called one after the other.

    Attributes:
        name: Of the module.
        module: The module.
        norm: Name of the batch norm folded into it.
        onednn: Whether oneDNN's own operator is called, which is faster than torch's and may do more in one call.
        relu: Whether a ReLU follows in the same call.
        bounds: Whether nobody changes the result, so that a bound attached to it stays true.
        into_other: Whether the addition is done in the memory of what is added, which nobody needs afterwards.
        first: Whether its responses to the data are shared between points.
        pool: Window of the max-pooling that follows a first layer in the same call; 1 for none.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: str | None = None
    onednn: bool = False
    relu: bool = False
    bounds: bool = False
    into_other: bool = False
    first: bool = False
    pool: int = 1

    def __call__(self, point: Point, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Apply the layer at a point; `other` is added before the ReLU."""
        if self.first:
            assert point.first is not None
            return point.first
        weight, bias = (point.tensors[f"{self.name}.weight"], point.tensors.get(f"{self.name}.bias"))
        if not self.onednn:
            return self.apply(x, weight, bias)
        bound = self._bound(point, weight, bias, x, other) if self.relu or other is not None else None
        if bound is not None and not bound <= SAFE:
            result = F.conv2d(x, weight, bias, *self._place())
            result = result if other is None else result.add_(other)
            return result.relu_() if self.relu else result
        if x.is_contiguous(memory_format=torch.channels_last):
            packed = point.packed.get(self.name)
            if packed is None:
                stride, padding, dilation, groups = self._place()
                packed = point.packed[self.name] = torch.ops.mkldnn._reorder_convolution_weight(
                    weight, padding, stride, dilation, groups, list(x.shape)
                )
            weight = packed
        result = self.apply(x, weight, bias, other)
        if self.bounds and bound is not None:
            result.bound = bound  # type: ignore[attr-defined]
        return result

    def _bound(self, point: Point, weight: Tensor, bias: Tensor | None, x: Tensor, other: Tensor | None) -> float:
        """Return a number that no entry of the result exceeds; NaN or infinity where there is none."""
        gain = point.gains.get(self.name)
        if gain is None:
            largest_bias = 0.0 if bias is None else _largest(bias)
            gain = point.gains[self.name] = _largest(weight.flatten(1).abs().sum(dim=1)), largest_bias
        for measure in (_known, _largest):
            bound = gain[0] * measure(x) + gain[1] + (0.0 if other is None else measure(other))
            if bound <= SAFE:
                break
        return bound

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None = None) -> Tensor:
        """Apply the layer with given weights."""
        if isinstance(self.module, nn.Linear):
            return F.linear(x, weight, bias)
        stride, padding, dilation, groups = self._place()
        if not self.onednn:
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        place = (padding, stride, dilation, groups)
        after = "relu" if self.relu and not self.first else None  # responses are added up before it
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *place, after or "none", [], "")
        if self.into_other:
            operator = torch.ops.mkldnn._convolution_pointwise_.binary
            return operator(other, x, weight, bias, *place, "add", None, after, [], "")
        operator = torch.ops.mkldnn._convolution_pointwise.binary
        return operator(x, other, weight, bias, *place, "add", None, after, [], "")

    def _place(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        module = self.module
        assert isinstance(module, nn.Conv2d)
        return (pair(module.stride), pair(module.padding), pair(module.dilation), module.groups)


@dataclass(eq=False)
class MaxPool:
    """Max-pooling with square windows that do not overlap: the element-wise maximum of strided views.

    Attributes:
        size: Of the windows.
        relu: Whether a ReLU follows in the same call.
    """

    size: int
    relu: bool = False

    def __call__(self, point: Point, x: Tensor) -> Tensor:
        """Pool `[n, c, h, w]`; rows and columns left over at the end are dropped, as in `nn.MaxPool2d`."""
        if point.compiled and self.size == 2 and stage.can_pool(x):
            return stage.pool(x, self.relu)
        first, second, *others = window_views(x, self.size)
        result = torch.maximum(first, second)
        for view in others:
            result = torch.maximum(result, view)
        return result.relu_() if self.relu else result


def window_views(x: Tensor, size: int) -> list[Tensor]:
    """Return what lies at each place of square windows that do not overlap: `size^2` views `[n, c, h/size, w/size]`."""
    h, w = (n // size * size for n in x.shape[-2:])
    return [x[..., i:h:size, j:w:size] for i in range(size) for j in range(size)]


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Try oneDNN's fused convolution, made of private operators, on a small example."""
    if device.type != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 5, 5), (4, 3, 3, 3)))
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            plain = F.conv2d(x, w, None, padding=1)
            point = Point([], {".weight": w})
            layer = Layer("", nn.Conv2d(3, 4, 3, padding=1), onednn=True, relu=True)
            found = [layer.apply(x, w, None), layer(point, x, plain)]
            layer.into_other = True
            found.append(layer(point, x, plain.clone(memory_format=torch.preserve_format)))
        expected = [plain.relu(), (2 * plain).relu(), (2 * plain).relu()]
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # another version of torch may not have it


def _largest(x: Tensor) -> float:
    return max(x.amax().item(), -x.amin().item())  # NaN if there is one


def _known(x: Tensor) -> float:
    """Return the bound that a layer attached to its result; where there is none, measure it."""
    bound = getattr(x, "bound", None)
    return _largest(x) if bound is None else bound


def pair(value: Any) -> tuple[int, int]:
    """Return a size along both axes, given for each or once."""
    return (value, value) if isinstance(value, int) else tuple(value)

"""Follow the hidden units of a network through its graph.

A sum ties the units of its terms, a depthwise convolution those before and after it. Input and output of the network
are fixed. An operation that is not known fixes everything that enters it and everything that leaves it, so that what is
derived is never too much.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from landscape.evaluation.graph import (
    is_attribute,
    is_elementwise,
    is_flatten,
    is_identity,
    linear_parameters,
    module_of,
)
from landscape.symmetry.layers import enter_batch_norm, enter_linear, enter_norm, flatten, join, without_zeros
from landscape.symmetry.units import ZERO, Units, Value

_ODD = {
    nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Softshrink, torch.tanh, torch.sin, torch.erf, F.tanh, F.softsign,
    "tanh", "sin", "erf",
}  # fmt: skip
_HOMOGENEOUS = {nn.ReLU, nn.LeakyReLU, torch.relu, F.relu, F.leaky_relu, "relu"}
_NEGATIVE = {operator.neg, torch.neg, "neg"}
_DIFFERENCES = {operator.sub, torch.sub, "sub"}
_SUMS = {operator.add, torch.add, "add"} | _DIFFERENCES
_PRODUCTS = {operator.mul, torch.mul, "mul"}
_QUOTIENTS = {operator.truediv, torch.div, "div"}
_MAXIMA = {torch.maximum, torch.minimum, "maximum", "minimum"}
_CONVOLUTIONS: dict[Any, int] = {
    nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, F.conv1d: 1, F.conv2d: 2, F.conv3d: 3
}  # fmt: skip
_MEAN_POOLS = {
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
}  # fmt: skip
_MAX_POOLS = {
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
}  # fmt: skip
_MEANS = {torch.mean, torch.sum, "mean", "sum"}
_EXTREMES = {torch.amax, torch.amin, "amax", "amin"}
_COPIES = {"contiguous", "clone", "float", "double"}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM_TENSORS = ("running_mean", "running_var", "weight", "bias")


def follow(traced: fx.GraphModule, sample: Tensor) -> tuple[Units, list[str]]:
    """Follow all units through a graph.

    Args:
        traced: The graph of a network that takes one tensor.
        sample: `[b, ...]` some inputs.

    Returns:
        The units, and what was not followed, in words.
    """
    interpreter = _Shapes(traced)
    with torch.no_grad():
        interpreter.run(sample)
    follower = _Follower(traced, interpreter.shapes)
    for node in traced.graph.nodes:
        follower.visit(node)
    unknown = ", ".join(sorted(follower.unknown))
    return follower.units, [f"not followed, so that what enters or leaves it stays as it is: {unknown}"] * bool(unknown)


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shapes of all tensors."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


class _Follower:
    """Gives the nodes of a graph their values, in order.

    Attributes:
        units: All that was found.
        unknown: Names of the operations that were not followed.
    """

    def __init__(self, traced: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]) -> None:
        self.traced, self.shapes = traced, shapes
        self.units = Units()
        self.values: dict[fx.Node, Value] = {}
        self.unknown: set[str] = set()
        tensors: list[tuple[str, Tensor]] = [
            *traced.named_parameters(remove_duplicate=False),
            *traced.named_buffers(remove_duplicate=False),
        ]
        first: dict[int, str] = {}  # a tied parameter goes by its first name
        self.names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors}

    def visit(self, node: fx.Node) -> None:
        """Give a node its value."""
        if node.op == "output":
            self.fix_inputs(node)
        if node.op in ("output", "get_attr") or (node not in self.shapes and _is_size(node)):
            return
        known = self.result(node) if node in self.shapes and node.op != "placeholder" else None
        if known is None and node.op != "placeholder":
            module = module_of(self.traced, node)
            self.unknown.add(_name(node.target) if module is None else type(module).__name__)
            self.fix_inputs(node)
        if node not in self.shapes:  # several values at once
            return
        value = self.fixed(node) if known is None else known
        self.values[node] = value
        for unit, slot in zip(value.unit.tolist(), value.slot.tolist(), strict=True):
            if unit != ZERO:  # units that went different ways are told apart
                self.units.tag(unit, (node.name, slot))

    def result(self, node: fx.Node) -> Value | None:
        """Return the value of a call; None if it is not known."""
        module = module_of(self.traced, node)
        kind: Any = node.target if module is None else type(module)
        sources = [source for source in node.all_input_nodes if source in self.values]
        if not sources:
            return None
        if (named := linear_parameters(self.traced, node)) is not None:
            return self.linear(node, sources[0], len(self.shapes[sources[0]]) - 1, *named)
        if kind in _CONVOLUTIONS:
            return self.convolution(node, sources[0], module)
        if any(is_attribute(source) for source in node.all_input_nodes):  # a parameter with channels of its own
            return None
        if kind in (torch.cat, torch.concat):
            return self.cat(node)
        if len(sources) > 1:
            return self.joined(kind, sources) if is_elementwise(self.traced, node) else None
        value = self.values[sources[0]]
        if is_identity(self.traced, node) or kind in _COPIES:
            return value
        if module is not None and kind in (*_BATCH_NORMS, nn.GroupNorm, nn.LayerNorm):
            return self.norm(node, module, sources[0])
        if is_flatten(self.traced, node):
            return flatten(value, self.shapes[sources[0]])
        if kind in _MEAN_POOLS or kind in _MAX_POOLS:
            fits = value.axis == 1 and len(self.shapes[node]) > 2
            return self.homogeneous(value, odd=kind in _MEAN_POOLS) if fits else None
        if kind in _MEANS or kind in _EXTREMES:
            return self.reduced(node, sources[0], kind in _MEANS)
        if kind is F.pad:
            return self.pad(node, value)
        if kind is operator.getitem:
            return self.part(node, value)
        return self.elementwise(node, kind, module, value) if is_elementwise(self.traced, node) else None

    def fixed(self, node: fx.Node) -> Value:
        """Return a value whose channels are fixed, along axis 1."""
        shape = self.shapes[node]
        return self.fixed_channels(1, shape[1] if len(shape) > 1 else 1)

    def fixed_channels(self, axis: int, n: int) -> Value:
        units, gains = self.units.new(n, fixed=True)
        return Value(axis, units, np.zeros(n, int), gains)

    def fix_inputs(self, node: fx.Node) -> None:
        """Let everything that enters a node be as it is."""
        for source in node.all_input_nodes:
            if source in self.values:
                self.units.fix(self.values[source].unit)
                self.units.limit(self.values[source].gain)

    def along(self, source: fx.Node, axis: int) -> Value:
        """Return a value with its channels along an axis; fixed ones, if they were along another."""
        value = self.values[source]
        if value.axis == axis:
            return value
        self.units.fix(value.unit)
        self.units.limit(value.gain)
        return self.fixed_channels(axis, self.shapes[source][axis])

    def homogeneous(self, value: Value, odd: bool) -> Value:
        """Pass a function with f(s x) = s f(x) for s > 0, and for s < 0 if it is odd, too."""
        self.units.limit(value.gain, signs=odd, scales=True)
        return value

    def linear(
        self, node: fx.Node, source: fx.Node, axis: int, weight: str, bias: str | None, groups: int = 1
    ) -> Value | None:
        if weight not in self.names or (bias is not None and bias not in self.names):  # a parametrization makes it
            return None
        x, n_out = self.along(source, axis), self.shapes[node][axis]
        names = self.names[weight], None if bias is None else self.names[bias]
        return enter_linear(self.units, x, n_out, *names, groups, node.name)

    def convolution(self, node: fx.Node, source: fx.Node, module: nn.Module | None) -> Value | None:
        kind: Any = node.target if module is None else type(module)
        if len(self.shapes[source]) != _CONVOLUTIONS[kind] + 2:
            return None
        if module is not None:
            own = None if module.bias is None else f"{node.target}.bias"
            return self.linear(node, source, 1, f"{node.target}.weight", own, getattr(module, "groups", 1))
        arguments = ("weight", "bias", "stride", "padding", "dilation", "groups")
        given: dict[str, Any] = {**dict(zip(arguments, node.args[1:], strict=False)), **node.kwargs}
        of_weight, of_bias = given["weight"], given.get("bias")
        if not is_attribute(of_weight) or not (of_bias is None or is_attribute(of_bias)):
            return None
        bias = None if of_bias is None else str(of_bias.target)
        return self.linear(node, source, 1, str(of_weight.target), bias, given.get("groups", 1))

    def norm(self, node: fx.Node, module: Any, source: fx.Node) -> Value | None:
        leaves = [leaf for leaf in _NORM_TENSORS if getattr(module, leaf, None) is not None]
        if any(f"{node.target}.{leaf}" not in self.names for leaf in leaves):
            return None
        names = {leaf: self.names[f"{node.target}.{leaf}"] for leaf in leaves}
        value, last = self.values[source], len(self.shapes[source]) - 1
        if isinstance(module, nn.LayerNorm):
            if module.normalized_shape != self.shapes[source][-1:]:
                return None
            value = self.along(source, last)
            return enter_norm(self.units, value, names, len(value.unit), node.name)
        if value.axis != 1:
            return None
        if isinstance(module, nn.GroupNorm):
            return enter_norm(self.units, value, names, len(value.unit) // module.num_groups, node.name)
        return enter_batch_norm(self.units, value, names)

    def reduced(self, node: fx.Node, source: fx.Node, linear: bool) -> Value | None:
        """Follow the mean, sum, maximum or minimum along other axes than those of samples and channels."""
        value, axes = self.values[source], len(self.shapes[source])
        given: dict[str, Any] = {**dict(zip(("dim", "keepdim"), node.args[1:], strict=False)), **node.kwargs}
        dims = given.get("dim")
        dims = (dims,) if isinstance(dims, int) else dims
        if not isinstance(dims, Sequence) or not all(isinstance(dim, int) for dim in dims) or "dtype" in given:
            return None
        gone = {dim % axes for dim in dims}
        if 0 in gone or value.axis in gone:
            return None
        value = self.homogeneous(value, odd=linear)
        n_before = 0 if given.get("keepdim") else sum(dim < value.axis for dim in gone)
        return Value(value.axis - n_before, value.unit, value.slot, value.gain)

    def cat(self, node: fx.Node) -> Value | None:
        given: dict[str, Any] = {**dict(zip(("tensors", "dim"), node.args, strict=False)), **node.kwargs}
        tensors, dim = given["tensors"], given.get("dim", 0)
        if not isinstance(tensors, Sequence) or not all(source in self.values for source in tensors):
            return None
        parts = [self.values[source] for source in tensors]
        axis = dim % len(self.shapes[node])
        if any(part.axis != axis for part in parts):
            return None
        slots = [part.slot * len(parts) + i for i, part in enumerate(parts)]  # a unit may come twice
        units, gains = ([getattr(part, mark) for part in parts] for mark in ("unit", "gain"))
        return Value(axis, np.concatenate(units), np.concatenate(slots), np.concatenate(gains))

    def pad(self, node: fx.Node, value: Value) -> Value | None:
        given: dict[str, Any] = {**dict(zip(("pad", "mode", "value"), node.args[1:], strict=False)), **node.kwargs}
        sizes, axes = list(given["pad"]), len(self.shapes[node])
        if not all(isinstance(size, int) for size in sizes) or given.get("mode", "constant") != "constant":
            return None
        if given.get("value") not in (None, 0) or len(sizes) // 2 >= axes:
            return None
        place = axes - 1 - value.axis  # sizes come in pairs, from the last axis on
        before, after = sizes[2 * place : 2 * place + 2] or (0, 0)
        if before < 0 or after < 0:
            return None
        first, last = (self.units.new_gains(n) for n in (before, after))
        unit = np.pad(value.unit, (before, after), constant_values=ZERO)
        return Value(value.axis, unit, np.pad(value.slot, (before, after)), np.concatenate([first, value.gain, last]))

    def part(self, node: fx.Node, value: Value) -> Value | None:
        """Follow a slice `x[:, a:b, ::s]`."""
        index: Any = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if not all(isinstance(cut, slice) for cut in index) or index[0] != slice(None):
            return None
        cut = index[value.axis] if value.axis < len(index) else slice(None)
        if not all(bound is None or isinstance(bound, int) for bound in (cut.start, cut.stop, cut.step)):
            return None
        return Value(value.axis, value.unit[cut], value.slot[cut], value.gain[cut])

    def elementwise(self, node: fx.Node, kind: Any, module: nn.Module | None, value: Value) -> Value:
        """Follow a function of one value, and of numbers that may come with it."""
        twice = len(node.args) > 1 and node.args[0] is node.args[1]  # x + x, x * x
        plain = len(node.args) == 1 and not set(node.kwargs) - {"inplace"}
        linear = (
            kind in _NEGATIVE
            or (kind in _PRODUCTS and not twice)
            or (kind in _QUOTIENTS and not twice and node.args[0] in self.values)
            or (kind in _SUMS and twice and kind not in _DIFFERENCES)
        )
        if linear or (kind in _HOMOGENEOUS and plain) or kind in (F.leaky_relu, nn.LeakyReLU):
            return self.homogeneous(value, odd=linear)
        symmetric = isinstance(module, nn.Hardtanh) and module.min_val == -module.max_val
        if (kind in _ODD and plain) or symmetric:
            self.units.limit(value.gain, signs=True)
            return value
        self.units.limit(value.gain)
        value = without_zeros(self.units, value)
        return Value(value.axis, value.unit, value.slot, self.units.new_gains(len(value.unit), fixed=True))

    def joined(self, kind: Any, sources: list[fx.Node]) -> Value | None:
        """Follow a function of several values, entry by entry; broadcasting over pixels is one."""
        values = [self.values[source] for source in sources]
        axis, n = values[0].axis, len(values[0].unit)
        axes = {len(self.shapes[source]) for source in sources}
        if len(axes) > 1 or any(value.axis != axis or len(value.unit) != n for value in values):
            return None
        if kind not in _SUMS:
            values = [without_zeros(self.units, value) for value in values]
        result = values[0]
        for other in values[1:]:
            result = join(self.units, result, other, gains=kind in _SUMS or kind in _MAXIMA)
        if kind in _SUMS:
            return result
        if kind in _MAXIMA:
            return self.homogeneous(result, odd=False)
        for value in values:
            self.units.limit(value.gain)
        return Value(axis, result.unit, result.slot, self.units.new_gains(n, fixed=True))


def _is_size(node: fx.Node) -> bool:
    """Tell whether a node is a size or made of sizes, which do not depend on values."""
    return node.target in ("size", "dim", len, getattr, operator.getitem)


def _name(target: str | Callable) -> str:
    return target if isinstance(target, str) else target.__name__

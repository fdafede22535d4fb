"""The parameters of a network as one vector `theta`, and which of its entries belong together.

A point of the parameter space is a flat tensor `theta` of shape `[p]`, the parameters one after another in
`named_parameters()` order (a tied parameter once). Buffers are not part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from landscape.arguments import expect

Selection = str | Sequence[str]
"""`"all"`, `"trainable"` (those that require a gradient), or shell patterns of names such as `"encoder.*"`."""

_NORM = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ROWS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in `theta`.

    Attributes:
        names: Parameter names, in `named_parameters()` order.
        shapes: Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def p(self) -> int:
        """Number of entries of `theta`."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """Lay the named tensors one after another.

        Args:
            tensors: At least the layout's names, each of its shape; others are ignored.
            dtype: Type of the result. Default: the widest of the tensors, at least float32.

        Returns:
            `[p]`, a copy, detached.

        Raises:
            ValueError: A tensor is missing or has another shape.
            TypeError: A tensor is complex.
        """
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in tensors:
                raise ValueError(f"parameter {name!r} is missing: is this a checkpoint of another network?")
            if tuple(tensors[name].shape) != shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tuple(tensors[name].shape)}, expected {shape}: "
                    "is this a checkpoint of another network?"
                )
            parts.append(_with_values(f"parameter {name!r}", tensors[name]).detach().reshape(-1))
        if dtype is None:
            dtype = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
        return torch.cat([part.to(dtype) for part in parts])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Cut a vector into named parameters: views of `theta`, without a copy.

        Args:
            theta: `[p]`.

        Raises:
            ValueError: `theta` has another length.
        """
        if theta.shape != (self.p,):
            raise ValueError(f"theta has shape {tuple(theta.shape)}, expected ({self.p},)")
        parts = torch.split(theta, list(self.sizes))
        return {n: part.view(s) for n, part, s in zip(self.names, parts, self.shapes, strict=True)}


def real_tensor(name: str, value: Any) -> Tensor:
    """Return an argument that has to be a tensor of real floating-point numbers.

    Raises:
        TypeError: It is none; the message names it.
        ValueError: It is on the meta device.
    """
    expect(name, value, Tensor, "a torch tensor (torch.as_tensor makes one of an array)")
    if not value.is_floating_point():
        raise TypeError(f"{name} is {value.dtype}, expected real floating-point numbers such as torch.float32")
    return _with_values(name, value)


def _with_values(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        raise TypeError(f"{name} is {tensor.dtype}; landscapes need real parameters")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values: make it on a real one")
    return tensor


def layout(model: nn.Module, select: Selection = "all") -> Layout:
    """Lay out the parameters of a network that take part.

    Args:
        model: Any module.
        select: Which parameters: `"all"`, `"trainable"`, or one or several shell patterns of their names.

    Raises:
        ValueError: No parameter is selected, or one has no values (meta device).
        TypeError: Not a module, or a selected parameter is complex or not initialized yet.
    """
    expect("model", model, nn.Module, "a network (torch.nn.Module)")
    expect("select", select, (str, Sequence), "'all', 'trainable', or patterns of parameter names")
    chosen = {name: tensor for name, tensor in model.named_parameters() if _selected(name, tensor, select)}
    if not chosen:
        known = ", ".join(name for name, _ in model.named_parameters()) or "none"
        raise ValueError(f"select={select!r} matches no parameter; the model has: {known}")
    for name, tensor in chosen.items():
        if isinstance(tensor, nn.parameter.UninitializedParameter):
            raise TypeError(f"parameter {name!r} is not initialized yet: call the model once on a batch first")
        if not tensor.is_floating_point():
            raise TypeError(f"parameter {name!r} is {tensor.dtype}; landscapes need real floating-point parameters")
        _with_values(f"parameter {name!r}", tensor)
    return Layout(tuple(chosen), tuple(tuple(tensor.shape) for tensor in chosen.values()))


def _selected(name: str, tensor: Tensor, select: Selection) -> bool:
    if select == "all":
        return True
    if select == "trainable":
        return tensor.requires_grad
    patterns = [select] if isinstance(select, str) else select
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def tensor_ids(layout: Layout) -> Tensor:
    """Number the parameters: entry `i` of the result says to which tensor `theta[i]` belongs.

    Returns:
        `[p]`, int64, values `0 .. len(layout.names) - 1`.
    """
    return torch.repeat_interleave(torch.arange(len(layout.sizes)), torch.tensor(layout.sizes))


def is_weight(model: nn.Module, layout: Layout) -> dict[str, bool]:
    """Tell weights, which have filters, from biases and norm parameters, which have none.

    A parameter is a weight unless it has at most one axis, belongs to a normalization layer, or is one of the bias
    vectors of `nn.MultiheadAttention` (which are stored with three axes).
    """
    return {
        name: _filter_rows(*_owner(model, name), shape) is not None
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }


def filter_ids(model: nn.Module, layout: Layout) -> Tensor:
    """Number the filters: entry `i` of the result says to which filter `theta[i]` belongs.

    A filter is what produces one output unit: a row of the weight of a linear layer or convolution, axis 1 (within its
    group) of a transposed convolution, one token of an embedding, one row of a recurrent gate or of a fused attention
    projection. Axis 0 counts for tensors of unknown modules, after their leading axes of length 1 (a positional
    embedding `[1, t, d]` has one row per position). Li et al. 2018, arXiv:1712.09913, section 4.

    Returns:
        `[p]`, int64; -1 for biases and norm parameters.
    """
    parts, first = [], 0
    for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True):
        rows = _filter_rows(*_owner(model, name), shape)
        if rows is None:
            parts.append(torch.full((size,), -1))
            continue
        parts.append(rows.expand(shape).reshape(-1) + first)
        first += int(rows.max()) + 1 if rows.numel() else 0
    return torch.cat(parts)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Find the module a parameter acts in, and its name there, looking through `nn.utils.parametrize`."""
    path, _, leaf = name.rpartition(".")
    if ".parametrizations." in f".{path}.":
        path, _, leaf = f".{path}".rpartition(".parametrizations.")
        path = path.removeprefix(".")
    return model.get_submodule(path), leaf


def _filter_rows(owner: nn.Module, leaf: str, shape: tuple[int, ...]) -> Tensor | None:
    """Number the filters of one parameter, as a tensor that broadcasts to its shape; None if it has none."""
    if len(shape) <= 1 or isinstance(owner, _NORM):
        return None
    if isinstance(owner, nn.MultiheadAttention) and leaf in ("bias_k", "bias_v"):
        return None
    if isinstance(owner, _TRANSPOSED) and shape[0] == owner.in_channels:
        # [in, out / groups, *kernel]: input channel i of group g feeds the outputs g * out/groups + j
        group = torch.arange(shape[0]) // (shape[0] // owner.groups)
        rows = group[:, None] * shape[1] + torch.arange(shape[1])[None, :]
        return rows.reshape(*rows.shape, *[1] * (len(shape) - 2))
    axis = 0
    if not isinstance(owner, _ROWS):
        while axis < len(shape) - 1 and shape[axis] == 1:
            axis += 1
    return torch.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])

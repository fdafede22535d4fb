"""Losses and metrics: functions of a network's output and the target, a mean over the batch or one value per sample."""

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Metric = Callable[[Any, Any], Tensor]
"""`(output, target) -> ` a mean over the batch (0-D) or one value per sample (`[b]`)."""


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Compute the softmax cross-entropy of each sample.

    `log sum_j exp(h_j - m) + (m - h_y)` with `m = max_j h_j`. The sum, which is 1 plus little where the loss is small,
    is taken in float64, so that a small loss of float32 logits keeps its digits.

    Args:
        output: Logits `h`, `[b, c]`.
        target: Class indices, `[b]`.

    Returns:
        `[b]` float64, in nats.
    """
    largest = output.amax(dim=1)
    of_target = output.gather(1, target[:, None].long()).squeeze(1)
    return (output - largest[:, None]).exp().sum(dim=1, dtype=torch.float64).log() + (largest - of_target)


def cross_entropy_slope(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the softmax cross-entropy of each sample, and its derivative by the logits, `softmax(h) - e_y`.

    For training, which needs no second derivatives: faster than what autograd makes of `cross_entropy`.

    Args:
        output: Logits `h`, `[..., b, c]`.
        target: Class indices, `[..., b]`.

    Returns:
        The values of `cross_entropy`, `[..., b]` float64; the derivatives `[..., b, c]`, of the output's type.
    """
    target = target[..., None].long()
    largest = output.amax(dim=-1, keepdim=True)
    weights = (output - largest).exp()
    total = weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    losses = total.log() + (largest - output.gather(-1, target))
    slope = weights.div_(total.to(output.dtype))
    return losses.squeeze(-1), slope.scatter_add_(-1, target, slope.new_tensor(-1.0).expand(target.shape))


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Tell for each sample whether its class has the largest logit: 1 or 0, a tie counts as 1.

    Args:
        output: Logits `[b, c]`.
        target: Class indices, `[b]`.

    Returns:
        `[b]`, of the output's type. NaN logits count as wrong.
    """
    of_target = output.gather(1, target[:, None].long()).squeeze(1)
    return (of_target == output.amax(dim=1)).to(output.dtype)


def default_loss(output: Any, target: Any) -> Tensor:
    """Use the model's own loss where it returns one (`output.loss`), the cross-entropy for class indices otherwise.

    Raises:
        TypeError: Neither fits; the message says what came.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if own is not None:
        return own
    if is_classification(output, target):
        return cross_entropy(output, target)
    raise TypeError(
        f"no default loss for an output {describe_value(output)} and a target {describe_value(target)}: "
        "pass loss=function(output, target)"
    )


def is_cross_entropy(function: Callable) -> bool:
    """Tell whether a loss is the plain softmax cross-entropy for class indices, ours or torch's."""
    if type(function) is nn.CrossEntropyLoss:
        return function.weight is None and function.label_smoothing == 0 and function.reduction == "mean"
    return function in (default_loss, cross_entropy, F.cross_entropy)


def is_classification(output: Any, target: Any) -> bool:
    """Tell whether an output `[b, c]`, `c >= 2`, holds logits for targets `[b]` that are class indices."""
    return (
        isinstance(output, Tensor)
        and isinstance(target, Tensor)
        and output.ndim == 2
        and output.shape[1] > 1
        and output.is_floating_point()
        and target.shape == output.shape[:1]
        and target.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    )


def describe_callable(function: Callable) -> str:
    """Name a loss or metric, with a hash of its code where the name alone would not tell it apart.

    The text is the same in every process. What the code refers to outside of itself is not part of it. Functions of
    torch and of this package are known by their names: other versions, also of Python, compile them to other code.
    """
    if isinstance(function, nn.Module):
        # `CrossEntropyLoss()` is what every one of them is called; what tells them apart are its attributes
        own = {**vars(function), **dict(function.named_buffers()), **dict(function.named_parameters())}
        options = [
            f"{name}={_describe_argument(value)}"
            for name, value in sorted(own.items())
            if not name.startswith("_") and name != "training" and value is not None
        ]
        text = without_addresses(repr(function))
        return f"{text} with {', '.join(options)}" if options else text
    if isinstance(function, partial):
        given = [_describe_argument(value) for value in function.args]
        given += [f"{name}={_describe_argument(value)}" for name, value in sorted(function.keywords.items())]
        return f"{describe_callable(function.func)} with {', '.join(given)}"
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
    code = getattr(function, "__code__", None)
    if code is None or name.startswith(("torch.", "landscape.")):
        return name
    digest = hashlib.sha256()
    _hash_code(code, digest)
    return f"{name} ({digest.hexdigest()[:8]})"


def _describe_argument(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{describe_value(value)} ({hashlib.sha256(repr(value.tolist()).encode()).hexdigest()[:8]})"
    return describe_callable(value) if callable(value) else without_addresses(repr(value))


def without_addresses(text: str) -> str:
    """Leave out the memory addresses that Python's own `repr` shows: they differ in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _hash_code(code: CodeType, digest: "hashlib._Hash") -> None:
    """Hash instructions, names and constants; nested functions by their own code, since their repr is an address."""
    digest.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _hash_code(constant, digest)
        else:
            ordered = sorted(constant, key=repr) if isinstance(constant, frozenset) else constant
            digest.update(repr(ordered).encode())


def describe_value(value: Any) -> str:
    """Say in a few words what a batch, output or target is, for error messages."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(describe_value(item) for item in value) + ")"
    return type(value).__name__

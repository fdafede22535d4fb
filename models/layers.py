"""Linear and convolution layers, initialized for the activation beside them."""

import math
from collections.abc import Sequence

import torch
from torch import nn


def linear(n_in: int, n_out: int, activation: str, scale: float = 1.0) -> nn.Linear:
    """Return a Linear layer with weights by `initialize_` and zero biases."""
    layer = nn.Linear(n_in, n_out)
    initialize_(layer.weight, n_in, n_out, activation, scale)
    nn.init.zeros_(layer.bias)
    return layer


def convolution(
    n_in: int,
    n_out: int,
    kernel: int,
    size: Sequence[int],
    activation: str,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = True,
    scale: float = 1.0,
) -> nn.Conv2d:
    """Return a square convolution with weights by `initialize_` and zero biases.

    The fans are `n_in * taps` and `n_out * taps`, where `taps` is the number of kernel entries that lie on
    the image, averaged over the output pixels. It is `kernel**2` without padding; with padding it is smaller,
    which matters on images of a few pixels: a 3x3 kernel on a padded 2x2 image has 4 taps, not 9.

    Args:
        n_in: input channels.
        n_out: output channels.
        kernel: height and width of the kernel, in pixels.
        size: `(height, width)` of the layer's input, in pixels.
        activation: see `initialize_`.
        stride: step of the kernel, in pixels.
        padding: zeros on each side, in pixels.
        bias: whether the layer has biases.
        scale: factor on the initial weights.
    """
    layer = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=bias)
    taps = math.prod(mean_taps(pixels, kernel, stride, padding) for pixels in size)
    initialize_(layer.weight, n_in * taps, n_out * taps, activation, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def mean_taps(pixels: int, kernel: int, stride: int, padding: int) -> float:
    """Return how many kernel entries lie on the image along one axis, averaged over the outputs."""
    starts = range(-padding, pixels + padding - kernel + 1, stride)
    return sum(min(start + kernel, pixels) - max(start, 0) for start in starts) / len(starts)


def initialize_(weight: torch.Tensor, fan_in: float, fan_out: float, activation: str, scale: float = 1.0) -> None:
    """Fill `weight` at random so that signals keep their size through the activation, times `scale`.

    - relu, gelu: normal with variance `2 / fan_in` (He et al., arXiv:1502.01852).
    - maxout: normal with variance `1 / fan_in`, since the larger of two independent standard normal numbers
      has second moment 1.
    - every other activation, and none: uniform with variance `2 / (fan_in + fan_out)` (Glorot and Bengio
    2010).
    """
    if activation in ("relu", "gelu"):
        nn.init.normal_(weight, std=scale * math.sqrt(2 / fan_in))
    elif activation == "maxout":
        nn.init.normal_(weight, std=scale * math.sqrt(1 / fan_in))
    else:
        bound = scale * math.sqrt(6 / (fan_in + fan_out))
        nn.init.uniform_(weight, -bound, bound)

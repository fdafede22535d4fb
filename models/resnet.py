"""Residual networks for small images, with and without their skip connections."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from .arguments import image, one_of, whole
from .layers import convolution, linear


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them: `relu(shortcut(x) + branch(x))`.

    The shortcut has no parameters (option A): it takes every `stride`-th pixel and appends channels of zeros.
    Without `skip` the block is `relu(branch(x))`. `size` is `(height, width)` of the input, `scale` a factor
    on the initial weights of the second convolution.
    """

    def __init__(
        self, n_in: int, n_out: int, stride: int, size: Sequence[int], skip: bool, norm: str, scale: float
    ) -> None:
        super().__init__()
        self.stride, self.n_extra, self.skip = stride, n_out - n_in, skip
        self.branch = nn.Sequential(
            *normed_convolution(n_in, n_out, size, norm, stride=stride),
            nn.ReLU(),
            *normed_convolution(n_out, n_out, strided(size, stride), norm, scale=scale),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, `[b, n_out, h / stride, w / stride]` rounded up."""
        y = self.branch(x)
        if self.skip:
            shortcut = x[:, :, :: self.stride, :: self.stride]
            y = y + nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.n_extra))
        return torch.relu(y)


def resnet(
    depth: int = 20,
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    width: int = 16,
    skip: bool = True,
    norm: str = "batch",
) -> nn.Sequential:
    """Return a ResNet of He et al. for CIFAR-sized images (arXiv:1512.03385, section 4.2).

    A 3x3 convolution, three stages of `n = (depth - 2) / 6` blocks with `width`, `2 * width` and `4 * width`
    channels at full, half and quarter resolution, the mean over all pixels, and one Linear layer. Shortcuts
    are free of parameters (option A), so `skip=False` (arXiv:1712.09913) has the same parameters, without the
    shortcuts.

    Weights are normal with He's variance `2 / fan_in`, counting only the kernel entries on the image
    (`layers.convolution`), and follow Glorot's rule in the Linear layer; biases are 0. With `norm="none"` the
    convolutions have biases, and with shortcuts the initial weights of each block's second convolution are
    multiplied by `1 / sqrt(3 n)`, so that the sum over the `3 n` blocks does not grow with depth.

    Args:
        depth: number of weight layers, `6 n + 2`: 8, 14, 20, 32, 44, 56, 110.
        input_shape: `(channels, height, width)` of one image.
        classes: number of logits.
        width: channels of the first stage.
        skip: whether there are shortcuts.
        norm: batch (batch normalization after every convolution) or none.

    Returns:
        A module from `[b, *input_shape]` to logits `[b, classes]`.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    depth = whole("depth", depth, least=8)
    if depth % 6 != 2:
        n = max(1, round((depth - 2) / 6))
        raise ValueError(f"depth must be 6 n + 2, such as 20, 56 or 110; got {depth}, next to it is {6 * n + 2}")
    n_in, *size = image(input_shape)
    classes, width = whole("classes", classes), whole("width", width)
    one_of("norm", norm, ("batch", "none"))
    if not isinstance(skip, bool):
        raise TypeError(f"skip must be True or False, got {skip!r}")
    n_blocks = (depth - 2) // 6
    scale = 1 / math.sqrt(3 * n_blocks) if skip and norm == "none" else 1.0

    layers: list[nn.Module] = [*normed_convolution(n_in, width, size, norm), nn.ReLU()]
    n_in = width
    for stage in range(3):
        n_out = width * 2**stage
        for i in range(n_blocks):
            stride = 2 if stage > 0 and i == 0 else 1
            layers.append(Block(n_in, n_out, stride, size, skip, norm, scale))
            n_in, size = n_out, strided(size, stride)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(n_in, classes, "identity"))


def normed_convolution(
    n_in: int, n_out: int, size: Sequence[int], norm: str, stride: int = 1, scale: float = 1.0
) -> list[nn.Module]:
    """Return a padded 3x3 convolution and its batch norm, or one with biases if `norm` is none."""
    # Batch norm subtracts the mean, so that biases before it would be exactly flat directions of the loss.
    layer = convolution(n_in, n_out, 3, size, "relu", stride=stride, padding=1, bias=norm == "none", scale=scale)
    return [layer, nn.BatchNorm2d(n_out)] if norm == "batch" else [layer]


def strided(size: Sequence[int], stride: int) -> list[int]:
    """Return the size of an image of which every `stride`-th pixel is kept."""
    return [math.ceil(pixels / stride) for pixels in size]

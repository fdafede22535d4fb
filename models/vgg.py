"""VGG-style networks for small images."""

from collections.abc import Sequence

from torch import nn

from .arguments import image, one_of, whole
from .layers import convolution, linear

# Convolutions in each stage, and Linear layers at the end.
STAGES: dict[int, tuple[tuple[int, ...], int]] = {
    9: ((2, 2, 3), 2),
    11: ((1, 1, 2, 2, 2), 3),
    13: ((2, 2, 2, 2, 2), 3),
    16: ((2, 2, 3, 3, 3), 3),
    19: ((2, 2, 4, 4, 4), 3),
}


def vgg(
    input_shape: Sequence[int], classes: int, depth: int = 9, width: int = 64, norm: str = "batch"
) -> nn.Sequential:
    """Return a VGG-style network for small images (Simonyan and Zisserman, arXiv:1409.1556).

    Stages of padded 3x3 convolutions with relu, with `width` times 1, 2, 4, 8, 8 channels and 2x2 max pooling
    after each stage as long as the image is larger than 1 pixel both ways; then Linear layers with
    `8 * width` hidden units, where the original has 4096 and dropout. Depths 11, 13, 16 and 19 are
    configurations A, B, D and E of the paper; depth 9 is the first 7 convolutions of depth 16 and two Linear
    layers (arXiv:1712.09913). Weights are normal with He's variance `2 / fan_in`, counting only the kernel
    entries on the image (`layers.convolution`), and follow Glorot's rule in the last Linear layer; biases
    are 0.

    Args:
        input_shape: `(channels, height, width)` of one image.
        classes: number of logits.
        depth: number of weight layers: 9, 11, 13, 16 or 19.
        width: channels of the first stage.
        norm: batch (batch normalization after every convolution, which then has no biases) or none.

    Returns:
        A module from `[b, *input_shape]` to logits `[b, classes]`.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    channels, *size = image(input_shape)
    classes, width = whole("classes", classes), whole("width", width)
    one_of("norm", norm, ("batch", "none"))
    if depth not in STAGES:
        raise ValueError(f"depth must be one of {', '.join(map(str, STAGES))}; got {depth!r}")
    stages, n_linear = STAGES[depth]
    layers: list[nn.Module] = []
    for i, n_convolutions in enumerate(stages):
        n_out = width * 2 ** min(i, 3)
        for _ in range(n_convolutions):
            layers.append(convolution(channels, n_out, 3, size, "relu", padding=1, bias=norm == "none"))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.ReLU())
            channels = n_out
        if min(size) > 1:
            layers.append(nn.MaxPool2d(2))
            size = [pixels // 2 for pixels in size]
    layers.append(nn.Flatten())
    n_in = channels * size[0] * size[1]
    for _ in range(n_linear - 1):
        layers += [linear(n_in, 8 * width, "relu"), nn.ReLU()]
        n_in = 8 * width
    return nn.Sequential(*layers, linear(n_in, classes, "identity"))

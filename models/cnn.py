"""Small convolutional networks."""

from collections.abc import Sequence

from torch import nn

from .arguments import image, one_of, whole
from .layers import convolution, linear


def lenet(input_shape: Sequence[int], classes: int, activation: str = "tanh", pool: str = "max") -> nn.Sequential:
    """Return a network in the manner of LeNet-5 (LeCun et al. 1998).

    Two rounds of 5x5 convolution (6, then 16 channels), activation and 2x2 pooling, then Linear layers of
    120, 84 and `classes` units. The first convolution is padded by 2 pixels for images under 32 pixels, the
    second where under 6 pixels would reach it, so that 28x28 and 32x32 images both give the 400 features of
    the original and 8x8 images give 64. Unlike the original, every channel of the second convolution sees all
    6 channels, and pooling has no parameters. Weights are initialized by Glorot's rule for tanh and by He's
    for relu (`layers.initialize_`); biases are 0.

    Args:
        input_shape: `(channels, height, width)` of one image, at least 4x4 pixels.
        classes: number of logits.
        activation: tanh or relu.
        pool: max or average.

    Returns:
        A module from `[b, *input_shape]` to logits `[b, classes]`.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    channels, height, width = image(input_shape, least=4)
    classes = whole("classes", classes)
    one_of("activation", activation, ("tanh", "relu"))
    one_of("pool", pool, ("max", "average"))
    make_activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]
    make_pool = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}[pool]
    layers: list[nn.Module] = []
    for n_out, unpadded_from in ((6, 32), (16, 6)):
        padding = 0 if min(height, width) >= unpadded_from else 2
        layers += [
            convolution(channels, n_out, 5, (height, width), activation, padding=padding),
            make_activation(),
            make_pool(2),
        ]
        channels, height, width = n_out, (height + 2 * padding - 4) // 2, (width + 2 * padding - 4) // 2
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        linear(channels * height * width, 120, activation),
        make_activation(),
        linear(120, 84, activation),
        make_activation(),
        linear(84, classes, activation),
    )

"""Dense networks."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from .arguments import one_of, shape, whole
from .layers import linear


class Step(nn.Module):
    """The Heaviside step: 1 where x > 0, else 0, NaN where x is NaN; its gradient is 0 everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1.0 where `x > 0`, else 0.0."""
        # Through sign, which autograd knows to have gradient 0; a comparison would cut the graph.
        step = torch.sign(x).clamp(min=0)
        return torch.where(x.isnan(), x, step)


class Maxout(nn.Module):
    """A layer of maxout units with two pieces each: `max(w0 + w1 x, v0 + v1 x)` (arXiv:1302.4389).

    Takes `[..., n_in]`, returns `[..., n_out]`. It is a Linear layer and its activation in one.
    """

    def __init__(self, n_in: int, n_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.first = linear(n_in, n_out, "maxout", scale)
        self.second = linear(n_in, n_out, "maxout", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the larger piece of each unit, `[..., n_out]`."""
        return torch.maximum(self.first(x), self.second(x))


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "step": Step,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "maxout": Maxout,
    "identity": nn.Identity,
}


def mlp(
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int] = (10, 10, 10, 10),
    activation: str = "tanh",
    init_scale: float = 1.0,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a dense network.

    It is `Flatten`, then for each width a `Linear` and its activation (one `Maxout` layer instead of both for
    maxout) and, only if `dropout > 0`, a `Dropout`, and at the end a `Linear` to the logits. Without widths
    it is softmax regression.

    All weights follow one rule, multiplied by `init_scale`: He's for relu and gelu, variance `1 / fan_in` for
    maxout, Glorot's otherwise (`layers.initialize_`); biases are 0. Glorot's rule expects slope 1 at 0, the
    sigmoid has 1/4: `init_scale=4` makes up for it.

    Args:
        input_shape: shape of one input, of any length: `(1, 28, 28)`, `(2,)`.
        classes: number of logits.
        widths: units of each hidden layer; may be empty.
        activation: step, sigmoid, tanh, relu, gelu, maxout or identity.
        init_scale: factor on all initial weights.
        dropout: probability that a hidden unit is dropped in training, in [0, 1).

    Returns:
        A module from `[b, *input_shape]` to logits `[b, classes]`.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> mlp((1, 8, 8), 10, widths=[32], activation="relu")(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    n_in, classes = math.prod(shape(input_shape)), whole("classes", classes)
    one_of("activation", activation, tuple(ACTIVATIONS))
    if not 0 <= init_scale < math.inf:
        raise ValueError(f"init_scale must be finite and not negative, got {init_scale}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise TypeError(f"widths must be a sequence such as (10, 10), got {widths!r}")
    layers: list[nn.Module] = [nn.Flatten()]
    for n_out in (whole("each width", width) for width in widths):
        if activation == "maxout":
            layers.append(Maxout(n_in, n_out, init_scale))
        else:
            layers += [linear(n_in, n_out, activation, init_scale), ACTIVATIONS[activation]()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        n_in = n_out
    return nn.Sequential(*layers, linear(n_in, classes, activation, init_scale))

"""A small transformer that attends over the rows of an image."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from .arguments import image, whole
from .layers import linear


class Attention(nn.Module):
    """Multi-head self-attention, `[b, t, width]` to `[b, t, width]` (arXiv:1706.03762).

    Per head of `d = width / heads` entries: `softmax(q k^T / sqrt(d)) v`. It is written out because PyTorch's
    fused kernels have no second derivative. The projections to q, k and v have no biases: that of k would be
    an exactly flat direction.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        for projection in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(projection)
        self.output = linear(width, width, "identity")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[b, t, width]`, each token a mixture of all tokens' values."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [b, t, 3, heads, d]
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind()  # each [b, heads, t, d]
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)  # [b, heads, t, t]
        return self.output((weights @ v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Pre-norm attention and dense block, each added to its input (arXiv:2002.04745)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.dense = nn.Sequential(
            nn.LayerNorm(width),
            linear(width, 4 * width, "identity"),
            nn.GELU(),
            linear(4 * width, width, "identity"),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens `[b, t, width]` with both blocks added."""
        x = x + self.attention(x)
        return x + self.dense(x)


class Transformer(nn.Module):
    """Embedded rows with learned positions, encoder layers, their mean, and a Linear layer."""

    def __init__(self, n_rows: int, n_in: int, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embedding = linear(n_in, width, "identity")
        self.position = nn.Parameter(torch.empty(n_rows, width))
        nn.init.normal_(self.position, std=0.02)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)), nn.LayerNorm(width))
        self.readout = linear(width, classes, "identity")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[b, classes]` of images `[b, c, h, w]`."""
        rows = x.transpose(1, 2).flatten(2)  # [b, c, h, w] -> [b, h, c * w]
        return self.readout(self.layers(self.embedding(rows) + self.position).mean(dim=1))


def transformer(
    input_shape: Sequence[int], classes: int, width: int = 32, heads: int = 4, layers: int = 2
) -> Transformer:
    """Return a small pre-norm transformer encoder over the rows of an image.

    One token is one row with its channels side by side, `c * w` numbers, embedded linearly, plus a learned
    position. Each layer is self-attention and a dense block of `4 * width` gelu units, each behind a layer
    norm and added to its input. The logits are linear in the mean over all tokens after a last layer norm.
    There is no dropout, so that training and evaluation mode agree. Weights are initialized by Glorot's rule,
    positions are normal with standard deviation 0.02, biases are 0.

    Args:
        input_shape: `(channels, height, width)` of one image.
        classes: number of logits.
        width: entries per token, a multiple of `heads`.
        heads: attention heads.
        layers: encoder layers.

    Returns:
        A module from `[b, *input_shape]` to logits `[b, classes]`.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    channels, n_rows, n_columns = image(input_shape)
    classes, width = whole("classes", classes), whole("width", width)
    heads, layers = whole("heads", heads), whole("layers", layers)
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width {width} and {heads} heads")
    return Transformer(n_rows, channels * n_columns, width, heads, layers, classes)

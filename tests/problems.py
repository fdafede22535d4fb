"""Landscapes with known answers: modules whose loss at `theta` is a closed formula, and small real networks."""

import numpy as np
import torch
from torch import Tensor, nn


class TwoParameters(nn.Module):
    """A module whose output is its two parameters, so that the loss can be any function of them."""

    def __init__(self, a: float = 0.3, b: float = -0.2, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=dtype))
        self.b = nn.Parameter(torch.tensor([b], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a.expand(len(x)), self.b.expand(len(x))], dim=1)


def asymmetric(a, b):
    """A function that changes when its arguments are exchanged; NumPy arrays and tensors alike."""
    return 2 * a**2 + 0.5 * b**2 + 0.25 * a * b**3 + 0.1 * a + 1


def asymmetric_loss(output: Tensor, target: Tensor) -> Tensor:
    return asymmetric(output[:, 0], output[:, 1])


def one_sample(n: int = 1) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, 1, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)


class EveryLayer(nn.Module):
    """One layer of each kind that filter normalization has to know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.one_output = nn.Linear(5, 1)
        self.conv1d = nn.Conv1d(4, 6, 3, groups=2)
        self.conv2d = nn.Conv2d(2, 3, (2, 3))
        self.conv3d = nn.Conv3d(1, 2, 2)
        self.transposed = nn.ConvTranspose2d(6, 4, (2, 3), groups=2)
        self.transposed1d = nn.ConvTranspose1d(3, 5, 2)
        self.transposed3d = nn.ConvTranspose3d(4, 6, 1, groups=2)
        self.bilinear = nn.Bilinear(2, 3, 4)
        self.embedding = nn.Embedding(7, 3)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.lstm = nn.LSTM(3, 2)
        self.norm = nn.LayerNorm((2, 3))
        self.batch_norm = nn.BatchNorm1d(3)
        self.weight_norm = nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(2, 3, 2), dim=1)
        self.positions = nn.Parameter(torch.randn(1, 5, 3))
        self.table = nn.Parameter(torch.randn(5, 3))
        self.scale = nn.Parameter(torch.tensor(1.5))


def class_data(n: int, shape: tuple[int, ...], classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random inputs and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all parameters, biases and norm scales included, with numbers that are not special."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + 0.1)
    return model


def plain_loop(model: nn.Module, data, theta_of, axes, loss) -> np.ndarray:
    """The slowest and simplest surface: set the parameters, call the model on everything, in its own precision."""
    x, y = data
    values = np.empty([len(axis) for axis in axes])
    with torch.no_grad():
        for index in np.ndindex(values.shape):
            theta = theta_of([axis[i] for axis, i in zip(axes, index, strict=True)])
            nn.utils.vector_to_parameters(theta, model.parameters())
            values[index] = loss(model(x), y).item()
    return values

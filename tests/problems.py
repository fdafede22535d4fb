"""Landscapes with known answers: modules whose loss at `theta` is a closed formula, and small real networks."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

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


class KnownMinima(NamedTuple):
    """A function all of whose local minima in an open box are known."""

    name: str
    function: Callable  # of k coordinates: numbers, NumPy arrays or tensors
    box: tuple[tuple[float, float], ...]  # [k] low, high
    minima: np.ndarray  # [m, k]


def _of(name: str, x):
    """`name(x)` for tensors and NumPy arrays alike."""
    return getattr(torch, name)(x) if isinstance(x, Tensor) else getattr(np, name)(x)


def six_hump_camel(a, b):
    return (4 - 2.1 * a**2 + a**4 / 3) * a**2 + a * b + (4 * b**2 - 4) * b**2


def himmelblau(a, b):
    return (a**2 + b - 11) ** 2 + (a + b**2 - 7) ** 2


def rastrigin(*x):
    return sum(c**2 - 10 * _of("cos", 2 * math.pi * c) + 10 for c in x)


def schwefel(*x):
    return sum(418.9828872724338 - c * _of("sin", _of("sqrt", abs(c))) for c in x)


def styblinski_tang(*x):
    return sum((c**4 - 16 * c**2 + 5 * c) / 2 for c in x)


def mueller_brown(a, b):
    total = 0 * a
    for height, aa, ab, bb, a0, b0 in (
        (-200, -1, 0, -10, 1, 0),
        (-100, -1, 0, -10, 0, 0.5),
        (-170, -6.5, 11, -6.5, -0.5, 1.5),
        (15, 0.7, 0.6, 0.7, -1, 1),
    ):
        total = total + height * _of("exp", aa * (a - a0) ** 2 + ab * (a - a0) * (b - b0) + bb * (b - b0) ** 2)
    return total


def branin(a, b):
    fold = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
    return fold**2 + 10 * (1 - 1 / (8 * math.pi)) * _of("cos", a) + 10


def goldstein_price(a, b):
    one = 1 + (a + b + 1) ** 2 * (19 - 14 * a + 3 * a**2 - 14 * b + 6 * a * b + 3 * b**2)
    return one * (30 + (2 * a - 3 * b) ** 2 * (18 - 32 * a + 12 * a**2 + 48 * b - 36 * a * b + 27 * b**2))


def _separable(name: str, function, low: float, high: float, minima: list[float], k: int) -> KnownMinima:
    return KnownMinima(f"{name}-{k}", function, ((low, high),) * k, np.array(list(itertools.product(minima, repeat=k))))


_RASTRIGIN = [0.0, *(s * c for c in (0.994959, 1.989912, 2.984856, 3.979783, 4.974689) for s in (1, -1))]
_SCHWEFEL = [-302.5249, -124.8294, -25.8774, 5.2392, 65.5479, 203.8143, 420.9687]

KNOWN_MINIMA = {
    problem.name: problem
    for problem in (
        KnownMinima(
            "six-hump camel", six_hump_camel, ((-2, 2), (-1.2, 1.2)),
            np.array([[s * a, s * b] for a, b in ((0.08984, -0.71266), (1.70361, -0.79608), (1.60711, 0.56865))
                      for s in (1, -1)]),
        ),
        KnownMinima(
            "Himmelblau", himmelblau, ((-5, 5), (-5, 5)),
            np.array([[3, 2], [-2.805118, 3.131313], [-3.779310, -3.283186], [3.584428, -1.848127]]),
        ),
        KnownMinima(
            "Mueller-Brown", mueller_brown, ((-1.5, 1.2), (-0.3, 2)),
            np.array([[-0.558224, 1.441726], [0.623499, 0.028038], [-0.050011, 0.466694]]),
        ),
        KnownMinima(
            "Branin", branin, ((-5, 10), (0, 15)), np.array([[(2 * i - 1) * math.pi, b] for i, b in
                                                           ((0, 12.275), (1, 2.275), (2, 2.475))]),
        ),
        KnownMinima(
            "Goldstein-Price", goldstein_price, ((-2, 2), (-2, 2)),
            np.array([[0, -1], [-0.6, -0.4], [1.8, 0.2], [1.2, 0.8]]),
        ),
        *(_separable("Rastrigin", rastrigin, -5.12, 5.12, _RASTRIGIN, k) for k in (1, 2, 3)),
        *(_separable("Schwefel", schwefel, -500, 500, _SCHWEFEL, k) for k in (1, 2, 3)),
        *(_separable("Styblinski-Tang", styblinski_tang, -5, 5, [-2.903534, 2.746803], k) for k in (1, 2, 3)),
    )
}  # fmt: skip

"""The networks and real data that surfaces are timed on."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from landscape import train
from landscape.data import Dataset, load
from landscape.models import build

_MNIST = {"input_shape": [1, 28, 28], "classes": 10}


@dataclass(frozen=True)
class Workload:
    """A network, its data, and how much of both.

    Attributes:
        title: The network, in words.
        family: A name of `landscape.models`.
        arguments: Of its `build`.
        data: A name of `landscape.data`.
        n_samples: The first so many.
        n_points: How many points are timed at once, where they go together.
        epochs: How long the network is trained, so that the loss at the center is a small one.
    """

    title: str
    family: str
    arguments: dict[str, Any]
    data: str
    n_samples: int
    n_points: int
    epochs: int


_RELU = {"activation": "relu"}
_DIGITS = {"input_shape": [1, 8, 8], "classes": 10}
WORKLOADS = {
    "A": Workload("784-10-10-10-10-10 tanh", "mlp", _MNIST, "mnist", 50_000, 64, 3),
    "B": Workload("784-256-256-10 ReLU", "mlp", {**_MNIST, **_RELU, "widths": [256, 256]}, "mnist",
                  10_000, 32, 5),
    "C": Workload("LeNet-5 ReLU", "lenet", {**_MNIST, **_RELU}, "mnist", 5_000, 16, 5),
    "D": Workload("ResNet-20", "resnet", {"depth": 20}, "cifar10", 1_000, 3, 8),
    "E": Workload("ResNet-56", "resnet", {"depth": 56}, "cifar10", 500, 2, 8),
    "F": Workload("transformer", "transformer", _DIGITS, "digits", 1_400, 16, 10),
}  # fmt: skip


def make(name: str, *, quick: bool = False, n_samples: int | None = None, trained: bool = True) -> tuple:
    """Return the network of a workload, in evaluation mode, and its data.

    Args:
        name: A key of `WORKLOADS`.
        quick: A tenth of the samples.
        n_samples: That many samples instead.
        trained: Train it first, with Adam.

    Returns:
        `(nn.Module, Dataset)`.
    """
    workload = WORKLOADS[name]
    n = n_samples or workload.n_samples // (10 if quick else 1)
    data: Dataset = load(workload.data, limit=n)
    model: nn.Module = build(workload.family, seed=0, **workload.arguments)
    if trained:
        epochs = 1 if quick else workload.epochs
        model = train(model, data, batch_size=max(1, min(125, n // 8)), epochs=epochs, progress=False).model
    return model.eval(), data

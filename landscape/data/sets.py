"""Named data sets: small ones that need no download, MNIST and CIFAR-10."""

from dataclasses import dataclass
from functools import cached_property
from os import PathLike

import numpy as np
import torch
from torch import Tensor

from landscape.data.files import read_cifar10, read_mnist
from landscape.data.trees import digest

_CLASSES = {"digits": 10, "moons": 2, "xor": 2, "mnist": 10, "cifar10": 10}
_SPLITS = ("train", "test")

# mean and standard deviation per channel, of pixels between 0 and 1 in the training set
_DIGITS_SCALE = ([0.3054], [0.3761])
_MNIST_SCALE = ([0.1307], [0.3081])
_CIFAR10_SCALE = ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])

_N_DIGITS_TEST = 360
_N_MOONS = 1000
_MOONS_NOISE = 0.1
_MOONS_SEEDS = {"train": 0, "test": 1}


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a classification data set, in memory and in a fixed order.

    Attributes:
        name: Name of the data set.
        split: `"train"` or `"test"`.
        inputs: float32, shape `[n, ...]`.
        targets: Class numbers, int64, shape `[n]`.
        classes: Number of classes.
    """

    name: str
    split: str
    inputs: Tensor
    targets: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of dtype, shape and bytes of inputs and targets; that of `collect` is the same."""
        return digest((self.inputs, self.targets))


def names() -> tuple[str, ...]:
    """Return the names that `load` knows."""
    return tuple(_CLASSES)


def load(
    name: str,
    split: str = "train",
    *,
    limit: int | None = None,
    folder: str | PathLike[str] | None = None,
    download: bool = True,
) -> Dataset:
    """Load a named data set as tensors; the same call gives the same samples in the same order.

    | name | inputs | training, test samples | what the inputs are |
    |---|---|---|---|
    | `digits` | `[n, 1, 8, 8]` | 1437, 360 | scikit-learn's digits, `(pixel / 16 - 0.3054) / 0.3761` |
    | `moons` | `[n, 2]` | 1000, 1000 | two half circles with Gaussian noise of 0.1, not standardized |
    | `xor` | `[4, 2]` | 4, the same 4 | the corners of the unit square |
    | `mnist` | `[n, 1, 28, 28]` | 60000, 10000 | `(pixel / 255 - 0.1307) / 0.3081` |
    | `cifar10` | `[n, 3, 32, 32]` | 50000, 10000 | `(pixel / 255 - mean) / std` for each channel |

    The channels of `cifar10` (R, G, B) have mean 0.4914, 0.4822, 0.4465 and standard deviation 0.2470, 0.2435,
    0.2616. The split of `digits` is stratified by class; training and test set of `moons` are two independent
    draws.

    The files of `mnist` and `cifar10` are looked for in `folder`, in the folder that the environment variable
    LANDSCAPE_DATA names, and in the cache; if they are in none of them, they are downloaded into the cache
    and their checksum is verified. A folder holds them in `mnist/` or `cifar10/`, in the folders that
    torchvision makes, or directly, gzipped or not. Of CIFAR-10 those training batches are used that are
    there: the length of the result tells how many samples they have.

    Args:
        name: One of `names()`.
        split: `"train"` or `"test"`.
        limit: Load only the first `limit` samples. Default: all.
        folder: Where to look first.
        download: Whether files may be downloaded.

    Raises:
        ValueError: Name, split or limit are none of these, or a file is damaged.
        FileNotFoundError: The files are in none of the folders and were not downloaded, or a folder that was
            named does not exist.

    Example:
        >>> load("digits").inputs.shape
        torch.Size([1437, 1, 8, 8])
    """
    if name not in _CLASSES:
        raise ValueError(f"there is no data set {name!r}; choose one of {', '.join(_CLASSES)}")
    if split not in _SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    check_limit(limit)
    if name == "digits":
        inputs, targets = _digits(split)
    elif name == "moons":
        inputs, targets = _moons(split)
    elif name == "xor":
        inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        targets = torch.tensor([0, 1, 1, 0])
    elif name == "mnist":
        pixels, labels = read_mnist(split, folder, download)
        inputs, targets = _standardized(pixels[:limit, None], 255, _MNIST_SCALE), _classes(labels)
    else:
        pixels, labels = read_cifar10(split, folder, download, limit)
        inputs, targets = _standardized(pixels[:limit], 255, _CIFAR10_SCALE), _classes(labels)
    return Dataset(name, split, inputs[:limit], targets[:limit], _CLASSES[name])


def check_limit(limit: int | None) -> None:
    """Refuse what is neither None nor a positive whole number."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a number of samples, 1 or more, or None for all, got {limit!r}")


def _standardized(pixels: np.ndarray, white: int, scale: tuple[list[float], list[float]]) -> Tensor:
    """Return `(pixels / white - mean) / std`; pixels `[n, c, h, w]`, mean and std per channel."""
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in scale)
    return torch.from_numpy(pixels.astype(np.float32)).div_(white).sub_(mean).div_(std)


def _classes(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _digits(split: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rows = np.arange(len(digits.target))
    parts = train_test_split(rows, test_size=_N_DIGITS_TEST, stratify=digits.target, random_state=0)
    rows = np.sort(parts[_SPLITS.index(split)])
    return _standardized(digits.images[rows, None], 16, _DIGITS_SCALE), _classes(digits.target[rows])


def _moons(split: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import make_moons

    inputs, targets = make_moons(_N_MOONS, noise=_MOONS_NOISE, random_state=_MOONS_SEEDS[split])
    return torch.from_numpy(inputs.astype(np.float32)), _classes(targets)

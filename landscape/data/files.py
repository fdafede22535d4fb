"""Find or download the files of MNIST and CIFAR-10, and read them."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from landscape.data.formats import (
    Arrays,
    check_labels,
    parse_cifar10,
    parse_cifar10_pickle,
    parse_idx,
    read_members,
    read_plain,
)

Folder = str | os.PathLike[str] | None

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_MNIST_FOLDERS = ("mnist", "MNIST/raw", ".")

_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR10_FOLDERS = (
    "cifar10",
    "cifar10/cifar-10-batches-bin",
    "cifar10/cifar-10-batches-py",
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    ".",
)
_CIFAR10_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}

_log = logging.getLogger(__name__)


def read_mnist(split: str, folder: Folder, download: bool) -> Arrays:
    """Read MNIST: images `[n, 28, 28]` and labels `[n]`, uint8."""
    prefix = "train" if split == "train" else "t10k"
    names = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]

    def find(place: Path) -> list[Path]:
        for sub in _MNIST_FOLDERS:
            found = [path for name in names if (path := _first(place / sub, _mnist_spellings(name)))]
            if len(found) == 1:
                raise FileNotFoundError(f"{found[0]} is there, but not both of {' and '.join(names)}; add the other")
            if found:
                return found
        return []

    def fetch(cache: Path) -> None:
        for name in names:
            _retrieve(_MNIST_URL + name, _MNIST_MD5[name], cache / "mnist")

    paths = _locate("mnist", find, fetch if download else None, folder, f"mnist/ with {' and '.join(names)}")
    images, labels = (parse_idx(read_plain(path), n, path) for path, n in zip(paths, (3, 1), strict=True))
    if images.shape[1:] != (28, 28):
        raise ValueError(f"{paths[0]}: expected images of 28x28 pixels, got {images.shape[1:]}; replace it")
    if len(images) != len(labels):
        raise ValueError(f"{paths[0]} has {len(images)} images, but {paths[1]} has {len(labels)} labels")
    check_labels(labels, paths[1])
    return images, labels


def read_cifar10(split: str, folder: Folder, download: bool, limit: int | None = None) -> Arrays:
    """Read CIFAR-10: images `[n, 3, 32, 32]` and labels `[n]`, uint8; no further than `limit` needs."""
    batches = _CIFAR10_BATCHES[split]

    def find(place: Path) -> list[Path]:
        for sub in _CIFAR10_FOLDERS:
            candidates = (_first(place / sub, [f"{batch}.bin", f"{batch}.bin.gz", batch]) for batch in batches)
            if found := [path for path in candidates if path]:
                return found
        archive = _first(place, [_CIFAR10_ARCHIVE])
        return [archive] if archive else []

    def fetch(cache: Path) -> None:
        _retrieve(_CIFAR10_URL, _CIFAR10_MD5, cache)

    needed = f"cifar10/ with {', '.join(f'{batch}.bin' for batch in batches)} (or .bin.gz)"
    paths = _locate("cifar10", find, fetch if download else None, folder, needed)
    if len(paths) < len(batches) and paths[0].name != _CIFAR10_ARCHIVE:
        _log.info("%s has %d of the %d training batches of CIFAR-10", paths[0].parent, len(paths), len(batches))
    images, labels = [], []
    for path, parsed in _cifar10_parts(paths, batches):
        check_labels(parsed[1], path)
        images.append(parsed[0])
        labels.append(parsed[1])
        if limit is not None and sum(map(len, labels)) >= limit:
            break
    return np.concatenate(images), np.concatenate(labels)


def _cifar10_parts(paths: Sequence[Path], batches: Sequence[str]) -> Iterator[tuple[Path, Arrays]]:
    for path in paths:
        if path.name == _CIFAR10_ARCHIVE:
            for content in read_members(path, [f"{batch}.bin" for batch in batches]):
                yield path, parse_cifar10(content, path)
        else:
            parse = parse_cifar10 if ".bin" in path.suffixes else parse_cifar10_pickle
            yield path, parse(read_plain(path), path)


def _mnist_spellings(name: str) -> list[str]:
    plain = name.removesuffix(".gz")
    dotted = plain.replace("-idx", ".idx")
    return [plain, dotted, name, f"{dotted}.gz"]


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _places(folder: Folder) -> Iterator[Path]:
    """Yield the folders to search, the cache last; each is checked when its turn comes."""
    for origin, place in (
        ("the argument `folder`", folder),
        ("the environment variable LANDSCAPE_DATA", os.environ.get("LANDSCAPE_DATA") or None),
    ):
        if place is not None:
            path = Path(place).expanduser()
            if not path.is_dir():
                raise FileNotFoundError(f"{origin} names {path}, which is not a folder; correct it or leave it out")
            yield path
    import pooch

    yield Path(pooch.os_cache("landscape"))


def _locate(
    name: str,
    find: Callable[[Path], list[Path]],
    fetch: Callable[[Path], None] | None,
    folder: Folder,
    needed: str,
) -> list[Path]:
    """Return the files of a data set, found in one of the places or downloaded into the cache."""
    searched = []
    for place in _places(folder):
        if found := find(place):
            return found
        searched.append(place)
    error, why = None, "downloading is switched off"
    if fetch is not None:
        try:
            fetch(searched[-1])
            return find(searched[-1])
        except (OSError, ValueError) as caught:  # no network, no room, or another checksum
            error, why = caught, f"downloading failed ({type(caught).__name__}: {caught})"
    raise FileNotFoundError(
        f"{name} is not in {' or '.join(map(str, searched))}, and {why}. "
        f"Set LANDSCAPE_DATA to a folder that holds {needed}"
    ) from error


def _retrieve(url: str, md5: str, folder: Path) -> None:
    import pooch

    # downloaded under a temporary name, which is changed when the checksum is right
    pooch.retrieve(url, f"md5:{md5}", fname=url.rsplit("/", 1)[1], path=folder, progressbar=True)

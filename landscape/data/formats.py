"""Parse the file formats of MNIST and CIFAR-10. Nothing is unpickled."""

import gzip
import io
import math
import pickletools
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
"""Images and labels, both uint8."""

_PIXELS = 3 * 32 * 32
_MOST = 2**28  # bytes that are unzipped: five times MNIST's largest file, more than all of CIFAR-10
_MOST_STEPS = 1_000_000  # instructions of a pickle; an official batch has 21,000

# pickle instructions: strings, whole numbers, and those that build a list
_STRINGS = {"BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "SHORT_BINUNICODE"}
_NUMBERS = {"BININT", "BININT1", "BININT2"}
_LISTS = {"EMPTY_LIST", "MARK", "APPEND", "APPENDS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "FRAME"}


def read_plain(path: Path) -> bytes:
    """Return the content of a file, unzipped if it is gzipped.

    Raises:
        ValueError: It is a damaged gzip file, or too large.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"  # the content decides: some programs unpack a file and leave its name
        file.seek(0)
        try:
            with _Bounded(gzip.GzipFile(fileobj=file) if zipped else file, path) as content:
                return content.read()
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file ({error}); replace it") from error


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where it is longer than any data set here: a small file can unzip to much."""

    def __init__(self, stream: io.BufferedIOBase, path: Path) -> None:
        self._stream, self._path, self._left = stream, path, _MOST

    def read(self, size: int | None = -1) -> bytes:
        content = self._stream.read(self._left + 1 if size is None or size < 0 else min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(
                f"{self._path} holds more than {_MOST:,} bytes unzipped, no data set here does; replace it"
            )
        return content


def read_members(path: Path, names: Sequence[str]) -> list[bytes]:
    """Return the content of the named files, folders left out, in a gzipped tar archive.

    Raises:
        ValueError: The archive is damaged, or has no such files.
    """
    found: dict[str, bytes] = {}
    try:
        # one pass, since going back would unzip it anew
        with (
            gzip.open(path) as file,
            tarfile.open(fileobj=cast(IO[bytes], _Bounded(file, path)), mode="r|") as archive,
        ):
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if name in names else None
                if content is not None:
                    found[name] = content.read()
                if len(found) == len(names):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); delete or replace it") from error
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{path} has no {', '.join(missing)}; delete or replace it")
    return [found[name] for name in names]


def parse_idx(content: bytes, n_dims: int, source: object) -> np.ndarray:
    """Parse the IDX format: magic number, sizes as big-endian uint32, bytes.

    Args:
        content: The file's content.
        n_dims: Number of dimensions it must have: 3 for images, 1 for labels.
        source: Where the content came from, for errors.

    Raises:
        ValueError: It is of another kind, truncated, or longer than its header says.
    """
    magic, header = bytes([0, 0, 8, n_dims]), 4 + 4 * n_dims
    if content[:4] != magic or len(content) < header:
        raise ValueError(
            f"{source}: expected an IDX file of bytes in {n_dims} dimensions, which starts with {magic.hex()}, "
            f"got {len(content)} bytes that start with {content[:4].hex()}; replace it"
        )
    shape = tuple(np.frombuffer(content, ">u4", n_dims, offset=4).tolist())
    if len(content) != header + math.prod(shape):
        raise ValueError(
            f"{source}: its header announces {'x'.join(map(str, shape))} bytes, but {len(content) - header} "
            "follow: truncated or damaged; replace it"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def parse_cifar10(content: bytes, source: object) -> Arrays:
    """Parse CIFAR-10's binary format: per image a label, then the pixels as R, G, B planes of 32x32 bytes.

    Args:
        content: One batch.
        source: Where the content came from, for errors.

    Raises:
        ValueError: The length is not a whole number of records.
    """
    record = 1 + _PIXELS
    if len(content) % record:
        raise ValueError(
            f"{source}: expected records of {record} bytes, got {len(content)} bytes: "
            "truncated or of another format; replace it"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def parse_cifar10_pickle(content: bytes, source: object) -> Arrays:
    """Parse CIFAR-10's Python format by reading the pickle's instructions, of which none is carried out.

    The file is a pickled dictionary. Two things are taken from it: the one string of n x 3072 bytes, which is
    the pixels, and the list of whole numbers after the key `labels`.

    Args:
        content: One batch, pickled with protocol 2 (as the official files are) to 4.
        source: Where the content came from, for errors.

    Raises:
        ValueError: It is not such a pickle, or the numbers of images and labels differ.
    """
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    in_labels = False
    order: Literal["C", "F"] = "C"
    argument: Any
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if step == _MOST_STEPS:
                raise ValueError(f"more than {_MOST_STEPS:,} instructions")
            if opcode.name == "PROTO" and argument not in (2, 3, 4):
                raise ValueError(f"pickle protocol {argument}, expected 2 to 4")
            if in_labels and opcode.name in _NUMBERS:
                labels.append(argument)
            elif opcode.name not in _LISTS:
                in_labels = False
            if opcode.name in ("NEWTRUE", "NEWFALSE"):  # NumPy says so whether the bytes after it are by column
                order = "F" if opcode.name == "NEWTRUE" else "C"
            elif opcode.name in _STRINGS:
                string = argument.encode("latin-1", "replace") if isinstance(argument, str) else argument
                in_labels = string == b"labels"
                if string and len(string) % _PIXELS == 0:
                    arrays.append(np.frombuffer(string, np.uint8).reshape((-1, _PIXELS), order=order))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{source} is not a batch of CIFAR-10: {str(error)[:200]}; replace it") from error
    if len(arrays) != 1 or len(arrays[0]) != len(labels):
        raise ValueError(
            f"{source} is not a batch of CIFAR-10: expected one array of images and as many labels, got arrays "
            f"of {[len(array) for array in arrays]} images and {len(labels)} labels; replace it"
        )
    return arrays[0].reshape(-1, 3, 32, 32), np.array(labels)


def check_labels(labels: np.ndarray, source: object) -> None:
    """Refuse labels that are not 0 to 9, or none at all."""
    if len(labels) == 0:
        raise ValueError(f"{source} has no samples; replace it")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{source}: labels are 0 to 9, got {labels.min()} to {labels.max()}; replace it")

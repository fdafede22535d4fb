"""Write files whole or not at all, and open them with errors that help.

A file that is changed in place can be destroyed by a kill at the wrong moment, HDF5 files included. So nothing here
changes a file: content goes to a temporary name in the same folder, is flushed to the disk, and is then moved over the
old file, which is atomic on POSIX and on Windows.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

FORMAT_VERSION = 1


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` when the block ends without an error.

    Args:
        path: The file to write. Its folder is created where it is missing.

    Example:
        >>> with replacing("notes.txt") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("all or nothing")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets a folder be opened (Windows does not)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse to sync a folder; the file itself is written
        pass
    finally:
        os.close(descriptor)


@contextmanager
def write_hdf5(path: str | os.PathLike, kind: str) -> Iterator[h5py.File]:
    """Yield a new HDF5 file that takes the place of `path` when the block ends without an error.

    Args:
        path: The file to write.
        kind: What the file holds (`"surface"`, `"trajectory"`, ...); `read_hdf5` checks it.
    """
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["landscape_kind"] = kind
        file.attrs["landscape_format"] = FORMAT_VERSION
        yield file


def open_hdf5(path: str | os.PathLike) -> h5py.File:
    """Open any HDF5 file for reading.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not HDF5, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file (damaged or of another type): {error}") from error


@contextmanager
def read_hdf5(path: str | os.PathLike, kind: str | None = None) -> Iterator[h5py.File]:
    """Open an HDF5 file of this package for reading.

    Args:
        path: The file to read.
        kind: What it must hold; None accepts every kind.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not HDF5, is damaged, holds something else, or is of a newer format.
    """
    with open_hdf5(path) as file:
        found = file.attrs.get("landscape_kind")
        version = file.attrs.get("landscape_format")
        if found is None:
            raise ValueError(
                f"{path} is HDF5 but was not written by landscape; "
                "for a file of Li et al.'s code use `landscape import`"
            )
        if kind is not None and found != kind:
            raise ValueError(f"{path} holds a {found}, expected a {kind}")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {version}, this version reads up to {FORMAT_VERSION}: update landscape"
            )
        yield file


def write_json(group: h5py.Group, name: str, value: object) -> None:
    """Store a JSON value as a text data set (an attribute would be limited to 64 KB)."""
    group.create_dataset(name, data=json.dumps(value, indent=1, sort_keys=True), dtype=h5py.string_dtype())


def read_json(group: h5py.Group, name: str) -> Any:
    """Read a JSON value that `write_json` stored."""
    return json.loads(group[name].asstr()[()])

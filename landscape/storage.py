"""Write files whole or not at all, sealed with a checksum, and open them with errors that help.

A file that is changed in place can be destroyed by a kill at the wrong moment, HDF5 files included. So nothing here
changes a file: content goes to a temporary name in the same folder, is flushed to the disk, and is then moved over the
old file, which is atomic on POSIX and on Windows.

From format 2 on a file begins with a block of 512 bytes (HDF5 calls it the user block, and skips it): a line of text
with the version of the package and of the format, and at its end, as 64 hexadecimal digits, the SHA-256 of all other
bytes of the file. Later formats keep this block. A file is checked before anything else reads it: libhdf5 can crash on
a damaged one. Files of format 1 have no block and are opened as they are.
"""

import errno
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import h5py

from landscape import __version__
from landscape.contents import check_hdf5, check_value, has_attribute, read_attribute, read_text
from landscape.output import create_hdf5

FORMAT_VERSION = 2

_BLOCK, _DIGITS = 512, 64
_BEGIN = b"landscape "
_HEAD = re.compile(rb"landscape (\S+), format (\d+)\n")
_HOST = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())[:32] or "localhost"
_TEMPORARY = re.compile(r"\..+\.([A-Za-z0-9-]+)\.([0-9]+)\.tmp", re.DOTALL)
_DAY = 24 * 3600.0
_ERRNO = re.compile(r"(?:\berrno = |\bos error |\bcode: )([0-9]+)")  # as libhdf5 and safetensors report it
_FULL = {
    errno.ENOSPC: ("no space left on", "make room"),
    errno.EDQUOT: ("the quota is used up on", "make room"),
    errno.EFBIG: ("the largest size of a file (ulimit -f) is reached on", "raise it"),
}

_Binary = BufferedReader | BufferedRandom
T = TypeVar("T")
_PAUSES = [0.01 * 2**i for i in range(8)]  # seconds between tries to read files that are merged meanwhile, 2.5 in all

# The state in which a file was found whole, by path: checking it again with every row that is read would take longer
# than reading. SHA-256, since the difference to others does not matter: on one core of a busy Xeon hashing 64 MiB, best
# of 5, ran at 0.64 GB/s, blake2b at 0.54, and CRC-32, which misses one damage in 4e9, at 1.2. A file of 256 MiB took
# 0.45 s to write with it and 0.25 s without, 0.4 s to open for the first time and 1 ms later.
_checked: dict[str, tuple[int, ...]] = {}
_written: list[Path] = []  # files that this process is writing
_passed: dict[str, tuple[int, ...]] = {}  # likewise, those of which `check_hdf5` found the structure sound
_KNOWN = re.compile(r"(\b(?:torch|landscape)\.[\w.]+) \([0-9a-f]{8}\)")  # a function of these, with a hash of its code


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` when the block ends without an error.

    Args:
        path: The file to write. Its folder is created where it is missing.

    Raises:
        OSError: The disk is full; the message says what to do. The old file is as it was.

    Example:
        >>> with replacing("notes.txt") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("all or nothing")
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    _written.append(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, f".{path.name}.")
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        number = _error_number(error)
        if number not in _FULL:
            raise
        what, remedy = _FULL[number]
        raise OSError(
            number,
            f"{what} {path.parent.absolute()} while writing {path}: {remedy} and run the same command again; "
            "what was stored before is intact",
        ) from error
    finally:
        _written.remove(temporary)  # first: a signal may raise in the next line, and the next job removes leftovers
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def is_writing() -> bool:
    """Tell whether this process is writing a file by `replacing`."""
    return bool(_written)


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _ERRNO.search(str(error))
    return int(found[1]) if found else None


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


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove temporary files that killed processes left in a folder.

    A file goes if its process is dead and was on this host, or if it is older than a day: what another host does with
    a shared folder cannot be seen from here.

    Args:
        folder: Where to look; it need not exist.
        prefix: How the names begin.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        if not (name.startswith(prefix) and name.endswith(".tmp")):
            continue
        found = _TEMPORARY.fullmatch(name)
        dead = found is not None and found[1] == _HOST and not is_alive(int(found[2]))
        with suppress(FileNotFoundError):  # another process was faster
            if dead or time.time() - (folder / name).stat().st_mtime > _DAY:
                (folder / name).unlink()


def is_alive(process: int) -> bool:
    """Tell whether a process of this host has not ended, or may not have."""
    if os.name == "nt":  # signal 0 would end the process there
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextmanager
def write_hdf5(path: str | os.PathLike, kind: str) -> Iterator[h5py.File]:
    """Yield a new HDF5 file that takes the place of `path` when the block ends without an error.

    Args:
        path: The file to write.
        kind: What the file holds (`"surface"`, `"trajectory"`, ...); `read_hdf5` checks it.
    """
    with replacing(path) as temporary:
        with create_hdf5(temporary, _BLOCK) as file:
            file.attrs["landscape_kind"] = kind
            file.attrs["landscape_format"] = FORMAT_VERSION
            file.attrs["landscape_version"] = __version__
            yield file
        with open(temporary, "rb+") as whole:
            whole.write(_block(whole))


def write_sealed(path: str | os.PathLike, content: bytes) -> None:
    """Write bytes behind a block with their checksum, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb+") as file:
        file.seek(_BLOCK)
        file.write(content)
        file.write(_block(file))


def read_sealed(path: str | os.PathLike) -> bytes:
    """Read what `write_sealed` wrote; a file without a block is read as it is.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or of a newer format.
    """
    with open(path, "rb") as file:
        file.seek(_BLOCK if _check(file, path) else 0)
        return file.read()


def _block(file: _Binary) -> bytes:
    """Return the block for a file that has room for it, and rewind the file."""
    head = f"landscape {__version__}, format {FORMAT_VERSION}\n".encode()
    head += b"The last 64 of these 512 bytes are the SHA-256 of all other bytes of this file.\n"
    head = head.ljust(_BLOCK - _DIGITS - 1) + b"\n"
    digits = _digest(file, head)
    file.seek(0)
    return head + digits


def _digest(file: _Binary, head: bytes) -> bytes:
    file.seek(_BLOCK)
    return hashlib.file_digest(file, lambda: hashlib.sha256(head)).hexdigest().encode()


def _check(file: _Binary, path: str | os.PathLike) -> bool:
    """Check a file that begins with a block, once for each state of it; return whether it does.

    Raises:
        ValueError: The checksum does not fit, or the format is newer.
    """
    block = file.read(_BLOCK)
    if not block.startswith(_BEGIN):
        return False
    state = _state(os.fstat(file.fileno()))
    key = os.path.abspath(path)
    found = _HEAD.match(block)
    head, digits = block[:-_DIGITS], block[-_DIGITS:]
    if _checked.get(key) != state:
        if len(block) < _BLOCK or found is None or _digest(file, head) != digits:
            raise ValueError(
                f"{path} is damaged: its checksum does not fit its {os.fstat(file.fileno()).st_size:,} bytes; "
                f"{advise(Path(path))}"
            )
        _checked[key] = state
    assert found is not None  # of a file that was found whole
    refuse_newer(path, int(found[2]), found[1].decode())
    return True


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size


def advise(path: Path) -> str:
    """Say what to do about a damaged file, by its place in an unfinished job."""
    if path.parent.name.endswith(".parts"):
        whole = path.parent.with_suffix("")
        if path.suffix == ".pt":  # of networks in training; nothing else depends on it
            return f"delete it: the same command trains its networks anew, and what is in {whole.name} stays"
        return (
            f"restore it from a copy, or move it away (of a trajectory also the files after it): {whole.name} and the "
            f"other files in {path.parent} hold the other rows"
        )
    if path.suffix == ".progress":
        return f"restore it from a copy, or delete it: {path.stem} stays, and the same command computes the rest again"
    if path.name == "state.pt":
        return f"restore it from a copy, or train in another folder; {path.parent} still holds what was recorded"
    grows = [other for other in (f"{path}.progress", f"{path}.parts") if os.path.exists(other)]
    return "restore it from a copy" + "".join(f"; {other} still holds what came later" for other in grows)


def refuse_newer(path: str | os.PathLike, version: int, package: str) -> None:
    """Refuse a file of a format that this version of the package does not know.

    Args:
        path: The file.
        version: Of its format.
        package: The version of the package that wrote it.

    Raises:
        ValueError: The format is newer.
    """
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by landscape {package}, format {version}; this one ({__version__}) reads up to "
            f"{FORMAT_VERSION}: update landscape"
        )


def open_hdf5(path: str | os.PathLike) -> h5py.File:
    """Open any HDF5 file for reading.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not HDF5, or is damaged.
    """
    return _open_hdf5(path)[0]


def _open_hdf5(path: str | os.PathLike) -> tuple[h5py.File, bool]:
    """Open a file, and say whether it has a checksum, which fits."""
    while True:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}")
        with open(path, "rb") as plain:
            checked = _check(plain, path)
            before = _state(os.fstat(plain.fileno()))
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            if not os.path.exists(path) or _state(os.stat(path)) != before:
                continue  # see below
            raise ValueError(f"{path} is not a readable HDF5 file (damaged or of another type): {error}") from error
        try:
            unchanged = _state(os.stat(path)) == before
            if unchanged and _passed.get(os.path.abspath(path)) != before:
                check_hdf5(file)
                _passed[os.path.abspath(path)] = before
        except FileNotFoundError:
            unchanged = False
        except BaseException:
            file.close()
            if os.path.exists(path) and _state(os.stat(path)) == before:
                raise
            unchanged = False
        if unchanged:
            return file, checked
        file.close()  # a job has put a new one in its place meanwhile, or removed it


def read_steadily(read: Callable[[], T], *files: Path, parts: Path | None = None) -> T:
    """Call what reads several files; again, where a job merges them, so that one of them is gone.

    Args:
        read: Called until it does not raise FileNotFoundError.
        files: One of them is there as long as there is anything to read,
        parts: or something in this folder.
    """
    for pause in _PAUSES:
        try:
            return read()
        except FileNotFoundError:
            if not any(file.is_file() for file in files) and not (parts and parts.is_dir() and any(parts.iterdir())):
                raise
        time.sleep(pause)
    return read()


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
    opened, checked = _open_hdf5(path)
    with opened as file:
        if not has_attribute(file, "landscape_kind"):
            raise ValueError(
                f"{path} is HDF5 but was not written by landscape; "
                "for a file of Li et al.'s code use `landscape import`"
            )
        found = read_attribute(file, "landscape_kind", str)
        version = read_attribute(file, "landscape_format", int)
        if kind is not None and found != kind:
            raise ValueError(f"{path} holds a {found}, expected a {kind}")
        known = has_attribute(file, "landscape_version")
        refuse_newer(path, version, read_attribute(file, "landscape_version", str) if known else "of a later version")
        if version > 1 and not checked:
            raise ValueError(f"{path} is damaged: it has lost its checksum; {advise(Path(path))}")
        yield file


def write_json(group: h5py.Group, name: str, value: object) -> None:
    """Store a JSON value as a text data set (an attribute would be limited to 64 KB)."""
    group.create_dataset(name, data=json.dumps(value, indent=1, sort_keys=True), dtype=h5py.string_dtype())


def without_known_code(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the hashes of torch's and our own functions, which files have from before they were known by name."""
    return {key: _KNOWN.sub(r"\1", text) if isinstance(text, str) else text for key, text in identity.items()}


def read_json(group: h5py.Group, name: str, pattern: Any = object) -> Any:
    """Read a JSON value that `write_json` stored.

    Args:
        group: Of an open file.
        name: The data set.
        pattern: What the value must look like, see `contents.check_value`.

    Raises:
        ValueError: There is none, or it is of another structure.
    """
    text, where = read_text(group, name), f"{group.file.filename}: {name}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not the JSON that landscape writes ({error}): it is damaged") from error
    check_value(value, pattern, where)
    return value

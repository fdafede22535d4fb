"""Rows of many runs in one HDF5 file that grows from parts: a kill loses the part in work, nothing else.

A file holds columns, arrays whose first axis are the rows, by name (`"curve/loss"` lies in a group), and a record in
JSON. While it grows, parts of the same structure lie in the folder `NAME.h5.parts`; readers take both. Columns of
parts may differ in width; missing entries are NaN.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import h5py
import numpy as np

from landscape.contents import dataset, has_attribute, read_array, read_attribute
from landscape.lock import Lock
from landscape.storage import read_hdf5, read_json, read_steadily, write_hdf5, write_json

Array = np.ndarray
T = TypeVar("T")


class RowsWriter:
    """Add parts to a file of rows, each safe on the disk when `add` returns.

    Until `close`, which the end of a `with` block calls, no other process can open the file for writing.

    Args:
        path: The file; what is there is extended.
        kind: What it holds.
        record: What all rows share (JSON-able).

    Raises:
        BlockingIOError: Another process is writing the file.
    """

    def __init__(self, path: str | os.PathLike, kind: str, record: Any) -> None:
        self.path, self.kind, self.record = Path(path), kind, record
        self._lock = Lock(self.path)
        try:
            self._first = max([_next_part(self.path, kind), *_numbers_after(self.path)])
            self._written = find_files(self.path, kind)
        except BaseException:
            self._lock.release()
            raise
        self._lock.take()

    def close(self) -> None:
        """Let others write the file; nothing is written here."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, columns: Mapping[str, Array], i: int) -> None:
        """Write some rows, the i-th part since this writer was made, whatever the order in which they come."""
        self._lock.check()
        part = parts_folder(self.path) / f"{self._first + i:06d}.h5"
        with write_hdf5(part, self.kind) as file:
            write_json(file, "record/shared", self.record)
            file.attrs["columns"] = list(columns)
            for name, column in columns.items():
                file[name] = column
        self._written.append(part)

    def finish(self, record: Any = None) -> None:
        """Merge all parts into the one file, one column of one part in memory at a time.

        Args:
            record: To be kept instead of that given before.

        Raises:
            FileNotFoundError: Somebody has removed rows since they were written.
        """
        self._lock.check()
        if gone := [part for part in self._written if not part.exists()]:
            raise FileNotFoundError(
                f"{len(gone)} of {len(self._written)} files that {self.path} grows from were removed while it was "
                f"written, {gone[0]} first: put them back, or run the same command again, which makes their rows anew"
            )
        files = find_files(self.path, self.kind)
        if not files or (files == [self.path] and record is None):
            return
        next_part = max([_next_part(self.path, self.kind), *_numbers_after(self.path)])
        with write_hdf5(self.path, self.kind) as target:
            write_json(target, "record/shared", self.record if record is None else record)
            target.attrs["next_part"] = next_part  # a kill may leave merged parts behind
            names = _columns(files[0])
            target.attrs["columns"] = names
            for name in names:
                _concatenate(target, name, files)
        self._written = [self.path]
        shutil.rmtree(parts_folder(self.path), ignore_errors=True)


def read_rows(
    path: str | os.PathLike, kind: str, but: tuple[str, ...] = (), pattern: Any = object
) -> tuple[dict[str, Array], Any]:
    """Read all columns `but` those named, and the record of the last part.

    Args:
        path: The file.
        kind: What it must hold.
        but: Columns to leave out.
        pattern: What the record must look like, see `contents.check_value`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged or of another kind.
    """
    return _read_whole(Path(path), kind, lambda files: _read_rows(path, files, kind, but, pattern))


def _read_rows(
    path: str | os.PathLike, files: list[Path], kind: str, but: tuple[str, ...], pattern: Any
) -> tuple[dict[str, Array], Any]:
    columns: dict[str, list[Array]] = {}
    for part in files:
        with read_hdf5(part, kind) as file:
            names = read_attribute(file, "columns", list)
            if columns and {*names} - {*but} != columns.keys():
                raise ValueError(f"{part} holds other columns than those before it: is it of another file?")
            lengths = set()
            for name in names:
                lengths.add(len(dataset(file, name, None, "fiubT")))
                if name not in but:
                    columns.setdefault(name, []).append(read_array(file, name, None, "fiubT"))
            if len(lengths) != 1:
                raise ValueError(f"{part} is damaged: its columns have {sorted(lengths)} rows")
            record = read_json(file, "record/shared", pattern)
    return {name: _stack(parts, f"{path}: {name}") for name, parts in columns.items()}, record


def read_column(path: str | os.PathLike, kind: str, name: str, keys: Mapping[str, Array]) -> Array:
    """Read a column of the rows that are identified by other columns, in the order asked for.

    Where a row stands is no identity: while several processes add parts, a later one may get its place before others.

    Args:
        path: The file.
        kind: What it must hold.
        name: Of the column.
        keys: Whole numbers `[m]` by the names of their columns, which together tell rows apart.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged or of another kind, or some of the rows are not there (any more).
    """
    return _read_whole(Path(path), kind, lambda files: _read_column(path, files, kind, name, keys))


def _read_column(path: str | os.PathLike, files: list[Path], kind: str, name: str, keys: Mapping[str, Array]) -> Array:
    asked = [*zip(*(values.tolist() for values in keys.values()), strict=True)]
    wanted = {key: i for i, key in enumerate(dict.fromkeys(asked))}
    found, order = [], list[int]()
    for part in files:
        with read_hdf5(part, kind) as file:
            column = dataset(file, name, [None, None], "f")
            own = zip(*(read_array(file, key, [len(column)], "iu").tolist() for key in keys), strict=True)
            inside = [(row, wanted[key]) for row, key in enumerate(own) if key in wanted]
            order += [i for _, i in inside]
            if not column.size:  # h5py does not select from nothing
                found.append(np.empty((len(inside), column.shape[1]), column.dtype))
                continue
            try:
                found.append(column[[row for row, _ in inside]] if inside else column[:0])
            except (OSError, RuntimeError) as error:
                raise ValueError(f"{part} is damaged: {name} cannot be read ({error})") from error
    if sorted(order) != [*range(len(wanted))]:
        raise ValueError(f"{path} has not the rows any more that it had when it was read: read it again")
    place = np.argsort(order)
    return _stack(found, f"{path}: {name}")[place[[wanted[key] for key in asked]]]


def find_files(path: Path, kind: str) -> list[Path]:
    """Return the file and the parts that it does not hold yet, in order; an empty list if there are none."""
    parts = sorted(_parts(path).items())  # first: the file holds them before they go
    first = _next_part(path, kind)
    return [path] * path.exists() + [file for number, file in parts if number >= first]


def _read_whole(path: Path, kind: str, read: Callable[[list[Path]], T]) -> T:
    """Call what reads the files; again, where a job has merged them meanwhile."""

    def read_once() -> T:
        files = find_files(path, kind)
        if not files:
            raise FileNotFoundError(f"no file {path}")
        found = read(files)
        if not {*files} <= {*find_files(path, kind)}:
            raise FileNotFoundError(f"{path} was merged while it was read")
        return found

    return read_steadily(read_once, path, parts=parts_folder(path))


def parts_folder(path: Path) -> Path:
    """Return where the parts of a file lie."""
    return path.with_name(f"{path.name}.parts")


def _next_part(path: Path, kind: str) -> int:
    """Return the number of the first part that is not merged into the file."""
    if not path.exists():
        return 0
    with read_hdf5(path, kind) as file:
        return read_attribute(file, "next_part", int) if has_attribute(file, "next_part") else 0


def _numbers_after(path: Path) -> list[int]:
    return [number + 1 for number in _parts(path)]


def _parts(path: Path) -> dict[int, Path]:
    """Return the parts by their numbers."""
    return {int(file.stem): file for file in parts_folder(path).glob("[0-9]*.h5") if file.stem.isdecimal()}


def _columns(path: Path) -> list[str]:
    with read_hdf5(path) as file:
        return read_attribute(file, "columns", list)


def _concatenate(target: h5py.File, name: str, files: list[Path]) -> None:
    shapes = []
    for part in files:
        with read_hdf5(part) as source:
            column = dataset(source, name, None, "fiubT")
            shapes.append(column.shape)
            dtype = column.dtype
    n, widths = sum(shape[0] for shape in shapes), [shape[1:] for shape in shapes]
    rows = target.create_dataset(name, (n, *map(max, zip(*widths, strict=True))), dtype)
    first = 0
    for part in files:
        with read_hdf5(part) as source:
            values = source[name][()]
        place = (slice(first, first + len(values)), *(slice(0, width) for width in values.shape[1:]))
        if values.shape[1:] != rows.shape[1:]:
            rows[first : first + len(values)] = np.nan
        rows[place] = values
        first += len(values)


def _stack(parts: list[Array], where: str) -> Array:
    if len({(part.ndim, part.dtype.kind) for part in parts}) > 1 or parts[0].ndim > 2:
        kinds = ", ".join(f"{part.ndim}-D {part.dtype.name}" for part in parts)
        raise ValueError(f"{where} differs from part to part, or is no column: {kinds}")
    width = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
    return np.concatenate(
        [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan)
            if part.ndim == 2 and part.shape[1] < width
            else part
            for part in parts
        ]
    )

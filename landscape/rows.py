"""Rows of many runs in one HDF5 file that grows from parts: a kill loses the part in work, nothing else.

A file holds columns, arrays whose first axis are the rows, by name (`"curve/loss"` lies in a group), and a record in
JSON. While it grows, parts of the same structure lie in the folder `NAME.h5.parts`; readers take both. Columns of
parts may differ in width; missing entries are NaN.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from landscape.storage import read_hdf5, read_json, write_hdf5, write_json

Array = np.ndarray


class RowsWriter:
    """Add parts to a file of rows, each safe on the disk when `add` returns.

    Args:
        path: The file; what is there is extended.
        kind: What it holds.
        record: What all rows share (JSON-able).
    """

    def __init__(self, path: str | os.PathLike, kind: str, record: Any) -> None:
        self.path, self.kind, self.record = Path(path), kind, record
        self._first = max([_next_part(self.path, kind), *_numbers_after(self.path)])

    def add(self, columns: Mapping[str, Array], i: int) -> None:
        """Write some rows, the i-th part since this writer was made, whatever the order in which they come."""
        with write_hdf5(parts_folder(self.path) / f"{self._first + i:06d}.h5", self.kind) as file:
            write_json(file, "record/shared", self.record)
            file.attrs["columns"] = list(columns)
            for name, column in columns.items():
                file[name] = column

    def finish(self, record: Any = None) -> None:
        """Merge all parts into the one file, one column of one part in memory at a time.

        Args:
            record: To be kept instead of that given before.
        """
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
        shutil.rmtree(parts_folder(self.path), ignore_errors=True)


def read_rows(path: str | os.PathLike, kind: str, but: tuple[str, ...] = ()) -> tuple[dict[str, Array], Any]:
    """Read all columns `but` those named, and the record of the last part.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged or of another kind.
    """
    files = find_files(Path(path), kind)
    if not files:
        raise FileNotFoundError(f"no file {path}")
    columns: dict[str, list[Array]] = {}
    for part in files:
        with read_hdf5(part, kind) as file:
            for name in map(str, file.attrs["columns"]):
                if name not in but:
                    columns.setdefault(name, []).append(_decoded(file[name]))
            record = read_json(file, "record/shared")
    return {name: _stack(parts) for name, parts in columns.items()}, record


def read_column(path: str | os.PathLike, kind: str, name: str, rows: Array) -> Array:
    """Read some rows of a column, by increasing indices."""
    files = find_files(Path(path), kind)
    first, found = 0, []
    for part in files:
        with h5py.File(part, "r") as file:
            n = len(file[name])
            inside = rows[(rows >= first) & (rows < first + n)] - first
            column = file[name] if file[name].size else file[name][()]  # h5py does not select from nothing
            found.append(column[inside] if len(inside) else column[:0])
        first += n
    return _stack(found)


def find_files(path: Path, kind: str) -> list[Path]:
    """Return the file and the parts that it does not hold yet, in order; an empty list if there are none."""
    first = _next_part(path, kind)
    parts = [file for file in sorted(parts_folder(path).glob("[0-9]*.h5")) if int(file.stem) >= first]
    return [path] * path.exists() + parts


def parts_folder(path: Path) -> Path:
    """Return where the parts of a file lie."""
    return path.with_name(f"{path.name}.parts")


def _next_part(path: Path, kind: str) -> int:
    """Return the number of the first part that is not merged into the file."""
    if not path.exists():
        return 0
    with read_hdf5(path, kind) as file:
        return int(file.attrs.get("next_part", 0))


def _numbers_after(path: Path) -> list[int]:
    return [int(file.stem) + 1 for file in parts_folder(path).glob("[0-9]*.h5")]


def _columns(path: Path) -> list[str]:
    with h5py.File(path, "r") as file:
        return [str(name) for name in file.attrs["columns"]]


def _concatenate(target: h5py.File, name: str, files: list[Path]) -> None:
    shapes = []
    for part in files:
        with h5py.File(part, "r") as source:
            shapes.append(source[name].shape)
            dtype = source[name].dtype
    n, widths = sum(shape[0] for shape in shapes), [shape[1:] for shape in shapes]
    rows = target.create_dataset(name, (n, *map(max, zip(*widths, strict=True))), dtype)
    first = 0
    for part in files:
        with h5py.File(part, "r") as source:
            values = source[name][()]
        place = (slice(first, first + len(values)), *(slice(0, width) for width in values.shape[1:]))
        if values.shape[1:] != rows.shape[1:]:
            rows[first : first + len(values)] = np.nan
        rows[place] = values
        first += len(values)


def _stack(parts: list[Array]) -> Array:
    width = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
    return np.concatenate(
        [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan)
            if part.ndim == 2 and part.shape[1] < width
            else part
            for part in parts
        ]
    )


def _decoded(column: h5py.Dataset) -> Array:
    return column.asstr()[()].astype(str) if h5py.check_string_dtype(column.dtype) else column[()]

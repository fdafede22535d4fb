"""The rows of a trajectory on disk: one file, and the shards it grows from.

A trajectory file `NAME.h5` holds

    /theta         [t, p] float32, or float64 if a parameter is
    /buffers       [t, q] floating-point buffers, such as batch-norm statistics
    /step          [t] int64
    /metrics/...   [t] float64 each, NaN where not given
    /record/layout, /record/buffers, /record/info   JSON text

While it is recorded, shards of the same structure lie in the folder `NAME.h5.parts`, each named by the number of its
first row. A shard takes the place of whatever the files before it hold from that row on, so that recording, going on
and merging leave a readable trajectory behind at whatever moment they are killed.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from landscape.contents import dataset, read_array, read_group
from landscape.parameters import Layout, Selection, layout
from landscape.storage import read_hdf5, read_json, write_hdf5, write_json

MERGE_BYTES = 16 * 2**20  # of rows that merging holds in memory


@dataclass(frozen=True)
class Header:
    """What all rows of a trajectory share.

    Attributes:
        layout: Where each parameter lies in theta.
        buffers: Where each buffer lies in a row of buffers.
        dtypes: Types of theta and of the buffers, `"float32"` or `"float64"`.
        info: What the user stored along.
    """

    layout: Layout
    buffers: Layout
    dtypes: tuple[str, str]
    info: dict = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, model: nn.Module, select: Selection, info: dict) -> "Header":
        """Describe the rows of a network: the selected parameters and the floating-point buffers of its state dict."""
        parameters, persistent = layout(model, select), model.state_dict().keys()
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        names = tuple(
            name for name, buffer in model.named_buffers() if name in persistent and buffer.is_floating_point()
        )
        buffers = Layout(names, tuple(tuple(tensors[name].shape) for name in names))
        return cls(parameters, buffers, (float_type(parameters, tensors), float_type(buffers, tensors)), info)

    def flatten(self, tensors: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Return theta `[p]` and the flat buffers `[q]` of the named tensors, as copies."""
        theta, buffers = (
            part.flatten(tensors, getattr(torch, kind)).cpu().numpy() if part.names else np.empty(0, kind)
            for part, kind in zip((self.layout, self.buffers), self.dtypes, strict=True)
        )
        return theta, buffers


def float_type(part: Layout, tensors: Mapping[str, Tensor]) -> str:
    """Return the narrower of float32 and float64 that holds the laid-out tensors exactly."""
    return "float64" if any(tensors[name].dtype == torch.float64 for name in part.names) else "float32"


class Row(NamedTuple):
    """One recorded step: theta `[p]`, flat buffers `[q]`, and the metrics that came with it."""

    step: int
    theta: np.ndarray
    buffers: np.ndarray
    metrics: dict[str, float]


@dataclass(frozen=True)
class Segment:
    """Rows `first` to `stop - 1` of a trajectory are the rows `0` to `stop - first - 1` of a file."""

    file: Path
    first: int
    stop: int


def shard_folder(path: Path) -> Path:
    """Return the folder of the shards of a trajectory file."""
    return path.with_name(f"{path.name}.parts")


def find_shards(path: Path) -> dict[int, Path]:
    """Return the shards of a trajectory file by the number of their first row, in order."""
    return {int(file.stem): file for file in sorted(shard_folder(path).glob("[0-9]*.h5")) if file.stem.isdecimal()}


def find_segments(path: Path) -> list[Segment]:
    """Say in which files the rows of a trajectory lie, merged or not; an empty list if there are none.

    Raises:
        ValueError: A file is damaged or of another kind, or rows in between are missing.
    """
    shards = [(first, file, "trajectory-part") for first, file in find_shards(path).items()]
    # Looked for after the shards: it is there before they go.
    files = [*([(0, path, "trajectory")] if path.exists() else []), *shards]
    segments: list[Segment] = []
    widths: set[tuple[int, int]] = set()
    for first, file, kind in files:
        with read_hdf5(file, kind) as rows:
            n = len(dataset(rows, "step", [None], "i"))
            if not n:
                raise ValueError(f"{file} is damaged: it has no rows")
            theta, buffers = (dataset(rows, name, [n, None], "f") for name in ("theta", "buffers"))
            widths.add((theta.shape[1], buffers.shape[1]))
        if len(widths) > 1:
            raise ValueError(f"{path}: {file} is of another network than the rows before it")
        end = segments[-1].stop if segments else 0
        if first > end:
            raise ValueError(
                f"{path}: rows {end} to {first - 1} are missing; the next ones are in {file}. "
                f"Bring back the file that held them, or delete {shard_folder(path)} too"
            )
        segments = [*cut_segments(segments, first), Segment(file, first, first + n)]
    return segments


def cut_segments(segments: Sequence[Segment], stop: int) -> list[Segment]:
    """Keep the rows before `stop`."""
    return [Segment(s.file, s.first, min(s.stop, stop)) for s in segments if s.first < stop]


def read_header(file: Path) -> Header:
    """Read what the rows of a trajectory share from one of its files."""
    with read_hdf5(file) as rows:
        layout, buffers = _read_layout(rows, "layout"), _read_layout(rows, "buffers")
        theta = dataset(rows, "theta", [None, layout.p], "f")
        dtypes = (theta.dtype.name, dataset(rows, "buffers", [len(theta), buffers.p], "f").dtype.name)
        if not {*dtypes} <= {"float32", "float64"}:
            raise ValueError(f"{file} is damaged: theta and buffers are {' and '.join(dtypes)}")
        return Header(layout, buffers, dtypes, read_json(rows, "record/info", dict))


def _read_layout(rows: h5py.File, name: str) -> Layout:
    stored = read_json(rows, f"record/{name}", {"names": [str], "shapes": [[int]]})
    names, shapes = tuple(stored["names"]), tuple(map(tuple, stored["shapes"]))
    if len(set(names)) != len(shapes) or len(names) != len(shapes) or any(n < 0 for shape in shapes for n in shape):
        raise ValueError(f"{rows.filename} is damaged: names and shapes of its {name} do not fit")
    if (p := sum(map(math.prod, shapes))) >= 2**63:
        raise ValueError(f"{rows.filename} is damaged: its {name} has {p} entries")
    return Layout(names, shapes)


def read_scalars(segments: Sequence[Segment]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read the steps `[t]` and the metrics, `[t]` each, of all rows."""
    t = segments[-1].stop if segments else 0
    step = np.empty(t, np.int64)
    metrics: dict[str, np.ndarray] = {}
    for segment in segments:
        here, n = slice(segment.first, segment.stop), segment.stop - segment.first
        with read_hdf5(segment.file) as rows:
            stored = read_array(rows, "step", [None], "i")
            step[here] = stored[:n]
            group = read_group(rows, "metrics")
            for name in group:
                values = read_array(group, name, [len(stored)], "f")
                metrics.setdefault(name, np.full(t, np.nan))[here] = values[:n]
    return step, metrics


def create_rows(
    file: h5py.File, header: Header, step: np.ndarray, metrics: Mapping[str, np.ndarray]
) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Write everything but theta and the buffers, and return the room for these: `[t, p]` and `[t, q]`."""
    for name, part in (("layout", header.layout), ("buffers", header.buffers)):
        write_json(file, f"record/{name}", {"names": part.names, "shapes": part.shapes})
    write_json(file, "record/info", header.info)
    file["step"] = np.asarray(step, np.int64)
    group = file.create_group("metrics")
    for name, values in metrics.items():
        group[name] = np.asarray(values, np.float64)
    # Not chunked: at [1000, 270000], one row reads 8 times faster than with chunks of [16, 8192], and all
    # columns in blocks of 64 MB 1.5 times slower.
    theta_type, buffer_type = header.dtypes
    theta = file.create_dataset("theta", (len(step), header.layout.p), theta_type)
    return theta, file.create_dataset("buffers", (len(step), header.buffers.p), buffer_type)


def write_shard(path: Path, first: int, header: Header, rows: Sequence[Row]) -> Segment:
    """Write rows as the shard that begins with row `first`."""
    file = shard_folder(path) / f"{first:012d}.h5"
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    metrics = {name: np.array([row.metrics.get(name, np.nan) for row in rows]) for name in names}
    with write_hdf5(file, "trajectory-part") as out:
        theta, buffers = create_rows(out, header, np.array([row.step for row in rows]), metrics)
        theta[:] = np.stack([row.theta for row in rows])
        buffers[:] = np.stack([row.buffers for row in rows])
    return Segment(file, first, first + len(rows))


def merge(path: Path, header: Header, segments: Sequence[Segment]) -> None:
    """Write all rows as one file, a block of rows at a time, and remove the shards."""
    step, metrics = read_scalars(segments)
    with write_hdf5(path, "trajectory") as out:
        theta, buffers = create_rows(out, header, step, metrics)
        block = max(1, MERGE_BYTES // max(1, theta.dtype.itemsize * header.layout.p))
        for segment in segments:
            with read_hdf5(segment.file) as rows:
                for a in range(segment.first, segment.stop, block):
                    b = min(a + block, segment.stop)
                    theta[a:b] = rows["theta"][a - segment.first : b - segment.first]
                    buffers[a:b] = rows["buffers"][a - segment.first : b - segment.first]
    # First to last: a shard that is left when this is killed must not hide merged rows.
    for file in find_shards(path).values():
        file.unlink()
    folder = shard_folder(path)
    for file in folder.glob(".*.tmp"):  # a kill while a shard was written left it
        file.unlink()
    with suppress(OSError):  # gone already, or it holds files that are not ours
        folder.rmdir()


def drop_shards(path: Path, stop: int) -> None:
    """Remove the shards that begin at row `stop` or later, the last first: what is left is a prefix at any time."""
    for first, file in reversed(find_shards(path).items()):
        if first >= stop:
            file.unlink()

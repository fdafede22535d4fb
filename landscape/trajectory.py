"""The checkpoints of one training run, in order: read from the file that a `Recorder` wrote, or gathered from others.

Theta of a trajectory is `[t, p]` and may be larger than memory: rows, blocks of columns and scalars are read when they
are asked for.
"""

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from landscape.checkpoint import first_names, read, state_for
from landscape.contents import dataset
from landscape.lock import Lock
from landscape.parameters import Layout, Selection
from landscape.shards import (
    Header,
    Segment,
    create_rows,
    cut_segments,
    find_segments,
    float_type,
    read_header,
    read_scalars,
    shard_folder,
)
from landscape.storage import read_hdf5, read_steadily, write_hdf5


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The checkpoints of one training run.

    Attributes:
        path: Its file.
        layout: Where each parameter lies in theta.
        step: `[t]` int64, the training step of each checkpoint.
        metrics: `[t]` float64 by name; NaN where none was given.
        info: What was stored along.
    """

    path: Path
    layout: Layout
    step: np.ndarray
    metrics: dict[str, np.ndarray]
    info: dict[str, Any]
    _buffers: Layout
    _segments: list[Segment]

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trajectory":
        """Open a trajectory, of a finished run or of one that still runs or was killed.

        Args:
            path: The file that a `Recorder` or `gather` wrote.

        Raises:
            FileNotFoundError: Nothing was recorded there.
            ValueError: A file is damaged, is no trajectory, or rows are missing.
        """
        path = Path(path)

        def read() -> Trajectory:
            segments = find_segments(path) if path.name else []
            if not segments:
                raise FileNotFoundError(f"no trajectory {path}")
            header = read_header(segments[-1].file)
            step, metrics = read_scalars(segments)
            return cls(path, header.layout, step, metrics, header.info, header.buffers, segments)

        return read_steadily(read, path, parts=shard_folder(path))

    def __len__(self) -> int:
        return len(self.step)

    @property
    def p(self) -> int:
        """Number of entries of theta."""
        return self.layout.p

    def theta(self, i: int) -> Tensor:
        """Read the parameters of checkpoint `i`, negative from the end.

        Returns:
            `[p]`, float32 or float64.

        Raises:
            IndexError: There is no such checkpoint.
        """
        return torch.from_numpy(self._row("theta", i))

    def buffers(self, i: int) -> dict[str, Tensor]:
        """Read the floating-point buffers of checkpoint `i` by name, such as batch-norm statistics.

        Raises:
            IndexError: There is no such checkpoint.
        """
        return self._buffers.unflatten(torch.from_numpy(self._row("buffers", i))) if self._buffers.names else {}

    def _row(self, name: str, i: int) -> np.ndarray:
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"checkpoint {i} of a trajectory of {len(self)}")
        i %= len(self)

        def read() -> np.ndarray:
            segment = next(s for s in self._present_segments() if i < s.stop)
            with read_hdf5(segment.file) as file:
                return _rows(file, name, (i - segment.first,))

        return read_steadily(read, self.path, parts=shard_folder(self.path))

    def _present_segments(self) -> list[Segment]:
        """Return where the rows are: the recorder may have merged its files since."""
        if not all(segment.file.exists() for segment in self._segments):
            found = cut_segments(find_segments(self.path), len(self))
            if not found or found[-1].stop < len(self):
                raise FileNotFoundError(f"rows of {self.path} were removed since it was opened")
            self._segments[:] = found
        return self._segments

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Read the entries `start` to `stop - 1` of theta of all checkpoints, and only these.

        Returns:
            `[t, stop - start]`.

        Raises:
            ValueError: Not `0 <= start <= stop <= p`.
        """
        start, stop = operator.index(start), operator.index(stop)
        if not 0 <= start <= stop <= self.p:
            raise ValueError(f"columns need 0 <= start <= stop <= {self.p}, got {start} and {stop}")

        def read() -> np.ndarray:
            parts = []
            for segment in self._present_segments():
                with read_hdf5(segment.file) as file:
                    parts.append(_rows(file, "theta", (slice(segment.stop - segment.first), slice(start, stop))))
            return np.concatenate(parts)

        return read_steadily(read, self.path, parts=shard_folder(self.path))

    def blocks(self, max_bytes: int = 64 * 2**20) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield all columns of theta, block by block.

        Args:
            max_bytes: Size of a block, which has at least one column.

        Yields:
            `(start, stop, block)` with block `[t, stop - start]`.
        """
        itemsize = self.columns(0, 0).itemsize
        width = max(1, max_bytes // (itemsize * len(self)))
        for start in range(0, self.p, width):
            stop = min(start + width, self.p)
            yield start, stop, self.columns(start, stop)


def _rows(file: h5py.File, name: str, place: tuple[int | slice, ...]) -> np.ndarray:
    try:
        return dataset(file, name, [None, None], "f")[place]
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file.filename} is damaged: {name} cannot be read ({error})") from error


def gather(
    paths: Sequence[str | os.PathLike],
    path: str | os.PathLike,
    *,
    model: nn.Module | None = None,
    select: Selection = "all",
) -> Trajectory:
    """Make a trajectory of checkpoint files, such as one per epoch.

    The files become steps `0 .. t-1` in the order given. With a model, its parameters in its own order become theta and
    its floating-point buffers are kept. Without one, all floating-point entries become theta, in the order of the first
    file; buffers cannot be told from parameters then.

    Args:
        paths: Files that `landscape.checkpoint.read` accepts.
        path: The trajectory file to write.
        model: The network that the files are of; its own values do not matter.
        select: Which of its parameters (see `landscape.parameters.layout`).

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: `path` holds a trajectory already, there are no files, one of them cannot be read or does not fit;
            or no model is given though it is needed, to tell batch-norm statistics apart or to select.
    """
    path, files = Path(path), [Path(file) for file in paths]
    if not files:
        raise ValueError("gather needs at least one checkpoint file")
    if path.exists() or shard_folder(path).exists():
        raise ValueError(f"{path} exists already: choose another path, or delete it")
    info = {"files": [str(file) for file in files]}
    if model is not None:
        header = Header.of(model, select, info)
    elif select == "all":
        header = _header_of(files[0], info)
    else:
        raise ValueError(f"select={select!r} needs a model")
    with Lock(path), write_hdf5(path, "trajectory") as out:
        theta, buffers = create_rows(out, header, np.arange(len(files)), {})
        for i, file in enumerate(files):
            state = read(file).state
            try:
                if model is not None:
                    state = state_for(model, state)
                elif extra := [name for name in _parameters(state) if name not in header.layout.names]:
                    raise ValueError(f"{extra[0]!r} is not in {files[0]}")
                theta[i], buffers[i] = header.flatten(state)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
    return Trajectory.load(path)


def _header_of(file: Path, info: dict) -> Header:
    """Describe the rows of a network of which only a checkpoint is known."""
    state = _parameters(read(file).state)
    statistics = [name for name in state if name.endswith(("running_mean", "running_var"))]
    if statistics:
        raise ValueError(
            f"{file} holds batch-norm statistics ({statistics[0]}, ...), which are no parameters: give gather the model"
        )
    if not state:
        raise ValueError(f"{file} holds no floating-point tensors")
    layout = Layout(tuple(state), tuple(tuple(tensor.shape) for tensor in state.values()))
    return Header(layout, Layout((), ()), (float_type(layout, state), "float32"), info)


def _parameters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the floating-point entries, tied ones once."""
    return {
        name: state[name]
        for name, first in first_names(state).items()
        if name == first and state[name].is_floating_point()
    }

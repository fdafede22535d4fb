"""Record the trajectory of a training run while it runs, from anybody's training loop."""

import atexit
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from landscape.arguments import expect, file_path, json_text, real_number, whole_number
from landscape.lock import Lock
from landscape.parameters import Selection
from landscape.shards import (
    Header,
    Row,
    Segment,
    cut_segments,
    drop_shards,
    find_segments,
    merge,
    read_header,
    read_scalars,
    shard_folder,
    write_shard,
)
from landscape.storage import read_hdf5

log = logging.getLogger(__name__)

MEMORY_BYTES = 16 * 2**20  # of rows held back before they are written
SHARD_BYTES = 2**20  # a smaller shard is written again, with the rows that follow
ROW_BYTES = 1000  # what a row takes in memory beside its arrays


class Recorder:
    """Record the parameters of a network during training, streamed to a file.

    The network as it is now is the first row. Each call of `step` counts one training step, and after every `every`-th
    the parameters and floating-point buffers become a row; `close` adds the last step if it is not one of them. Rows
    reach the disk within `interval` seconds of further calls, as shards in the folder `PATH.parts`; `close` merges them
    into `PATH`. What a killed run had on the disk stays readable: `Trajectory.load(path)` reads shards as well. Memory
    does not grow with the number of steps.

    To go on with an interrupted run, load your own checkpoint into the network and give `step=k`, the steps it has
    behind it: rows up to step `k` are kept, later ones dropped. Call `flush` whenever you save such a checkpoint, so
    that no row before it is lost. Where nothing is recorded yet, the trajectory begins at step `k`.

    An exception in the `with` block, or the end of the program without `close`, merges what was recorded, too. While
    the recorder is open no other process can record there; in the same process a new recorder takes over, and the older
    one refuses further rows.

    Args:
        path: The file to write, such as `run.h5`.
        model: The network that is trained; it is only read. In a distributed run, record on one process only.
        every: Steps from one row to the next.
        select: Which parameters (see `landscape.parameters.layout`).
        step: Training steps that the network has behind it.
        info: Anything worth keeping that JSON can hold.
        interval: Seconds between two writes.

    Raises:
        ValueError: `path` holds a trajectory and `step` is 0, or that of another network; or `every` or `step` is out
            of range.
        BlockingIOError: Another process records there.

    Example:
        >>> with Recorder("run.h5", model, every=10) as recorder:  # doctest: +SKIP
        ...     for inputs, targets in loader:
        ...         loss = train_on(inputs, targets)
        ...         recorder.step(loss=loss)
    """

    def __init__(
        self,
        path: str | os.PathLike,
        model: nn.Module,
        *,
        every: int = 1,
        select: Selection = "all",
        step: int = 0,
        info: Mapping[str, Any] | None = None,
        interval: float = 2.0,
    ) -> None:
        self.path = file_path(path)
        self.model = model
        self.every, self.n_steps = whole_number("every", every, 1), whole_number("step", step, 0)
        self.interval = real_number("interval", interval, 0)
        if info is not None:
            expect("info", info, Mapping, "what is to be kept, by name")
            json_text("info", dict(info))
        self._header = Header.of(model, select, dict(info or {}))
        self._watched = [*model.parameters(), *model.buffers()]
        self._segments: list[Segment] = []  # of rows that are on the disk for good
        self._rows: list[Row] = []  # those after them, on the disk or not yet
        self._tail: Segment | None = None  # what of `_rows` is on the disk
        self._last_step = -1  # of the last row
        self._metrics: dict[str, Any] = {}
        self._closed = False
        self._process = os.getpid()
        self._lock = Lock(self.path)
        try:
            self._segments = find_segments(self.path)
            if self._segments:
                self._go_on()
            self._lock.take()
            if self._last_step < self.n_steps and (not self._segments or self.n_steps % self.every == 0):
                self._record()
            self.flush()
        except BaseException:
            self._lock.release()
            raise
        self._seen = self._versions()
        atexit.register(self.close)

    def _go_on(self) -> None:
        """Keep the rows up to the present step."""
        if self.n_steps == 0:
            raise ValueError(
                f"{self.path} holds a trajectory already. To go on with it, give step=..., the steps that the network "
                f"has behind it; to start anew, choose another path or delete it and {shard_folder(self.path).name}"
            )
        old = read_header(self._segments[-1].file)
        if old != self._header:
            raise ValueError(f"{self.path} is not a trajectory of this network: {_difference(old, self._header)}")
        self._header = replace(self._header, info={**old.info, **self._header.info})
        steps, _ = read_scalars(self._segments)
        n_kept = int(np.searchsorted(steps, self.n_steps, side="right"))
        self._segments = cut_segments(self._segments, n_kept)
        drop_shards(self.path, n_kept)
        if not n_kept:
            return
        self._last_step = int(steps[n_kept - 1])
        if self._last_step == self.n_steps:
            with read_hdf5(self._segments[-1].file) as file:
                recorded = file["theta"][n_kept - 1 - self._segments[-1].first]
            if not np.array_equal(recorded, self._state()[0], equal_nan=True):
                log.warning("%s: the network differs from what was recorded at step %d", self.path, self.n_steps)
        elif self._last_step + self.every < self.n_steps:
            log.warning("%s: nothing recorded from step %d to %d", self.path, self._last_step, self.n_steps)

    def step(self, **metrics: float | Tensor) -> None:
        """Count one training step, and record it if it is its turn.

        Args:
            **metrics: Numbers to keep with the row, such as `loss=...`; those of steps without a row are dropped.

        Raises:
            ValueError: The recorder is closed, a newer one has taken over when a row is due, or the name of a metric
                contains a slash.
            TypeError: A metric is not a number.
        """
        if self._closed:
            raise ValueError(f"the recorder of {self.path} is closed: make a new one with step={self.n_steps}")
        self.n_steps += 1
        # Detached but not converted: reading a number off an accelerator waits for it.
        self._metrics = {k: v.detach() if isinstance(v, Tensor) else v for k, v in metrics.items()}
        is_row = self.n_steps % self.every == 0
        if is_row:
            self._lock.check()
            self._record()
        self._seen = self._versions()
        # Steps without a row do as little as they can: that is most of what a recorder adds to a training.
        if time.monotonic() - self._written > self.interval or (is_row and self._held() >= MEMORY_BYTES):
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory to the disk now."""
        self._lock.check()
        self._written = time.monotonic()
        if self._tail and not self._tail.file.exists():  # removed by somebody; its rows are in memory
            self._tail = None
        for segment in self._segments[-1:]:
            if not segment.file.exists():
                raise FileNotFoundError(
                    f"{segment.file} was removed while {self.path} was recorded; it held rows {segment.first} to "
                    f"{segment.stop - 1}: put it back, or record into another file"
                )
        if len(self._rows) == (self._tail.stop - self._tail.first if self._tail else 0):
            return
        first = self._segments[-1].stop if self._segments else 0
        self._tail = write_shard(self.path, first, self._header, self._rows)
        if self._held() >= SHARD_BYTES:
            self._segments.append(self._tail)
            self._rows, self._tail = [], None

    def close(self) -> None:
        """Record the last step if it has no row yet, and merge everything into one file. Later calls do nothing."""
        self._finish(record_last=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the parameters may be those of a step half done.
        self._finish(record_last=kind is None)

    def _finish(self, record_last: bool) -> None:
        if self._closed or os.getpid() != self._process:  # a forked worker inherits the exit hook, not the file
            return
        self._closed = True
        atexit.unregister(self.close)
        if not self._lock.in_force:  # a newer recorder of this process has the file
            return
        try:
            if record_last and self._last_step < self.n_steps:
                if self._versions() == self._seen:
                    self._record()
                else:
                    log.warning("%s: step %d is not recorded, the network has changed since", self.path, self.n_steps)
        finally:
            try:
                self.flush()
                merge(self.path, self._header, [*self._segments, *([self._tail] if self._tail else [])])
            finally:
                self._lock.release()

    def _held(self) -> int:
        """Return the bytes of the rows in memory."""
        if not self._rows:
            return 0
        return len(self._rows) * (ROW_BYTES + self._rows[0].theta.nbytes + self._rows[0].buffers.nbytes)

    def _record(self) -> None:
        given, self._metrics, metrics = self._metrics, {}, {}  # what is refused now does not fail `close` again
        for name, value in given.items():
            if "/" in name or name in ("", "."):
                raise ValueError(f"metric name {name!r} cannot be stored: use letters, digits and underscores")
            try:
                metrics[name] = float(value)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"metric {name!r} must be a number, got {value!r}") from None
        self._rows.append(Row(self.n_steps, *self._state(), metrics))
        self._last_step = self.n_steps

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        return self._header.flatten({**dict(self.model.named_parameters()), **dict(self.model.named_buffers())})

    def _versions(self) -> list[int]:
        """Return a number per tensor that grows whenever its values are changed in place."""
        return [tensor._version for tensor in self._watched]

    def lightning(self) -> Any:
        """Return a Lightning callback that records every optimizer step with its loss, and closes after `fit`.

        Raises:
            ImportError: Lightning is not installed.

        Example:
            >>> trainer = Trainer(callbacks=[Recorder("run.h5", module).lightning()])  # doctest: +SKIP
        """
        recorder = self

        class RecordTrajectory(_lightning().Callback):  # type: ignore[misc]
            def on_train_start(self, trainer: Any, pl_module: Any) -> None:
                self.n_steps = trainer.global_step
                self.losses: list[Tensor] = []  # since the last step

            def on_train_batch_end(
                self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
            ) -> None:
                loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
                if loss is not None:
                    self.losses.append(loss.detach())
                if trainer.global_step == self.n_steps:  # gradients are only accumulated
                    return
                # Lightning has divided the loss of each batch by the number of batches that make a step.
                used = self.losses if pl_module.automatic_optimization else self.losses[-1:]
                recorder.step(**({"loss": sum(used)} if used else {}))
                self.n_steps, self.losses = trainer.global_step, []

            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                recorder.close()

        return RecordTrajectory()

    def hugging_face(self) -> Any:
        """Return a callback for the Trainer of transformers that records every optimizer step, and closes at the end.

        Raises:
            ImportError: transformers is not installed.

        Example:
            >>> trainer = Trainer(model, callbacks=[Recorder("run.h5", model).hugging_face()])  # doctest: +SKIP
        """
        try:
            from transformers import TrainerCallback
        except ImportError as error:
            raise ImportError("this needs transformers: pip install transformers accelerate") from error
        recorder = self

        class RecordTrajectory(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                recorder.step()

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                recorder.close()

        return RecordTrajectory()


def _lightning() -> ModuleType:
    """Import Lightning under the one of its two names that the program uses already: their classes differ."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise ImportError("this needs Lightning: pip install lightning")


def _difference(old: Header, new: Header) -> str:
    """Say in what the recorded network and this one differ."""
    for what, stored, own in (("parameter", old.layout, new.layout), ("buffer", old.buffers, new.buffers)):
        for a, b in zip(
            zip(stored.names, stored.shapes, strict=True), zip(own.names, own.shapes, strict=True), strict=False
        ):
            if a != b:
                return f"{what} {a[0]!r} with shape {a[1]} is stored, the network has {b[0]!r} with shape {b[1]}"
        if len(stored.names) != len(own.names):
            return f"{len(stored.names)} {what}s are stored, the network has {len(own.names)}"
    return f"theta and buffers are stored as {' and '.join(old.dtypes)}, the network has {' and '.join(new.dtypes)}"

"""Spread tasks over processes and devices: one narrow seam for this process, processes of this machine, and a cluster.

A `Workers` runs `work = make(device)` once wherever tasks are done, so that models and data get there once, and then
`work(task)` for every task; results come back as they are ready. A worker that dies costs time only: its tasks are done
again.
"""

import io
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any, Protocol

import cloudpickle
import torch
from filelock import FileLock, Timeout
from loky.process_executor import ProcessPoolExecutor

from landscape.interruption import ignore_ctrl_c, without_ctrl_c

log = logging.getLogger(__name__)

Make = Callable[[str | None], Callable[[Any], Any]]
_QUEUED = 2  # tasks that a worker has at a time, so that it need not wait for the next one
_PREFIX = "landscape-workers-"  # of folders for temporary files
_MAX_DEATHS = 3  # of one worker without a result in between


class Workers(Protocol):
    """Where tasks are done."""

    devices: Sequence[str | None]  # of each worker; None for a processor
    threads: int | None  # of each worker; None for those of this process

    def run(self, make: Make, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Do tasks; yields the number of a task and its result, in the order in which they are ready.

        Args:
            make: Called with the device on each worker; returns the function that does a task.
            tasks: What that function is called with.
        """
        ...


class ThisProcess:
    """No further process: tasks are done here, one after another."""

    devices: Sequence[str | None] = (None,)
    threads: int | None = None

    def run(self, make: Make, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Workers.run`."""
        yield from enumerate(map(make(None), tasks))


class LocalThreads:
    """Threads of this process, among which those of torch are shared: each calls torch with its part of them.

    Operations too small for all processors at once are then done side by side. `make` is called once per thread, and
    what it returns is used by one thread at a time.

    Args:
        workers: How many threads.
    """

    def __init__(self, workers: int) -> None:
        self.devices: Sequence[str | None] = [None] * workers
        self.threads: int | None = max(1, torch.get_num_threads() // workers)
        self._pool = ThreadPoolExecutor(
            workers, "landscape", initializer=torch.set_num_threads, initargs=(self.threads,)
        )
        self._make: Make | None = None
        self._works: SimpleQueue[Callable[[Any], Any]] = SimpleQueue()

    def __enter__(self) -> "LocalThreads":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, make: Make, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Workers.run`; the same `make` is not called again where it was the last one."""
        if self._make is not make:  # one after another: torch traces networks by changing things of the whole process
            self._make, self._works = make, SimpleQueue()
            for device in self.devices:
                self._works.put(make(device))
        works = self._works

        def do(i: int) -> tuple[int, Any]:
            work = works.get()
            try:
                return i, work(tasks[i])
            finally:
                works.put(work)

        waiting = iter(range(len(tasks)))
        running: set[Future] = set()
        with torch_threads(self.threads):  # MKL's number is of the whole process
            try:
                while True:
                    for i in islice(waiting, _QUEUED * len(self.devices) - len(running)):
                        running.add(self._pool.submit(do, i))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            except KeyboardInterrupt:  # threads end in their own time, after what is done has been stored
                for future in running:
                    future.cancel()
                running = set()
                raise
            finally:
                for future in running:
                    future.cancel()
                wait(running)


class LocalWorkers:
    """Processes of this machine, each with a share of its threads or a device of its own.

    They are started at the first task and kept until the end of the `with` statement, or of the program.

    Args:
        workers: How many processes; or the device of each, such as `["cuda:0", "cuda:1"]`; or `"cuda"` for all GPUs.
        threads: Processor threads of each. Default: those of this process, shared.

    Raises:
        ValueError: There are no such devices.

    Example:
        >>> with LocalWorkers(2) as workers:  # doctest: +SKIP
        ...     evaluate(objective, plane, workers=workers)
        ...     evaluate(objective, line, workers=workers)
    """

    def __init__(self, workers: int | str | Sequence[str], threads: int | None = None) -> None:
        self.devices: Sequence[str | None] = _devices(workers)
        self.threads: int | None = threads or max(1, torch.get_num_threads() // len(self.devices))
        self._executors: dict[int, ProcessPoolExecutor] = {}

    def __enter__(self) -> "LocalWorkers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, kill: bool = False) -> None:
        """End the processes; in the middle of their tasks if `kill`."""
        try:
            while self._executors:
                self._executors.popitem()[1].shutdown(wait=True, kill_workers=kill)
        except BaseException:  # asked to stop in the middle: then the others must end as well, and nobody waits
            while self._executors:
                self._executors.popitem()[1].shutdown(wait=False, kill_workers=True)
            raise

    def run(self, make: Make, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Workers.run`.

        Raises:
            RuntimeError: A worker dies again and again.
        """
        with _folder() as folder:
            path = folder / "work"
            with path.open("wb") as file:
                pack(make, file)
            waiting = deque(range(len(tasks)))
            running: dict[Future, tuple[int, int]] = {}  # slot and task
            deaths = dict.fromkeys(range(len(self.devices)), 0)
            try:
                while waiting or running:
                    self._hand_out(path, tasks, waiting, running)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        slot, i = running.pop(future)
                        try:
                            result = future.result()
                        except BrokenProcessPool as error:
                            waiting.appendleft(i)
                            self._bury(slot, deaths, error)
                            continue
                        deaths[slot] = 0
                        yield i, result
            except BaseException:
                self.close(kill=True)  # what they are doing is of no use any more
                raise

    def _hand_out(self, path: Path, tasks: Sequence[Any], waiting: deque, running: dict) -> None:
        for _ in range(_QUEUED):  # one for each worker before the second for any
            for slot, device in enumerate(self.devices):
                busy = sum(1 for at, _ in running.values() if at == slot)
                if waiting and busy < _QUEUED:
                    if slot not in self._executors:
                        self._executors[slot] = ProcessPoolExecutor(max_workers=1)
                    i = waiting.popleft()
                    with without_ctrl_c():
                        future = self._executors[slot].submit(
                            _do, os.getpid(), os.fspath(path), device, self.threads, tasks[i]
                        )
                    running[future] = slot, i

    def _bury(self, slot: int, deaths: dict[int, int], error: BrokenProcessPool) -> None:
        """Forget the executor of a worker that died; its other tasks come back by the same error."""
        executor = self._executors.pop(slot, None)
        if executor is None:
            return
        executor.shutdown(wait=False, kill_workers=True)
        deaths[slot] += 1
        if deaths[slot] == _MAX_DEATHS:
            raise RuntimeError(
                f"a worker process died {_MAX_DEATHS} times in a row: out of memory? Use fewer workers, a smaller "
                f"memory budget or a smaller chunk size ({str(error).splitlines()[0]})"
            ) from error
        log.warning("a worker process died; its tasks are done again")


def open_workers(workers: int | str | Sequence[str] | Workers, stack: ExitStack) -> Workers:
    """Return workers: those given, or by number or devices (see `LocalWorkers`), which then end with the stack."""
    if isinstance(workers, int) and workers == 1:
        return ThisProcess()
    if isinstance(workers, int | str | Sequence):
        return stack.enter_context(LocalWorkers(workers))
    if not hasattr(workers, "run"):
        raise TypeError(f"workers must be a number, devices such as 'cuda:0', or workers, got {workers!r}")
    return workers


def pack(make: Make, file: IO[bytes]) -> None:
    """Write what workers make their work of: code by cloudpickle, tensors so that they can be mapped into memory.

    Raises:
        TypeError: Something in it cannot be sent to another process.
    """
    try:
        torch.save(make, file, pickle_module=cloudpickle)
    except Exception as error:
        raise TypeError(
            f"the model, the data or the loss cannot be sent to another process ({error}): define them by functions "
            "of a module, or use one process"
        ) from error


def unpack(source: str | bytes) -> Make:
    """Read what `pack` wrote, in a file of this user's own or in memory; tensors of a file stay there until used."""
    if isinstance(source, bytes):
        return torch.load(io.BytesIO(source), weights_only=False)
    return torch.load(source, weights_only=False, mmap=True)


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Let torch use so many processor threads; None leaves it as it is."""
    before = torch.get_num_threads()
    if n is not None and n != before:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        if n is not None and n != before:
            torch.set_num_threads(before)


def _devices(workers: int | str | Sequence[str]) -> list[str | None]:
    if isinstance(workers, int):
        if workers < 1:
            raise ValueError(f"expected 1 worker or more, got {workers}")
        return [None] * workers
    n_gpus = torch.cuda.device_count()
    devices = [f"cuda:{i}" for i in range(n_gpus)] if workers == "cuda" else workers
    devices = [devices] if isinstance(devices, str) else list(devices)
    for device in devices:
        try:
            torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"workers has no device {device!r}: give a number, 'cuda', or such as 'cuda:0'") from error
    missing = [device for device in devices if (torch.device(device).index or 0) >= n_gpus and "cuda" in device]
    if missing or not devices:
        raise ValueError(f"device(s) {', '.join(missing) or workers} asked for, but this machine has {n_gpus} GPU(s)")
    return list(devices)


_made: dict[str, Callable[[Any], Any]] = {}  # of a worker process: the work it holds, by file


def _do(parent: int, path: str, device: str | None, threads: int | None, task: Any) -> Any:
    """Do a task in a worker process."""
    if path not in _made:
        _made.clear()
        if threads is not None:
            torch.set_num_threads(threads)
        ignore_ctrl_c()
        _end_with(parent, Path(path).parent)
        _made[path] = unpack(path)(device)
    return _made[path](task)


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder for what workers read; remove it afterwards, and those that killed processes left."""
    shared = Path(tempfile.gettempdir())
    for old in shared.glob(f"{_PREFIX}*.lock"):
        with suppress(OSError, Timeout), FileLock(old, timeout=0):  # of another user, or in use
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)
            old.unlink(missing_ok=True)
    folder = shared / f"{_PREFIX}{secrets.token_hex(8)}"
    lock = folder.with_suffix(".lock")
    with FileLock(lock):  # first, so that there never is a folder that others take for an old one
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _end_with(parent: int, folder: Path) -> None:
    """End this process soon after its parent, which may be killed without a chance to tidy up."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    if "landscape-watch" not in (thread.name for thread in threading.enumerate()):
        threading.Thread(target=watch, name="landscape-watch", daemon=True).start()

"""Write HDF5 files so that a full disk, or a signal, is an error of Python and not the end of the process.

libhdf5 (2.0 and 1.14, tried) crashes when it closes a file of which it could not write everything, and h5py when an
exception leaves a function that libhdf5 has called. So libhdf5 writes through an object whose functions never fail:
the first error is kept, what follows goes to memory, and the error is raised when libhdf5 has let go of the file.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import h5py

_LARGE = 2**20  # bytes; larger writes are of data, which libhdf5 does not read again
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@contextmanager
def create_hdf5(path: str | os.PathLike, userblock_size: int = 0) -> Iterator[h5py.File]:
    """Yield a new HDF5 file; signals wait until it is closed.

    Args:
        path: The file to write, in place of an old one.
        userblock_size: Bytes to leave free at its beginning.

    Raises:
        OSError: It could not be written, for example because the disk is full.
    """
    output = _Output(path)
    try:
        with _signals_wait(), h5py.File(output, "w", userblock_size=userblock_size) as file:
            yield file
    except Exception:
        if output.error is not None:
            raise output.error from None
        raise
    finally:
        output.close()
    if output.error is not None:
        raise output.error


class _Output:
    """A file as h5py wants it, whose functions never fail.

    Attributes:
        error: The first one, None so far.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.error: BaseException | None = None
        self._file = open(path, "wb+", buffering=0)  # noqa: SIM115
        self._position = self._end = 0
        self._later: list[tuple[int, bytes]] = []  # what could not be written, in order

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        self._position = offset + (self._end if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def write(self, data: bytes | memoryview) -> int:
        """Write at the position; after an error, to memory."""
        view = memoryview(data).cast("B")
        self._end = max(self._end, self._position + len(view))
        if self.error is None:
            try:
                self._file.seek(self._position)
                written = 0
                while written < len(view):
                    written += self._file.write(view[written:])
            except BaseException as error:
                self.error = error
        if self.error is not None and len(view) <= _LARGE:
            self._later.append((self._position, bytes(view)))
        self._position += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        """Read at the position."""
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read at the position; what was never written is zero."""
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        try:
            self._file.seek(self._position)
            n_read = 0
            while n := self._file.readinto(view[n_read:]):
                n_read += n
        except BaseException as error:
            self.error = self.error or error
        for start, data in self._later:
            first, stop = max(start, self._position), min(start + len(data), self._position + len(view))
            if first < stop:
                view[first - self._position : stop - self._position] = data[first - start : stop - start]
        self._position += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        """Set the size."""
        self._end = size
        if self.error is None:
            try:
                self._file.truncate(size)
            except BaseException as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let signals that would raise an exception wait for the end of the block."""
    if threading.current_thread() is not threading.main_thread():  # which alone acts on signals
        yield
        return
    waiting: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    usual = {number: old for number in numbers if callable(old := signal.getsignal(number))}
    usual = {number: old for number, old in usual.items() if not isinstance(old, signal.Handlers)}
    try:
        for number in usual:
            signal.signal(number, wait)
        yield
    finally:
        for number, old in usual.items():
            signal.signal(number, old)
    for number in waiting:
        signal.raise_signal(number)

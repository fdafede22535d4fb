"""One writer at a time: a lock beside each file that a job writes, and who holds it. Readers need none.

The lock is one of the operating system, on `.NAME.lock`, so it ends with its process, however that ends. `.NAME.holder`
says who has it. Both go when the file is closed; those of a killed process are taken over.
"""

import errno
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
import weakref
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from landscape.storage import is_alive, remove_leftovers, replacing

log = logging.getLogger(__name__)

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_TAKEN = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_PATIENCE = 1.0  # seconds for another process to say who it is, or to finish letting go
_DEAD_PATIENCE = 5.0  # seconds for a process just forked by one killed to close what it inherited, see `_forget`


class Lock:
    """The right to write a file.

    Another process that holds it is an error, at once unless it is just letting go. An older lock of this process is
    joined, and from `take` on it is no longer in force: a cell of a notebook that is run again goes on from the one
    before.

    Args:
        path: The file, or what stands for a folder of files. Temporary files that killed jobs left beside it and in
            its `.parts` are removed.

    Raises:
        BlockingIOError: Another process is writing the file.

    Example:
        >>> with Lock("surface.h5") as lock:  # doctest: +SKIP
        ...     lock.check()
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        key = (os.getpid(), str(self.path.resolve()))  # a forked process has none of its parent's locks
        with _joining:
            held = _held.get(key)
            if held is None or not held.release.alive:
                held = _held[key] = _Held(self.path)
        self._held = held

    def take(self) -> None:
        """Be the only lock of this process that is in force."""
        self._held.writer = self

    @property
    def in_force(self) -> bool:
        """Whether the file may still be written under this lock."""
        return self._held.writer is self and self._held.release.alive

    def check(self) -> None:
        """Refuse to write under a lock that is not in force any more; one whose file was removed is taken again.

        Raises:
            ValueError: It was released, or the file was opened again in this process.
            BlockingIOError: The lock's file was removed, and another process has one now.
        """
        if not self.in_force:
            raise ValueError(
                f"{self.path} was closed, or opened for writing again in this process since: this one writes no more, "
                "use the newer one"
            )
        self._held.renew()

    def release(self) -> None:
        """Let others write, unless a newer lock of this process is in force."""
        if self._held.writer in (self, None):
            self._held.release()

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _Held:
    """A lock of the operating system; it is let go when `release` is called, or nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self._writer: weakref.ref[Lock] | None = None
        self._path, self._descriptor = path.absolute(), [_acquire(path)]
        self.release = weakref.finalize(self, _release, self._path, self._descriptor, os.getpid())
        try:
            _say_who(path)
            remove_leftovers(path.parent, f".{path.name}.")
            remove_leftovers(path.with_name(f"{path.name}.parts"), ".")
        except BaseException:
            self.release()
            raise

    def renew(self) -> None:
        """Lock the file again if the lock's own was removed, with its folder or alone."""
        if not _is_at(self._descriptor[0], _lock_path(self._path)):
            new = _acquire(self._path)
            _close(self._descriptor[0])
            self._descriptor[0] = new
            _say_who(self._path)

    @property
    def writer(self) -> Lock | None:
        """The lock in force."""
        return None if self._writer is None else self._writer()

    @writer.setter
    def writer(self, lock: Lock) -> None:
        self._writer = weakref.ref(lock)  # weak: a writer that is dropped without a word lets go of the file at once


_held: weakref.WeakValueDictionary[tuple[int, str], _Held] = weakref.WeakValueDictionary()
_descriptors: set[int] = set()
_joining = threading.RLock()  # re-entrant: collecting garbage may release a lock at any moment


def _acquire(path: Path) -> int:
    """Return the descriptor of the locked file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    while (descriptor := _try_to_lock(_lock_path(path))) is None:
        holder = _read_holder(path)
        dead = holder is not None and _is_dead(holder)
        patience = _DEAD_PATIENCE if dead else _PATIENCE if holder is None else 0
        if time.monotonic() - begin < patience:  # it has only just begun, or is just letting go
            time.sleep(0.02)
            continue
        who = "another process" if holder is None else _describe(holder)
        if dead:
            who += ", which has ended, but a process that it started has not let go"
        raise BlockingIOError(
            f"{path} is being written by {who}: wait for it, or stop it; readers may open the file meanwhile"
        )
    _descriptors.add(descriptor)
    if (left := _read_holder(path)) is not None:
        log.warning("%s: taking over from %s, which has ended without closing it", path, _describe(left))
    return descriptor


def _try_to_lock(file: Path) -> int | None:
    """Lock a file and return its descriptor; None if another process has it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in _NO_LOCKS:  # some network file systems; to refuse all work there would help nobody
                log.warning("%s: this file system has no locks, nothing keeps a second job from writing", file)
                return descriptor
            os.close(descriptor)
            if error.errno in _TAKEN:
                return None
            raise
        if _is_at(descriptor, file):
            return descriptor
        os.close(descriptor)  # the one who had it has removed the file between our opening and our locking it


def _release(path: Path, descriptors: list[int], process: int) -> None:
    if os.getpid() != process:  # a forked process inherits the object, not the lock
        return
    (descriptor,) = descriptors
    if not _is_at(descriptor, _lock_path(path)):  # removed meanwhile; if there is one, it is another's
        _close(descriptor)
        return
    _holder_path(path).unlink(missing_ok=True)
    if sys.platform == "win32":
        _close(descriptor)
        with suppress(PermissionError):  # somebody has it open already
            _lock_path(path).unlink(missing_ok=True)
    else:  # removed first, so that nobody's new one is
        _lock_path(path).unlink(missing_ok=True)
        _close(descriptor)


def _is_at(descriptor: int, file: Path) -> bool:
    """Tell whether a path still is the file that a descriptor belongs to."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


def _forget() -> None:
    """Keep a forked process from holding the locks of its parent when that has been killed."""
    global _joining
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _joining = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _say_who(path: Path) -> None:
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join(sys.argv),
    }
    with replacing(_holder_path(path)) as temporary:
        temporary.write_text(json.dumps(holder), encoding="utf-8")


def _read_holder(path: Path) -> dict | None:
    try:
        holder = json.loads(_holder_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there (yet), or damaged: then nobody knows
        return None
    return holder if isinstance(holder, dict) else None


def _is_dead(holder: dict) -> bool:
    """Tell whether a holder is a process of this host that has ended; of another host nothing is known."""
    process = holder.get("process")
    return holder.get("host") == socket.gethostname() and isinstance(process, int) and not is_alive(process)


def _describe(holder: dict) -> str:
    process, host, since, command = (holder.get(key, "?") for key in ("process", "host", "since", "command"))
    return f"process {process} on {host} since {since} ({command})"


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _holder_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.holder")

"""Stop a long job by Ctrl-C, SIGTERM or a closed terminal: soon, and with its state saved."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from landscape import storage

log = logging.getLogger(__name__)

PATIENCE = 1.4  # seconds from the signal on; worker processes then notice within half a second that this one is gone
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_END = 0  # no signal has this number
_HAS_MASKS = hasattr(signal, "pthread_sigmask")  # Windows has none
_changed: list[dict[int, Any]] = []  # the handlers that were there before, of each block that has others now


class Stopped(KeyboardInterrupt):
    """A signal asked to stop.

    Attributes:
        number: Which one.
    """

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text or signal.Signals(number).name)
        self.number = number


@contextmanager
def stoppable(say: Callable[[int], None]) -> Iterator[list[int]]:
    """Let Ctrl-C, SIGTERM and SIGHUP raise `Stopped`, and end the process where that does not do.

    Python acts on a signal only between two of its own instructions, so a long call of compiled code, or a thread that
    is waited for, would delay the end. Where the block has not been left after `PATIENCE` seconds, and no file is being
    written, the process ends at once: what is stored stands that at any moment, and only the last seconds are lost.
    Compiled code that does not release Python's global lock delays that, too; torch, NumPy and SciPy release it.

    Args:
        say: Called with the number of the signal just before the process ends at once, in another thread.

    Yields:
        The signals received so far, by number.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield received
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    usual = {number: signal.getsignal(number) for number in numbers}
    usual = {number: old for number, old in usual.items() if old not in (None, signal.SIG_IGN)}  # nohup ignores SIGHUP
    left, stop, process = threading.Event(), _Stop(received), os.getpid()

    def watch() -> None:
        while (number := reading.recv(1)[0]) not in (*usual, _END):
            pass
        if number == _END:
            return
        if left.wait(PATIENCE):
            return
        while storage.is_writing():
            time.sleep(0.02)
        say(number)
        os._exit(128 + number)

    hook = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            hook(unraisable)

    watcher = threading.Thread(target=watch, name="landscape-stop", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    _changed.append(usual)
    try:
        try:
            sys.unraisablehook = tell  # raised where Python drops it, as in a weakref's callback: then `watch` ends it
            for number in usual:
                signal.signal(number, stop)
            stop.raises = True
            if received:  # meanwhile
                raise Stopped(received[0])
            yield received
        finally:
            stop.raises = False  # in what follows, which must be done to its end
    finally:
        stop.raises = False  # again: a signal may have come just before
        if os.getpid() == process:  # a forked process has let go of all this
            signal.set_wakeup_fd(before)
            sys.unraisablehook = hook
            left.set()
            writing.send(bytes([_END]))
            watcher.join()
            reading.close()
            writing.close()
            _restore(usual)  # last: the usual ones may raise


def _restore(usual: dict[int, Any]) -> None:
    """Handle signals as before a block."""
    if usual in _changed:
        _changed.remove(usual)
    for number, handler in usual.items():
        signal.signal(number, handler)


def _before_fork() -> None:
    """Let signals wait, so that none finds a forked process that still has the handlers of its parent."""
    if _changed:
        _forking.before = signal.pthread_sigmask(signal.SIG_BLOCK, {number for usual in _changed for number in usual})


def _after_fork() -> None:
    before = _forking.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_go() -> None:
    """Let a forked process be ended by signals as usual, and its parent not hear of them."""
    if _changed:
        signal.set_wakeup_fd(-1)
    while _changed:
        _restore(_changed[-1])
    _after_fork()


_forking = threading.local()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_let_go)


class _Stop:
    """A handler of signals, which notes them, and raises `Stopped` at the first one if `raises`.

    A second one would cut short what is done on the way out, such as letting go of locks: pools of processes send two.
    """

    def __init__(self, received: list[int]) -> None:
        self._received = received
        self.raises = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if self.raises:
            self.raises = False
            raise Stopped(number)


@contextmanager
def interrupt_between_steps() -> Iterator[list[int]]:
    """Let Ctrl-C wait until a step is done, so that a whole state can be saved; a second one does not wait.

    Within `stoppable`, which ends the process where this takes too long, the other signals wait, too, and so does a
    second one of them.

    Yields:
        A list that is empty until then; outside of the main thread, or where Ctrl-C is handled otherwise, for ever.

    Raises:
        Stopped: A signal came, and the block ended without an error all the same.
    """
    interrupted: list[int] = []
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    usual = {number: signal.getsignal(number) for number in numbers}
    usual = {
        number: old for number, old in usual.items() if old is signal.default_int_handler or isinstance(old, _Stop)
    }
    if threading.current_thread() is not threading.main_thread() or not usual:
        yield interrupted
        return

    def wait(number: int, frame: FrameType | None) -> None:
        interrupted.append(number)
        if isinstance(handler := usual[number], _Stop):
            handler.raises = False  # what follows the step is done to its end
        else:
            _restore(usual)
            log.warning("interrupted: stopping after this step (again: at once, and the last seconds are lost)")

    _changed.append(usual)
    for number in usual:
        signal.signal(number, wait)
    try:
        yield interrupted
    finally:
        _restore(usual)
    if interrupted:
        raise Stopped(interrupted[0])


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Let processes that are started here not see Ctrl-C, which a terminal sends to all; here it waits a moment.

    Each is to call `ignore_ctrl_c` when it has begun.
    """
    if not _HAS_MASKS:
        yield
        return
    resource_tracker.ensure_running()  # it begins with the first process, and as it does, Python (3.11 to 3.13) unmasks
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_ctrl_c() -> None:
    """Leave Ctrl-C to the process that started this one, and that ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _HAS_MASKS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # for processes that this one starts

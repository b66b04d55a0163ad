"""Signals that stop a job: the first one requests a stop, a second Ctrl-C stops at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TypeVar

T = TypeVar("T")
# Signals this soon after the one that stopped the job belong to it: people press Ctrl-C several times. In
# this time the run is marked as KILLED; another interruption could leave it RUNNING and its store locked.
SECONDS_TO_CLEAN_UP = 3
# Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal stopped the job; a training has written its checkpoint.

    Not an `Exception`, because a library in between might catch that and continue.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Interrupted on SIGTERM within the block, so that files are closed and temporary ones removed.

    Within it, an interruption that Python drops because a destructor or the callback of a weak reference
    happened to run is sent again.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous, hook = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = partial(_send_again, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, previous)


def _send_again(hook: Callable[[Any], Any], dropped: Any) -> None:
    """Send the signal of a dropped interruption again; pass other dropped exceptions to `hook`."""
    if not isinstance(dropped.exc_value, KeyboardInterrupt):
        hook(dropped)
        return
    signum = getattr(dropped.exc_value, "signum", signal.SIGINT)
    # Later, since a `StopRequest` ignores signals soon after the one for which it raised the exception.
    timer = threading.Timer(SECONDS_TO_CLEAN_UP + 0.5, os.kill, (os.getpid(), signum))
    timer.daemon = True
    timer.start()


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGHUP only set `signum`; the loop checks it between two steps.

    A SIGINT after that raises KeyboardInterrupt at once. Other signals after the first are ignored: on Ctrl-C
    `mlflow run` sends SIGTERM to a process that has already received the terminal's SIGINT. Signals within
    `SECONDS_TO_CLEAN_UP` after an exception are ignored, too.

    A nested request takes over a signal that the outer loop has not handled yet, and passes a signal that the
    inner loop has not handled on to the outer request. Outside the main thread, where Python handles no
    signals, a request receives none.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_once = False
        self._raised_at: float | None = None
        self._previous: dict[int, Any] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        # Signals that the parent process ignores stay ignored; nohup and background jobs rely on it. None
        # stands for a handler in C, which could not be restored.
        handled = [signum for signum in SIGNALS if signal.getsignal(signum) not in (signal.SIG_IGN, None)]
        self._previous = {signum: signal.signal(signum, self._handle) for signum in handled}
        owners = [getattr(handler, "__self__", None) for handler in self._previous.values()]
        self._outer = next((owner for owner in owners if isinstance(owner, StopRequest)), None)
        if self._outer and self.signum is None:
            self.signum = self._outer.signum
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self.signum is None or isinstance(error, KeyboardInterrupt):
            return
        if self._outer and self._outer.signum is None:
            self._outer.receive(self.signum)

    def receive(self, signum: int) -> None:
        """Request a stop, or raise an exception, as on this signal."""
        now = time.monotonic()
        if self._raised_at is not None and now - self._raised_at < SECONDS_TO_CLEAN_UP:
            return
        is_first = self.signum is None
        if is_first:
            self.signum = signum
        if self._at_once:  # not only on the first signal: Python drops an exception that a destructor raises
            self.raise_if_asked()
        if signum == signal.SIGINT and not is_first:
            self._raised_at = now
            raise KeyboardInterrupt

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.receive(signum)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Interrupted at once on a signal within the block, for work that may stop anywhere."""
        self._at_once = True
        try:
            self.raise_if_asked()
            yield
        finally:
            self._at_once = False
        self.raise_if_asked()  # the exception was dropped

    def raise_if_asked(self) -> None:
        if self.signum is not None:
            self.interrupt(self.signum)

    def interrupt(self, signum: int) -> NoReturn:
        """Raise Interrupted, as on a signal that this process or another one of the job has received."""
        self._raised_at = time.monotonic()
        raise Interrupted(signum)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Interrupted on a signal within the block, even if it arrives while a job in the block ends.

    The job is then complete, but what follows must not begin.
    """
    with StopRequest() as stop, stop.at_once():
        yield


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Put our signal handlers back after the block, in which a library sets its own."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere, no library can set any
            for signum, handler in handlers.items():
                if handler is not None:  # in C: it could not be put back
                    signal.signal(signum, handler)


def run_program(load: Callable[[], Callable[[], T]]) -> T:
    """Import a program with `load` and run it; before and after that, Ctrl-C ends the process silently.

    Importing libraries takes seconds, and they clean up when the interpreter ends: a KeyboardInterrupt would
    print a traceback.
    """
    # A job in the background of a shell script ignores SIGINT from its start, and continues to do so.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return load()()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        program = load()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return program()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

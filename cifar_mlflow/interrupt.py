"""Signals that stop a job: the first one requests a stop, a second Ctrl-C stops at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

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
    """Raise Interrupted on SIGTERM within the block, so that files are closed and temporary ones removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGHUP only set `signum`; the loop checks it between two steps.

    A second SIGINT raises KeyboardInterrupt at once. Other signals after the first are ignored: on Ctrl-C
    `mlflow run` sends SIGTERM to a process that has already received the terminal's SIGINT. Signals within
    `SECONDS_TO_CLEAN_UP` after an exception are ignored, too.

    A nested request takes over a signal that the outer loop has not handled yet, and passes a signal that the
    inner loop has not handled on to the outer request.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_once = False
        self._raised_at: float | None = None
        self._outer: StopRequest | None = None

    def __enter__(self) -> Self:
        # Signals that the parent process ignores stay ignored; nohup and background jobs rely on it.
        handled = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
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
        """Request a stop, or raise KeyboardInterrupt, as on this signal."""
        now = time.monotonic()
        if self._raised_at is not None and now - self._raised_at < SECONDS_TO_CLEAN_UP:
            return
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            self._raised_at = now
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum
            if self._at_once:
                self._raised_at = now
                raise Interrupted(signum)

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
        self.raise_if_asked()  # Python drops an exception that is raised in a destructor

    def raise_if_asked(self) -> None:
        if self.signum is not None:
            self._raised_at = time.monotonic()
            raise Interrupted(self.signum)

"""Signals that stop a job: the first one requests a stop, a second Ctrl-C stops at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

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
    `mlflow run` sends SIGTERM to a process that has already received the terminal's SIGINT.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_once = False

    def __enter__(self) -> Self:
        # Signals that the parent process ignores stay ignored; nohup and background jobs rely on it.
        handled = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
        self._previous = {signum: signal.signal(signum, self._handle) for signum in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self.signum is None or isinstance(error, KeyboardInterrupt):
            return
        # A signal that arrived too late for this job stops the job around it.
        outer = self._previous.get(self.signum)
        if callable(outer) and isinstance(getattr(outer, "__self__", None), StopRequest):
            outer(self.signum, None)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum
            if self._at_once:
                raise Interrupted(signum)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Interrupted at once on a signal within the block, for work that may stop anywhere."""
        self._at_once = True
        try:
            self.raise_if_asked()
            yield
        finally:
            self._at_once = False

    def raise_if_asked(self) -> None:
        if self.signum is not None:
            raise Interrupted(self.signum)

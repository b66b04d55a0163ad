"""Stopping a training from outside: the first signal asks, a second Ctrl-C insists."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

# Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """The work was stopped by a signal; of a training, the checkpoint is written.

    No `Exception`: a library on the way must not take it for an error of its own and go on.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM raises Interrupted: what is open is closed, temporary files are removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGHUP only set `signum`; the loop asks for it between two steps.

    A second SIGINT raises KeyboardInterrupt at once. A second signal of another kind does not: `mlflow run`
    passes a Ctrl-C on as SIGTERM to a process that the terminal has interrupted already.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_once = False

    def __enter__(self) -> Self:
        # What the parent chose to ignore stays ignored: nohup and background jobs rely on it.
        heeded = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
        self._former = {signum: signal.signal(signum, self._handle) for signum in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)
        if self.signum is None or isinstance(error, KeyboardInterrupt):
            return
        # What came too late for this work is meant for the work around it.
        outer = self._former.get(self.signum)
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
        """For work that may be left anywhere: within the block a signal raises Interrupted right there."""
        self._at_once = True
        try:
            self.raise_if_asked()
            yield
        finally:
            self._at_once = False

    def raise_if_asked(self) -> None:
        if self.signum is not None:
            raise Interrupted(self.signum)

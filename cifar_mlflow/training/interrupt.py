"""Stopping a training from outside: the first signal asks, a second Ctrl-C insists."""

import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - an interruption is no error
    """The training was stopped by a signal, and its checkpoint is written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGHUP only set `signum`; the loop asks for it between two steps.

    A second SIGINT raises KeyboardInterrupt at once. A second signal of another kind does not: `mlflow run`
    passes a Ctrl-C on as SIGTERM to a process that the terminal has interrupted already.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

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

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum

    def raise_if_asked(self) -> None:
        if self.signum is not None:
            raise Interrupted(self.signum)

"""Worker threads whose hangs the process can detect, and which do not keep it from exiting."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Call(NamedTuple):
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class WorkerThreads:
    """A fixed number of threads that call functions in the order of submission.

    The threads are daemons: Python waits at its exit for those of a `ThreadPoolExecutor`, even if one hangs.

    Args:
        count: number of threads.
        name: of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        # For each thread, when it began its current call; None while it is idle.
        self._started: list[float | None] = [None] * count
        for number in range(count):
            threading.Thread(target=self._work, args=(number,), name=name, daemon=True).start()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Return a future for what the function returns.

        A call whose future is cancelled before it starts is dropped.
        """
        future: Future[T] = Future()
        self._calls.put(_Call(future, function, arguments))
        return future

    def stuck_seconds(self) -> float:
        """Return for how long all threads have been in their current calls; 0 if one is idle."""
        started = [each for each in self._started if each is not None]
        return time.monotonic() - max(started) if len(started) == len(self._started) else 0.0

    def close(self) -> None:
        """Drop the calls that have not started, and return; each thread ends after its current call."""
        while not self._calls.empty():
            call = self._calls.get()
            if call is not None:
                call.future.cancel()
        for _ in self._started:
            self._calls.put(None)

    def _work(self, number: int) -> None:
        while self._call_next(number):
            pass  # with no reference to the last call: its arguments may be large

    def _call_next(self, number: int) -> bool:
        call = self._calls.get()
        if call is None:
            return False
        if call.future.set_running_or_notify_cancel():
            self._started[number] = time.monotonic()
            try:
                call.future.set_result(call.function(*call.arguments))
            except BaseException as error:
                call.future.set_exception(error)
            self._started[number] = None
        return True

"""The parent of several workers: it replaces those that die or hang, says so, and ends with all of them.

Uvicorn's own waits for the answer of each worker in turn, and meanwhile neither sees that another has died
nor hears a signal.
"""

import signal
import time
from typing import Any

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from serving.monitoring.logging import log

# A worker that is silent for so long is replaced; less is said of one on a busy machine.
SILENT_SECONDS = 60.0
# For what uvicorn does after the time that requests have to end: the app closes its logs.
CLOSE_SECONDS = 3.0


class _Worker(Process):
    """A process that answers, in its own time, when it is asked whether it lives."""

    def start(self) -> None:
        super().start()
        self.child_conn.close()  # else the end of the process would not be the end of the connection
        self._asked: float | None = None

    def lives(self) -> bool:
        """Whether it has answered within SILENT_SECONDS; does not wait."""
        if not self.process.is_alive():
            return False
        try:
            if self.parent_conn.poll():
                self.parent_conn.recv()
                self._asked = None
            if self._asked is None:
                self.parent_conn.send(b"ping")
                self._asked = time.monotonic()
        except (OSError, EOFError):
            return False
        return time.monotonic() - self._asked < SILENT_SECONDS


class Supervisor(Multiprocess):
    """Runs `config.workers` processes on common sockets until SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, *arguments: Any) -> None:
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        super().__init__(*arguments)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._end)
        if is_ignored:  # by nohup
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def init_processes(self) -> None:
        self.processes = [self._begin() for _ in range(self.processes_num)]

    def keep_subprocess_alive(self) -> None:
        for place, worker in enumerate(self.processes):
            assert isinstance(worker, _Worker)
            if self.should_exit.is_set() or self.signal_queue:
                return
            if worker.lives():
                continue
            worker.kill()
            worker.join()
            if worker.exitcode == STARTUP_FAILURE:  # it would fail the same way each time
                log.error("worker does not start", worker=worker.pid)
                self.should_exit.set()
                return
            self.processes[place] = self._begin()
            log.warning(
                "worker replaced",
                worker=worker.pid,
                ended_by=_how(worker.exitcode),
                by=self.processes[place].pid,
            )

    def join_all(self) -> None:
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0) + CLOSE_SECONDS
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                log.error("worker killed, it did not end", worker=worker.pid)
                worker.process.kill()
                worker.process.join()

    # A terminal that is closed; and uvicorn's change of the number of workers, whom we would not know.
    handle_hup = Multiprocess.handle_term
    handle_ttin = handle_ttou = lambda self: None

    def _end(self, signum: int, _frame: Any) -> None:
        for listener in self.sockets:  # else it would take clients whom no worker answers any more
            listener.close()
        self.signal_queue.append(signum)

    def _begin(self) -> _Worker:
        worker = _Worker(self.config, self.sockets)
        worker.start()
        return worker


def _how(exitcode: int | None) -> str:
    """SIGKILL also stands for a worker that hung."""
    return signal.Signals(-exitcode).name if exitcode and exitcode < 0 else f"exit code {exitcode}"

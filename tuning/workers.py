"""The workers of one machine: started, listened to, stopped, and started again when they are killed."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from cifar_mlflow.errors import CifarError
from cifar_mlflow.interrupt import StopRequest
from tuning.worker import Orders

logger = logging.getLogger("cifar_mlflow.tuning")

# A trial that kills its worker is given up after three times; more in a row has another reason.
DEATHS = 5
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_DIE = 10


class WorkerProcess:
    """One worker. What it prints becomes log lines; standard input stays open for as long as we live."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.error = ""
        # `mlflow run` names its run here, and each training in the worker would take it for its own.
        env = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tuning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            start_new_session=True,  # Ctrl-C reaches us only, and we pass it on
        )
        assert self._process.stdin
        self._process.stdin.write(orders.to_json() + "\n")
        self._process.stdin.flush()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if self.error or line.startswith("Error: "):
                self.error += line.removeprefix("Error: ")
            else:
                logger.info("%s", line.rstrip())

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def send(self, signum: int) -> None:
        if self.returncode is None:
            self._process.send_signal(signum)

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended and all that it printed is read; after `seconds` it is killed."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(timeout=SECONDS_TO_DIE)


def work_together(
    orders: list[Orders], stop: StopRequest, finished: Callable[[], int], look: Callable[[], None]
) -> None:
    """Run one worker for each of the orders until none finds anything to do, or a stop is asked for.

    Args:
        finished: the number of trials that are finished, to tell progress from a worker that only dies.
        look: called a few times a second.

    Raises:
        CifarError: a worker met an error outside of its trial; the others have ended their work.
        KeyboardInterrupt: a second Ctrl-C; the workers are stopped at once.
    """
    workers = [WorkerProcess(each) for each in orders]
    deaths, progress, passed_on = 0, -1, False
    try:
        while any(worker.returncode is None for worker in workers):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if stop.signum and not passed_on:
                passed_on = True
                logger.info("Stopping: each trial is saved; Ctrl-C again stops at once")
                for worker in workers:
                    worker.send(stop.signum)
            for i, worker in enumerate(workers):
                code = worker.returncode
                if code is None or code >= 0 or stop.signum:
                    continue
                now = finished()
                deaths, progress = (deaths + 1, progress) if now == progress else (1, now)
                if deaths > DEATHS:
                    raise CifarError(f"worker {i} was killed {DEATHS} times in a row; out of memory?")
                logger.warning("Worker %d was killed (%s); starting it again", i, signal.Signals(-code).name)
                workers[i] = WorkerProcess(worker.orders)
            look()
    except KeyboardInterrupt:
        for worker in workers:
            worker.send(signal.SIGINT)
        raise
    except CifarError:
        for worker in workers:
            worker.send(signal.SIGTERM)
        raise
    finally:
        for worker in workers:
            worker.wait(SECONDS_TO_DIE)
    for worker in workers:
        if worker.error:
            raise CifarError(worker.error.strip())
        if worker.returncode and not stop.signum:
            raise CifarError(f"a worker ended with exit code {worker.returncode}; its last lines say why")

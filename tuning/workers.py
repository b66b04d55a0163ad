"""The parent's side of the worker processes: start, read, stop them, and restart those that are killed.

Such a process runs `tuning.worker`.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping

import torch

from cifar_mlflow.errors import CifarError
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.redact import redact
from tuning.study_spec import WorkerSpec

logger = logging.getLogger("cifar_mlflow.tuning")

# A trial that kills its worker is given up after three attempts; more kills without progress have another
# cause.
MAX_KILLS = 5
POLL_SECONDS = 0.2
KILL_AFTER_SECONDS = 10


class WorkerProcess:
    """A worker process. Its output becomes log lines; its standard input stays open until the parent ends."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.error = ""
        # `mlflow run` names its run in this variable; each training would take it for its own.
        env = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        env |= own_gpu(spec.index, torch.cuda.device_count(), env)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tuning.worker_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            start_new_session=True,  # Ctrl-C reaches only the parent, which passes it on
        )
        assert self._process.stdin
        self._process.stdin.write(spec.to_json() + "\n")
        self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def _read_output(self) -> None:
        assert self._process.stdout
        for line in map(redact, self._process.stdout):  # tracebacks quote addresses
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
        """Wait until the process has ended and its output was read; kill it after `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=KILL_AFTER_SECONDS)


def own_gpu(index: int, count: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that shows a worker one of several GPUs; the workers take them in turn.

    Args:
        index: number of the worker.
        count: number of GPUs that this process sees in its environment.
    """
    if count < 2:
        return {}
    names = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": names.split(",")[index % count]}


def run_workers(
    specs: list[WorkerSpec], stop: StopRequest, finished: Callable[[], int], on_poll: Callable[[], None]
) -> None:
    """Run one worker per spec until none finds anything to do, or a stop is requested.

    Args:
        finished: returns the number of finished trials; too many kills without progress end the search.
        on_poll: called a few times per second.

    Raises:
        CifarError: a worker met an error outside of its trial; the others have finished their work.
        KeyboardInterrupt: a second Ctrl-C; the workers are stopped at once.
    """
    workers = [WorkerProcess(spec) for spec in specs]
    kills, progress, was_stopped = 0, -1, False
    try:
        while any(worker.returncode is None for worker in workers):
            time.sleep(POLL_SECONDS)
            if stop.signum and not was_stopped:
                was_stopped = True
                logger.info("Stopping after each trial is saved; press Ctrl-C again to stop at once")
                for worker in workers:
                    worker.send(stop.signum)
            for i, worker in enumerate(workers):
                code = worker.returncode
                if code is None or code >= 0 or stop.signum:
                    continue
                now = finished()
                kills, progress = (kills + 1, progress) if now == progress else (1, now)
                if kills > MAX_KILLS:
                    raise CifarError(f"worker {i} was killed {MAX_KILLS} times in a row; out of memory?")
                logger.warning("Worker %d was killed (%s); restarting it", i, signal.Signals(-code).name)
                workers[i] = WorkerProcess(worker.spec)
            on_poll()
    except KeyboardInterrupt:
        for worker in workers:
            worker.send(signal.SIGINT)
        raise
    except Exception:
        for worker in workers:
            worker.send(signal.SIGTERM)
        raise
    finally:
        for worker in workers:
            worker.wait(KILL_AFTER_SECONDS)
    for worker in workers:
        if worker.error:
            raise CifarError(worker.error.strip())
        if worker.returncode and not stop.signum:
            raise CifarError(f"a worker ended with exit code {worker.returncode}; see its last lines above")

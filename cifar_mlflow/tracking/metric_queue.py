"""Metrics on their way to the tracking server: sent from a thread, kept during an outage."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from mlflow.entities import Metric

from cifar_mlflow.errors import CifarError
from cifar_mlflow.tracking.retry import LONGEST_PAUSE_SECONDS, first_line, is_outage

logger = logging.getLogger(__name__)


class MetricQueue:
    """Sends metrics in order. An outage of the server delays them and stops nothing else.

    Args:
        send: delivers a list of metrics, or raises.
    """

    def __init__(self, send: Callable[[list[Metric]], None]) -> None:
        self._send = send
        self._waiting: queue.Queue[list[Metric]] = queue.Queue()
        self._unsent: list[Metric] = []
        self._failure: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metric-queue", daemon=True)
        self._thread.start()

    def put(self, metrics: list[Metric]) -> None:
        """Take metrics for sending; returns at once.

        Raises:
            CifarError: earlier metrics were refused for good.
        """
        self._raise_if_refused()
        self._waiting.put(metrics)

    def close(self, patience: float) -> list[Metric]:
        """Send what is left, for `patience` seconds at the most, and return what could not be sent.

        Raises:
            CifarError: metrics were refused for good.
        """
        self._closing.set()  # first: a thread that was woken by the empty list and saw no end would sleep on
        self._waiting.put([])
        self._thread.join(timeout=patience)
        self._raise_if_refused()
        return self._unsent + [metric for batch in self._waiting.queue for metric in batch]

    def _raise_if_refused(self) -> None:
        if self._failure:
            raise CifarError(
                f"MLflow refused the metrics of this run: {first_line(self._failure)}"
            ) from self._failure

    def _work(self) -> None:
        while not (self._failure or (self._closing.is_set() and self._waiting.empty())):
            self._unsent += self._waiting.get()
            while not self._waiting.empty():
                self._unsent += self._waiting.get()
            self._deliver()

    def _deliver(self) -> None:
        away_since: float | None = None
        pause = 0.5
        while self._unsent and not self._failure:
            try:
                self._send(self._unsent)
            except Exception as error:
                if not is_outage(error):
                    self._failure = error
                    return
                if away_since is None:
                    away_since = time.monotonic()
                    logger.warning(
                        "MLflow does not answer (%s); the training goes on and its metrics are kept.",
                        first_line(error),
                    )
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                while not self._waiting.empty():
                    self._unsent += self._waiting.get()
            else:
                if away_since is not None:
                    logger.info(
                        "MLflow is back after %.0f s; %d metrics were sent.",
                        time.monotonic() - away_since, len(self._unsent),
                    )  # fmt: skip
                self._unsent = []

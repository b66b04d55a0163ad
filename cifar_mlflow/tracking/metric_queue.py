"""A queue of metrics that a thread sends to MLflow; an outage delays them but does not stop the training."""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable

from mlflow.entities import Metric

from cifar_mlflow.errors import CifarError, first_line
from cifar_mlflow.tracking.retry import is_outage, outage_cause, outage_policy

logger = logging.getLogger(__name__)


class MetricQueue:
    """Sends metrics in order from a thread of its own.

    Args:
        send: delivers a list of metrics, or raises.
    """

    def __init__(self, send: Callable[[list[Metric]], None]) -> None:
        self._send = send
        self._waiting: queue.Queue[list[Metric]] = queue.Queue()
        self._unsent: list[Metric] = []
        self._failure: Exception | None = None
        self._closing = threading.Event()
        self._away_since: float | None = None
        self._policy = outage_policy(is_outage, math.inf, self._note_outage)
        self._thread = threading.Thread(target=self._run, name="metric-queue", daemon=True)
        self._thread.start()

    def put(self, metrics: list[Metric]) -> None:
        """Queue metrics and return at once.

        Raises:
            CifarError: MLflow refused earlier metrics.
        """
        self._raise_if_refused()
        self._waiting.put(metrics)

    def close(self, patience: float) -> list[Metric]:
        """Wait up to `patience` seconds until all metrics are sent, and return those that were not.

        Raises:
            CifarError: MLflow refused metrics.
        """
        self._closing.set()  # before the put: the thread must see it when the empty list wakes it
        self._waiting.put([])
        self._thread.join(timeout=patience)
        self._raise_if_refused()
        return self._unsent + [metric for batch in self._waiting.queue for metric in batch]

    def _raise_if_refused(self) -> None:
        if self._failure:
            raise CifarError(
                f"MLflow refused the metrics of this run: {first_line(self._failure)}"
            ) from self._failure

    def _run(self) -> None:
        while not (self._closing.is_set() and self._waiting.empty()):
            self._unsent += self._waiting.get()
            try:
                self._policy(self._send_all)
            except Exception as error:
                self._failure = error
                return

    def _send_all(self) -> None:
        """Send what is queued by now in one request."""
        while not self._waiting.empty():
            self._unsent += self._waiting.get()
        if self._unsent:
            self._send(self._unsent)
        if self._away_since is not None:
            seconds = time.monotonic() - self._away_since
            logger.info("MLflow is back after %.0f s; %d metrics were sent.", seconds, len(self._unsent))
            self._away_since = None
        self._unsent = []

    def _note_outage(self, error: BaseException, pause: float) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            logger.warning(
                "MLflow does not answer (%s); the training goes on and its metrics are kept.",
                outage_cause(error),
            )

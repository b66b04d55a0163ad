"""What is noted of each request: a line of the process's log, rows of the request log, metrics, drift."""

import logging
import sys
from typing import Any

import structlog

from serving.champion import Champion, Served
from serving.config import ServeConfig
from serving.http.errors import Refusal
from serving.http.exchange import Exchange
from serving.http.params import Feedback
from serving.monitoring.drift import DriftWindow
from serving.monitoring.metrics import Metrics
from serving.monitoring.request_log import RequestLog

ROUTES = frozenset(
    {
        "/", "/predict", "/invocations", "/feedback", "/model", "/ready", "/metrics", "/ping", "/health",
        "/version", "/docs", "/openapi.json",
    }
)  # fmt: skip
# Probes come every few seconds; they are counted, and only noted if something is wrong.
QUIET = frozenset({"/ping", "/health", "/ready", "/metrics"})

log = structlog.get_logger()


class Observer:
    """The one place where the app tells what happens to those who keep it.

    Raises:
        UsageError: the address of the request log is none that we can use.
        CifarError: the request log cannot be opened.
    """

    def __init__(self, config: ServeConfig, served: Served) -> None:
        self._log: RequestLog | None = None
        if config.request_log != "none":
            self._log = RequestLog(
                config.request_log,
                retention_days=config.retention_days,
                retention_mb=config.retention_mb,
                images_dir=config.images_dir,
            )
        self._keeps_images = config.images_dir is not None
        self._metrics = Metrics(served.scorer.classes)
        self._turned_away = 0
        self.serving(served)

    def serving(self, served: Served) -> None:
        """This is the model from now on."""
        card = served.scorer.card
        self._model = str(served)
        self._metrics.serving(served.name, served.version, card["run_id"], card["precision"])
        self._drift = DriftWindow(card["reference"]) if card.get("reference") else None
        served.scorer.engine.on_batch = self._metrics.batch_size.observe

    def request_ended(self, exchange: Exchange, status: int, seconds: float) -> None:
        """Note a request that has been answered; status 0 where the connection was cut."""
        route = _route(exchange.path)
        self._metrics.request_ended(route, status, seconds)
        for record in exchange.records(status, seconds):
            self._metrics.observe(record)
            if self._drift is not None and record.model_version == self._model:
                self._drift.observe(record)
            if self._log is not None:
                self._log.put(record)
        if self._log is not None and self._keeps_images:
            for picture, data in zip(exchange.pictures, exchange.files, strict=True):
                if data:
                    self._log.put_image(picture["image_sha256"], picture["image_format"], data)
        if route in QUIET and status < 400:
            return
        log.info(
            "request",
            request_id=exchange.request_id,
            route=route,
            status=status,
            ms=round(1000 * seconds, 2),
            client=exchange.client,
            model=exchange.model_version,
            pictures=len(exchange.pictures),
            error=exchange.error_code,
        )

    def turned_away(self, route: str) -> None:
        """Count a request that was answered with 503 before anything was done for it; it has no row."""
        self._metrics.turned_away(route)
        self._turned_away += 1

    def measure(self, inside: int, waiting: int, champion: Champion) -> None:
        """Set what is a state and no event: to be called about once a second."""
        metrics = self._metrics
        if self._turned_away:
            log.warning("overloaded", turned_away=self._turned_away)
            self._turned_away = 0
        metrics.requests_in_flight.set(inside)
        metrics.queue_length.set(waiting)
        metrics.registry_up.set(champion.registry_problem is None)
        metrics.refused(champion.refused)
        metrics.drift(self._drift.psi() if self._drift is not None else {})
        if self._log is not None:
            metrics.request_log_up.set(self._log.failing is None)
            metrics.request_log_dropped(self._log.dropped)

    def metrics(self) -> tuple[bytes, str]:
        """The body of /metrics, and its content type."""
        return self._metrics.text()

    def feedback(self, given: Feedback) -> None:
        """Note what a person said of an answer.

        Raises:
            Refusal: 404, there is no such answer.
        """
        known = self._log is not None and self._log.feedback(
            given.request_id, given.item, correct=given.correct, label=given.label
        )
        if not known:
            raise Refusal(404, "unknown_answer", "There is no such answer in the request log.")

    def problems(self) -> list[str]:
        """Of the request log, in words that anybody may read."""
        failing = self._log is not None and self._log.failing is not None
        return ["the request log cannot be written; the log of the process says why"] if failing else []

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def _route(path: str) -> str:
    """A path as a label: what strangers call must not become one."""
    if path in ROUTES:
        return path
    return "/page" if path.startswith("/page/") else "other"


def set_up_logging() -> None:
    """One line of JSON for each event on standard error, of this package and of others alike."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # a line at once: workers share the stream
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    levels = {"cifar_mlflow": logging.INFO, "uvicorn": logging.WARNING, "serving": logging.INFO}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level)

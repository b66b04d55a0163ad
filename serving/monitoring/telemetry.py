"""What is noted of each request: a line of the process's log, rows of the request log, metrics, drift.

It is noted a moment after the answer, of all that ended within that moment together: done between one request
and the next, the same code takes three times as long, as it finds nothing of it in the caches of the CPU.
"""

import asyncio
import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from select import PIPE_BUF
from typing import NamedTuple, TextIO, cast

import structlog
from structlog.typing import Processor

from serving.app.champion import Champion, ServedModel
from serving.app.errors import Refusal
from serving.app.request_context import RequestContext
from serving.app.schemas import Feedback
from serving.config import ServeConfig
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

NOTE_SECONDS = 0.02
_LINE: list[Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    structlog.processors.JSONRenderer(),
]

log = structlog.get_logger()
# Gives the line back, to be written with others.
_line = structlog.wrap_logger(structlog.ReturnLogger(), processors=_LINE).bind()


class _Stderr:
    """Standard error, for as long as it takes something: that it is full or closed ends no service."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


STDERR = cast(TextIO, _Stderr())


class _Ended(NamedTuple):
    """A request that has been answered; status 0 where the connection was cut."""

    exchange: RequestContext
    status: int
    seconds: float


class Telemetry:
    """The one place where the app tells what happens to those who keep it.

    Raises:
        UsageError: the address of the request log is none that we can use.
        CifarError: the request log cannot be opened.
    """

    def __init__(self, config: ServeConfig, served: ServedModel) -> None:
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
        self._ended: list[_Ended] = []
        self.serving(served)

    def serving(self, served: ServedModel) -> None:
        """This is the model from now on."""
        card = served.scorer.card
        self._model = str(served)
        self._metrics.serving(served.name, served.version, card["run_id"], card["precision"])
        self._drift = DriftWindow(card["reference"]) if card.get("reference") else None
        served.scorer.engine.on_batch = self._metrics.batch_size.observe

    def request_ended(self, exchange: RequestContext, status: int, seconds: float) -> None:
        """Note it soon. To be called on the event loop; status 0 where the connection was cut."""
        if not self._keeps_images:
            exchange.files.clear()
        self._ended.append(_Ended(exchange, status, seconds))
        if len(self._ended) == 1:
            asyncio.get_running_loop().call_later(NOTE_SECONDS, self.note)

    def note(self) -> None:
        """Note what has ended until now. To be called on the event loop, the last time before `close`."""
        ended, self._ended = self._ended, []
        for each in ended:
            try:
                self._count(each)
            except Exception:  # what is wrong with one must not be missing of the others
                log.exception("not noted", request_id=each.exchange.request_id)
        _write(line for each in ended if (line := _line_of(each)))

    def _count(self, ended: _Ended) -> None:
        exchange, status, seconds = ended
        self._metrics.request_ended(_route(exchange.path), status, seconds)
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
        self.note()
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


def _line_of(ended: _Ended) -> str | None:
    exchange, status, seconds = ended
    route = _route(exchange.path)
    if route in QUIET and status < 400:
        return None
    line: str = _line.info(
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
    return line + "\n"


def _write(lines: Iterable[str]) -> None:
    """In as few pieces as a pipe keeps whole: workers share the stream."""
    piece = ""
    for line in lines:
        if len(piece) + len(line) > PIPE_BUF:
            STDERR.write(piece)
            piece = ""
        piece += line
    STDERR.write(piece)


def set_up_logging() -> None:
    """One line of JSON for each event on standard error, of this package and of others alike."""
    shared = _LINE[:2]
    structlog.configure(
        processors=_LINE,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(STDERR),  # a line at once: workers share the stream
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(STDERR)
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
    levels = {
        "cifar_mlflow": logging.INFO,
        "serving": logging.INFO,
        "uvicorn": logging.WARNING,
        "mlflow": logging.WARNING,
    }
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level)

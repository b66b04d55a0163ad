"""What is noted of each request: a line of the process's log, rows of the request log, metrics, drift."""

import logging
import sys
from typing import Any

import structlog

from serving.http.exchange import Exchange
from serving.http.params import Feedback

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
    """The one place where the app tells what happens to those who keep it."""

    def request_ended(self, exchange: Exchange, status: int, seconds: float) -> None:
        """Note a request that has been answered; status 0 where the connection was cut."""
        route = _route(exchange.path)
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

    def requests_inside(self, count: int) -> None: ...

    def feedback(self, given: Feedback) -> None: ...

    def metrics(self) -> tuple[bytes, str]:
        return b"", "text/plain"

    def close(self) -> None: ...


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
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
    for name, level in (("cifar_mlflow", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level)

"""Telemetry: fan finished requests out to the access log, request log, Prometheus and drift window.

Requests are processed some milliseconds after their answers, several at a time: after each single request,
the same code would take three times as long, because the caches of the CPU hold other data.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from cifar_mlflow.errors import UsageError
from serving.app.admission import PROBES
from serving.app.champion import Champion, ServedModel
from serving.app.errors import Refusal
from serving.app.request_context import INFER_ROUTE, MODEL_ROUTE, RequestContext
from serving.app.schemas import Feedback
from serving.config import ServeConfig
from serving.monitoring.drift import DriftWindow
from serving.monitoring.images import ImageFolder
from serving.monitoring.logging import EXIT_SECONDS, log, stderr_lines, write_events
from serving.monitoring.metrics import Metrics
from serving.monitoring.request_log import RequestLog

ROUTES = PROBES | {
    "/", "/predict", "/invocations", "/feedback", "/model", "/metrics", "/version", "/docs", "/openapi.json",
    "/v2", MODEL_ROUTE, INFER_ROUTE,
}  # fmt: skip
PAGE_ROUTE = "/page"  # the label of the files of the page, dozens per visit
# The label of frames of a live view: a thousand per minute would hide the errors of other requests.
LIVE_ROUTE = "live view"
# These requests come often; they are counted, but get a line in the access log only if they fail.
QUIET_ROUTES = PROBES | {"/metrics", PAGE_ROUTE, LIVE_ROUTE}
LIVE_SECONDS = 1.0  # between two frames that a process keeps in the request log
FLUSH_SECONDS = 0.1
# A row of the request log with its indexes takes about 300 bytes in SQLite, and 430 in PostgreSQL.
ROWS_PER_MB = 2000


class _Finished(NamedTuple):
    """An answered request; status 0 if the connection was closed before the answer."""

    context: RequestContext
    status: int
    seconds: float


class Telemetry:
    """Fans finished requests out to the access log, request log, Prometheus and drift window.

    Raises:
        UsageError: the address of the request log is not valid.
        CifarError: the request log or the folder for images cannot be opened.
    """

    def __init__(self, config: ServeConfig, served: ServedModel) -> None:
        self._images: ImageFolder | None = None
        self._log: RequestLog | None = None
        days, mb = config.retention_days, config.retention_mb
        self._turned_away = 0
        self._next_frame = 0.0
        self._finished: list[_Finished] = []
        self._metrics = Metrics(served.scorer.classes)
        with ExitStack() as opened:  # close what is open if the rest cannot be opened
            if config.images_dir is not None:
                self._images = ImageFolder(config.images_dir, days=days, mb=mb)
                opened.callback(self._images.close)
            if config.request_log != "none":
                rows = config.retention_rows or max(1, int(mb * ROWS_PER_MB))
                self._log = RequestLog(config.request_log, retention_days=days, retention_rows=rows)
                opened.callback(self._log.close)
            self.serving(served)
            opened.pop_all()

    def serving(self, served: ServedModel) -> None:
        """Attribute answers to this model from now on."""
        card = served.scorer.card
        self._model = str(served)
        self._metrics.serving(served.name, served.version, card["run_id"], card["precision"])
        self._drift = DriftWindow(card["reference"]) if card.get("reference") else None
        served.scorer.engine.on_batch = self._metrics.batch_size.observe

    def request_ended(self, context: RequestContext, status: int, seconds: float) -> None:
        """Queue a finished request; call this on the event loop.

        Args:
            status: HTTP status, 0 if the connection was closed before the answer.
            seconds: from the first byte of the request to the answer.
        """
        if self._images is None:
            context.files.clear()
        self._finished.append(_Finished(context, status, seconds))
        if len(self._finished) == 1:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Process the queued requests; call this on the event loop, and a last time before `close`."""
        finished, self._finished = self._finished, []
        for request in finished:
            try:
                self._record(request)
            except Exception:  # one request must not cost the records of the others
                log.exception("request not recorded", request_id=request.context.request_id)
        write_events(_access_events(finished))

    def _record(self, finished: _Finished) -> None:
        context, status, seconds = finished
        self._metrics.request_ended(_route(context), status, seconds)
        kept = self._is_kept(context)
        for record in context.records(status, seconds):
            self._metrics.observe(record)
            if self._drift is not None and record.model_version == self._model and not record.live:
                self._drift.observe(record)
            if self._log is not None and kept:
                self._log.put(record)
        if self._images is not None and kept:
            for picture, data in zip(context.pictures, context.files, strict=True):
                if data:
                    self._images.put(picture["image_sha256"], picture["image_format"], data)

    def _is_kept(self, context: RequestContext) -> bool:
        """Return whether the request log and the image folder keep a request: of live frames, a sample."""
        if not context.live:
            return True
        if context.started < self._next_frame:
            return False
        self._next_frame = context.started + LIVE_SECONDS
        return True

    def turned_away(self, context: RequestContext) -> None:
        """Count a request that was answered with 503 before any work; it has no row in the request log."""
        self._metrics.turned_away(_route(context))
        self._turned_away += 1

    def measure(self, in_flight: int, waiting: int, champion: Champion) -> None:
        """Update the gauges; call this about once per second.

        Args:
            in_flight: requests being answered.
            waiting: images in the queue of the network.
        """
        metrics = self._metrics
        if self._turned_away:
            log.warning("overloaded", turned_away=self._turned_away)
            self._turned_away = 0
        metrics.requests_in_flight.set(in_flight)
        metrics.queue_length.set(waiting)
        metrics.registry_up.set(champion.registry_problem is None)
        metrics.refused(champion.refused)
        metrics.drift(self._drift.psi() if self._drift is not None else {})
        metrics.request_log_up.set(self._log is None or self._log.failing is None)
        metrics.request_log_dropped(sum(sink.dropped for sink in self._sinks))
        metrics.log_lines_dropped(stderr_lines().dropped)

    def metrics(self) -> tuple[bytes, str]:
        """Return the body of /metrics and its content type."""
        self.flush()
        return self._metrics.text()

    def feedback(self, given: Feedback) -> None:
        """Record a person's verdict on an answer; call this from a thread.

        Raises:
            Refusal: 404, there is no such answer; 400, the feedback contradicts itself.
        """
        try:
            known = self._log is not None and self._log.feedback(
                given.request_id, given.item, correct=given.correct, label=given.label
            )
        except UsageError as error:
            raise Refusal(400, "bad_feedback", str(error)) from None
        if not known:
            raise Refusal(404, "unknown_answer", "There is no such answer in the request log.")

    def problems(self) -> list[str]:
        """Return current problems of the sinks, without details, because the text is public, see /ready."""
        names = {"the request log": self._log, "the images of requests": self._images}
        return [
            f"{name} cannot be written; the log of the process says why"
            for name, sink in names.items()
            if sink is not None and sink.failing
        ]

    def close(self) -> None:
        """Write what is queued; takes some seconds at most."""
        for sink in self._sinks:
            sink.close()
        stderr_lines().drain(EXIT_SECONDS)

    @property
    def _sinks(self) -> list[RequestLog | ImageFolder]:
        return [sink for sink in (self._log, self._images) if sink is not None]


def _route(context: RequestContext) -> str:
    """Return a label for the path; arbitrary paths from clients must not become labels."""
    path = context.path
    if path in ROUTES:
        return LIVE_ROUTE if context.live else path
    return PAGE_ROUTE if path.startswith("/page/") else "other"


def _access_events(finished: Sequence[_Finished]) -> list[dict[str, Any]]:
    """Return the lines of the access log; the quiet routes only have one if they fail."""
    return [
        {
            "event": "request",
            "route": route,
            "status": status,
            "error": context.error_code,
            "ms": round(1000 * seconds, 2),
            "pictures": len(context.pictures),
            "model": context.model_version,
            "client": context.client,
            "client_id": context.client_id,
            "request_id": context.request_id,
        }
        for context, status, seconds in finished
        if (route := _route(context)) not in QUIET_ROUTES or status >= 400
    ]

"""The context of one request: its ids, and everything the request log records about it."""

import re
import secrets
from dataclasses import dataclass, field
from time import perf_counter
from time import time as now
from typing import Any

from serving.monitoring.records import Record

MODEL_ROUTE = "/v2/models/{name}"
INFER_ROUTE = f"{MODEL_ROUTE}/infer"
LOGGED_ROUTES = frozenset({"/predict", "/invocations", INFER_ROUTE})
_MODEL_PATH = re.compile(r"/v2/models/[^/]+(?:/versions/[^/]+)?(/ready|/infer)?")
LIVE_HEADER = "X-Live-Frame"  # with the value 1
_random_digits: list[str] = []
_VALID_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class RequestContext:
    """A request and its answer. Routes find it in `scope["context"]`.

    Attributes:
        path: the route, see `route_of`.
        request_id: our own id, the key of the request log. `/feedback` accepts feedback by this id, so only
            the client that received the answer may know it.
        client_id: the client's X-Request-ID, None if it sent none or one that cannot be logged.
        client: address of the client.
        live: whether the client says that the image is a frame of a live view.
        time: Unix time of arrival, in seconds.
        started: `perf_counter()` at arrival.
        error_code: code of the error that the whole request was answered with.
        model_version: such as "cifar10/3".
        pictures: for each picture, the fields of its `Record` that only the route knows.
        files: the bytes of each picture; empty for one that could not be decoded.
    """

    request_id: str
    path: str
    client: str
    client_id: str | None = None
    live: bool = False
    time: float = field(default_factory=now)
    started: float = field(default_factory=perf_counter)
    error_code: str | None = None
    model_version: str | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)

    def timings(self, decode_ms: float, score_ms: float) -> dict[str, float]:
        """Return the field `timings_ms` of an answer, in milliseconds."""
        total = 1000 * (perf_counter() - self.started)
        return {"decode": round(decode_ms, 2), "score": round(score_ms, 2), "total": round(total, 2)}

    def records(self, status: int, seconds: float) -> list[Record]:
        """Return the rows of the request log: one per picture, or one for a request refused as a whole."""
        if self.path not in LOGGED_ROUTES:
            return []
        return [
            Record(
                request_id=self.request_id,
                item=item,
                time=self.time,
                route=self.path,
                status=status,
                model_version=self.model_version,
                total_ms=1000 * seconds,
                live=self.live,
                **picture,
            )
            for item, picture in enumerate(self.pictures or [{"error_code": self.error_code}])
        ]


def route_of(path: str) -> str:
    """Return the path without the name and version of a model: limits, logs and metrics go by the route."""
    path = path.removesuffix("\n")  # the router accepts it
    match = _MODEL_PATH.fullmatch(path) if path.startswith("/v2/") else None
    return path if match is None else f"{MODEL_ROUTE}{match[1] or ''}"


def new_request_id() -> str:
    """Return 32 hex digits: the time in milliseconds, then 80 random bits that nobody can guess.

    The layout is that of a UUID of version 7 (RFC 9562): because ids grow with time, new rows are neighbours
    in the index of the request log, and its other pages can stay on disk.
    """
    if not _random_digits:
        # Asking the operating system releases the GIL: done for each request, it would cost a task switch.
        digits = secrets.token_hex(10 * 500)
        _random_digits.extend(digits[start : start + 20] for start in range(0, len(digits), 20))
    return f"{int(1000 * now()):012x}{_random_digits.pop()}"


def parse_client_id(header: bytes | None) -> str | None:
    """Return the value of an X-Request-ID header if it can be logged and sent back as it is."""
    return header.decode() if header and _VALID_CLIENT_ID.fullmatch(header) else None

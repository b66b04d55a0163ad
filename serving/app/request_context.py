"""The context of one request: its ids, and everything the request log records about it."""

import re
import secrets
from dataclasses import dataclass, field
from time import perf_counter
from time import time as now
from typing import Any

from serving.monitoring.records import Record

LOGGED_ROUTES = frozenset({"/predict", "/invocations"})
_VALID_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class RequestContext:
    """A request and its answer. Routes find it in `scope["context"]`.

    Attributes:
        request_id: our own id, the key of the request log. `/feedback` accepts feedback by this id, so only
            the client that received the answer may know it.
        client_id: the client's X-Request-ID, None if it sent none or one that cannot be logged.
        client: address of the client.
        time: Unix time of arrival, in seconds.
        started: `perf_counter()` at arrival.
        error_code: code of the error that the whole request was answered with.
        model_version: such as "cifar10/3".
        pictures: for each picture, the fields of its `Record` that only the route knows.
        files: the bytes of each picture; empty for one that could not be decoded.
    """

    path: str
    client: str
    client_id: str | None = None
    request_id: str = field(default_factory=lambda: new_request_id())
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
                **picture,
            )
            for item, picture in enumerate(self.pictures or [{"error_code": self.error_code}])
        ]


def new_request_id() -> str:
    """Return 32 hex digits: the time in milliseconds, then 80 random bits that nobody can guess.

    The layout is that of a UUID of version 7 (RFC 9562): because ids grow with time, new rows are neighbours
    in the index of the request log, and its other pages can stay on disk.
    """
    return f"{int(1000 * now()):012x}{secrets.token_hex(10)}"


def parse_client_id(header: bytes | None) -> str | None:
    """Return the value of an X-Request-ID header if it can be logged and sent back as it is."""
    return header.decode() if header and _VALID_CLIENT_ID.fullmatch(header) else None

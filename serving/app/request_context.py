"""What is found out about a request on its way, to be noted when it is answered."""

import random
import re
from dataclasses import dataclass, field
from time import perf_counter
from time import time as now
from typing import Any

from serving.monitoring.records import Record

ROUTES_WITH_RECORDS = ("/predict", "/invocations")
_random = random.Random()  # nothing depends on that nobody can guess an id
_USABLE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class RequestContext:
    """A request and its answer.

    Attributes:
        body_bytes: of its body, as long as it is in memory.
        pictures: of each, the fields of its `Record` that are known of it alone.
        files: the bytes of each; of one that cannot be classified there are none.
    """

    request_id: str
    path: str
    client: str
    time: float = field(default_factory=now)
    began: float = field(default_factory=perf_counter)
    body_bytes: int = 0
    error_code: str | None = None
    model_version: str | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)

    def timings(self, decode_ms: float, score_ms: float) -> dict[str, float]:
        """Milliseconds, for the answer."""
        total = 1000 * (perf_counter() - self.began)
        return {"decode": round(decode_ms, 2), "score": round(score_ms, 2), "total": round(total, 2)}

    def records(self, status: int, seconds: float) -> list[Record]:
        """What is to be kept of it, now that it is answered."""
        if self.path not in ROUTES_WITH_RECORDS:
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


def request_id(given: bytes | None) -> str:
    """The client's own id if it can be written anywhere, else a new one of 32 hex digits.

    It begins with the time in milliseconds, as a UUID of version 7 (RFC 9562): new rows of the request log
    are then neighbours in its index, whose other pages can stay on the disk.
    """
    if given and _USABLE_ID.fullmatch(given):
        return given.decode()
    return f"{int(1000 * now()):012x}{_random.getrandbits(80):020x}"

"""Admission control: the number of requests that a process works on at a time."""

from serving.app.request_context import LOGGED_ROUTES, MODEL_ROUTE

# An orchestrator restarts a server that does not answer these, so a busy server must not refuse them.
PROBES = frozenset(
    {"/ping", "/health", "/ready", "/v2/health/live", "/v2/health/ready", f"{MODEL_ROUTE}/ready"}
)
# An upload takes a connection and some kilobytes; `request_body` limits the memory of all their bodies.
MAX_UPLOADS = 1000


class AdmissionControl:
    """Counts requests, and tells when there are too many to accept another one.

    A request whose body is still arriving is counted separately from those that wait for their answer: slow
    uploads must not keep other clients out. Probes are not counted.

    Args:
        queue_limit: how many requests may wait for an answer before another one with pictures is refused.
            Requests for other routes, which are cheap, are refused at twice as many.

    Attributes:
        uploading: requests whose body is still arriving.
        active: requests that wait for their answer.
    """

    def __init__(self, queue_limit: int) -> None:
        self._queue_limit = queue_limit
        self.uploading = 0
        self.active = 0

    @property
    def in_flight(self) -> int:
        return self.uploading + self.active

    def is_full(self, path: str, has_body: bool) -> bool:
        """Return whether a request has to be refused."""
        if path in PROBES:
            return False
        limit = self._queue_limit if path in LOGGED_ROUTES else 2 * self._queue_limit
        return self.active >= limit or (has_body and self.uploading >= MAX_UPLOADS)

    def enter(self, path: str, has_body: bool) -> "Slot":
        """Count a request until its slot is left."""
        return Slot(self, "" if path in PROBES else "uploading" if has_body else "active")


class Slot:
    """The place of one request in the counters of `AdmissionControl`; probes are not counted."""

    __slots__ = ("_admission", "_counter")

    def __init__(self, admission: AdmissionControl, counter: str) -> None:
        self._admission = admission
        self._counter = ""
        self._count_as(counter)

    def body_has_arrived(self) -> None:
        if self._counter:
            self._count_as("active")

    def leave(self) -> None:
        self._count_as("")

    def _count_as(self, counter: str) -> None:
        for name, change in ((self._counter, -1), (counter, 1)):
            if name:
                setattr(self._admission, name, getattr(self._admission, name) + change)
        self._counter = counter

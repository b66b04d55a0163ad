"""What a client is told when something is wrong: a code for programs, a sentence for people, no more."""

import json
from collections.abc import Mapping

from starlette.responses import Response

# Of the codes of a bad picture, those that have a status of their own; the others are 400.
_STATUS = {
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "unsupported_format": 415,
}


class Refusal(Exception):  # noqa: N818 - an answer, and no failure
    """A request that is not answered as asked. `message` has nothing of the request, and no path of ours."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


def status_of(picture_code: str) -> int:
    """The status of a request whose picture is refused with this code."""
    return _STATUS.get(picture_code, 400)


def overloaded(message: str = "The server has too much to do.") -> Refusal:
    return Refusal(503, "overloaded", f"{message} Try again in a second.", {"Retry-After": "1"})


def too_slow() -> Refusal:
    return Refusal(504, "timeout", "The server was too slow for this request.")


def body_of(refusal: Refusal) -> bytes:
    return json.dumps({"error": {"code": refusal.code, "message": refusal.message}}).encode()


def error_response(refusal: Refusal) -> Response:
    return Response(body_of(refusal), refusal.status, refusal.headers, "application/json")

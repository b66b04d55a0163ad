"""HTTP/1.1 as uvicorn speaks it, with what it lacks: bounds on headers and their time, and a door.

When too many requests are inside, further ones are turned away as soon as their headers are there. Ten times
as many as can be answered are then told so for a part of what it takes to let each of them in.
"""

from asyncio import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http.errors import body_of, overloaded
from serving.http.exchange import request_id

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
# To the end of a request's headers, from their beginning.
HEADER_SECONDS = 10.0
# What is read and thrown away of a body after its request was refused, so that the client sees the answer.
MAX_DISCARDED_BYTES = 256 * 2**20
DISCARD_SECONDS = 30.0

_TOO_LARGE = (
    b'{"error": {"code": "headers_too_large", "message": "The headers of the request are too large."}}'
)
_OVERLOADED = overloaded()
_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s"
    b"x-content-type-options: nosniff\r\n"
    % (
        len(body_of(_OVERLOADED)),
        b"".join(
            b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in _OVERLOADED.headers.items()
        ),
    )
)
_NOT_HTTP = b'{"error": {"code": "not_http", "message": "This is not a valid HTTP request."}}'


@dataclass
class Door:
    """What the app gives to its connections, by its lifespan's state, under the name `door`.

    Attributes:
        paths: of the requests that bring pictures, by POST.
        most: requests that may be inside at a time.
        turned_away: is told the path of a request that was answered with 503 for that.
        inside: requests that have come as a whole and are not answered yet. One whose body is slow is not
            counted, since many of those would keep everybody else out.
    """

    paths: frozenset[str]
    most: int
    turned_away: Callable[[str], None]
    inside: int = 0


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A client that breaks a bound gets an answer if it can, and is disconnected."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer: TimerHandle | None = None
        self._head_bytes = 0
        self._discarded = 0
        self._was_turned_away = False
        self._door: Door | None = self.app_state.get("door")
        self._inside = 0
        self._in_head, self._head_ended = True, False
        self._expect(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self._let_in(-self._inside)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_ended = False  # or a body, in these bytes
        super().data_received(data)
        # A header that never ends is kept by the parser, which tells nothing of it.
        if self._in_head and not self._head_ended and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(431, _TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._discarded = True, 0, 0
        self._expect(HEADER_SECONDS)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_ended = False, True
        self._expect(None)
        if (
            len(self.headers) > MAX_HEADERS
            or sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEADER_BYTES
        ):
            self._refuse(431, _TOO_LARGE)
        elif self._is_too_much():
            self._turn_away()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._was_turned_away:
            super().on_body(body)
        if self._was_turned_away or self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._in_head, self._head_ended, self._head_bytes = True, True, 0
        if self._was_turned_away:
            self._was_turned_away = False
            self._expect(self.timeout_keep_alive)
            return
        self._let_in(1)
        super().on_message_complete()
        if self.cycle.response_complete:
            self._expect(None)

    def on_response_complete(self) -> None:
        self._let_in(-1 if self._inside else 0)  # none, if it was answered before its body had come
        super().on_response_complete()
        if not self._in_head:  # answered before the body has come
            self._expect(DISCARD_SECONDS)

    def _let_in(self, count: int) -> None:
        """Of this connection there are so many more requests inside, or fewer."""
        self._inside += count
        if self._door is not None:
            self._door.inside += count

    def _is_too_much(self) -> bool:
        door = self._door
        return (
            door is not None
            and door.inside >= door.most
            and self.parser.get_method() == b"POST"
            and self.url.partition(b"?")[0].decode("latin-1") in door.paths
            and (self.cycle is None or self.cycle.response_complete)  # else its answer would be overtaken
            and not any(name == b"expect" for name, _ in self.headers)  # the body may come, or may not
        )

    def _turn_away(self) -> None:
        """Answer at once; a body that is on its way is read and thrown away, and the connection lives on."""
        if self.flow.write_paused:  # asks on and on, and reads no answer
            self.transport.close()
            return
        stays = self.parser.should_keep_alive()
        given = next((value for name, value in self.headers if name == b"x-request-id"), None)
        self.transport.write(
            b"%sx-request-id: %s\r\n%s\r\n%s"
            % (
                _TURNED_AWAY,
                request_id(given).encode(),
                b"" if stays else b"connection: close\r\n",
                body_of(_OVERLOADED),
            )
        )
        assert self._door is not None
        self._door.turned_away(self.url.partition(b"?")[0].decode("latin-1"))
        if not stays:
            self.transport.close()
        self._was_turned_away = True
        self._expect(DISCARD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, _NOT_HTTP)

    def _refuse(self, status: int, body: bytes) -> None:
        if self.transport.is_closing():
            return
        phrase = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}[status]
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n%s"
            % (status, phrase, len(body), body)
        )
        self.transport.close()

    def _expect(self, seconds: float | None) -> None:
        """Hang up unless something comes within the time; None: whatever it was has come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self.transport.close)

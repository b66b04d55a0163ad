"""HTTP/1.1 as uvicorn speaks it, with the bounds that it lacks: on headers, and on the time they take."""

from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
_NOT_HTTP = b'{"error": {"code": "not_http", "message": "This is not a valid HTTP request."}}'


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A client that breaks a bound gets an answer if it can, and is disconnected."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer: TimerHandle | None = None
        self._head_bytes = 0
        self._discarded = 0
        self._in_head, self._head_ended = True, False
        self._expect(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_ended = False
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
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        super().on_body(body)
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0
        if self.cycle.response_complete:
            self._expect(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head:  # answered before the body has come
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

"""HTTP/1.1 as uvicorn speaks it, with what it lacks: bounds on headers and their time, and a door.

When too many requests are inside, further ones are turned away as soon as their headers are there. Ten times
as many as can be answered are then told so for a part of what it takes to let each of them in.
"""

from asyncio import TimerHandle, Transport
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.app.errors import body_of, overloaded
from serving.app.request_context import request_id
from serving.app.transport import Flow, WholeAnswers

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
# To the end of a request's headers, from their beginning.
HEADER_SECONDS = 10.0
# So much is parsed at a time, and nothing while a request waits for its turn: a connection that asks for
# thousands of things at once would take a hundred times the memory of what it sent.
PIECE_BYTES = 2 * 1024
# What is read and thrown away of a body after its request was refused, so that the client sees the answer.
MAX_DISCARDED_BYTES = 256 * 2**20
DISCARD_SECONDS = 30.0
# For a client to read what is written to it, before a connection is cut.
READ_SECONDS = 30.0
LAST_WORDS_SECONDS = 5.0

_TOO_LARGE = (
    b'{"error": {"code": "headers_too_large", "message": "The headers of the request are too large."}}'
)
_OF_A_BODY = (b"content-length", b"transfer-encoding")
_OVERLOADED = overloaded()
_TURNED_AWAY = (
    b"HTTP/1.1 503 AppState Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s"
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
        inside: connections whose picture has come as a whole and is not answered yet. One whose body is slow
            is not counted, nor is all that a connection asks for at once: one client could keep out the rest.
    """

    paths: frozenset[str]
    most: int
    turned_away: Callable[[str], None]
    inside: int = 0


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A client that breaks a bound gets an answer if it can, and is disconnected."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow: Flow = Flow(transport)
        self._answers = WholeAnswers(transport)
        self._running: RequestResponseCycle | None = None  # `cycle` is the latest, which may have to wait
        self._unparsed = b""
        self._body_left = 0
        self._refusal: tuple[int, bytes] | None = None
        self._timer: TimerHandle | None = None
        self._head_bytes = 0
        self._discarded = 0
        self._was_turned_away = False
        self._door: Door | None = self.app_state.get("door")
        self._inside = self._brings_pictures = False
        self._since_body = 0
        self._unread: TimerHandle | None = None
        self._in_head, self._head_begun, self._head_ended = True, False, False
        self._expect(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self.resume_writing()
        self._let_out()
        self.pipeline.clear()
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unparsed += data
        self._parse_on()

    def _parse_on(self) -> None:
        """Parse what was read until a request has to wait for its turn."""
        data, at = memoryview(self._unparsed), 0
        while at < len(data) and not (self.pipeline or self._is_over()):
            end = at + max(PIECE_BYTES, self._body_left)
            self._parse(data[at:end])
            at = end
        self._unparsed = b"" if self._is_over() else bytes(data[at:])
        self.flow.holds = bool(self._unparsed)
        if self.flow.holds:
            self.flow.pause_reading()

    def _parse(self, data: memoryview) -> None:
        self._head_ended = False  # or a body, in these bytes
        self._since_body += len(data)
        self._feed(data)
        if self._in_head:
            self._since_body = 0
        elif self._since_body > MAX_HEADER_BYTES + len(data):  # a trailer, or the length of a piece
            self._hang_up()
        if (
            self._in_head and self._timer is None and self._is_answered()
        ):  # a blank line ended uvicorn's timer
            self._expect(HEADER_SECONDS)
        # A header that never ends is kept by the parser, which tells nothing of it.
        if self._in_head and not self._head_ended and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(431, _TOO_LARGE)

    def _feed(self, data: memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:  # to what we do not speak: we go on as before
            if rest := data[upgrade.args[0] :]:
                self._feed(rest)
        except HttpParserError:
            self._refuse(400, _NOT_HTTP)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_begun, self._head_bytes, self._discarded = True, True, 0, 0
        if self._is_answered():  # else it may have to wait for its turn to be read
            self._expect(HEADER_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer has no say in what was checked
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_begun, self._head_ended = False, False, True
        self._expect(None)
        door = self._door
        self._brings_pictures = (
            door is not None and self.parser.get_method() == b"POST" and self._path() in door.paths
        )
        if (
            len(self.headers) > MAX_HEADERS
            or sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEADER_BYTES
        ):
            self._refuse(431, _TOO_LARGE)
        elif self.parser.should_upgrade() and any(name in _OF_A_BODY for name, _ in self.headers):
            self._refuse(400, _NOT_HTTP)  # the parser would take its body for the next request
        elif any(
            name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers
        ):
            self._refuse(400, _NOT_HTTP)  # a compressed body would be taken for what is in it
        elif self._is_too_much():
            self._turn_away()
        else:
            super().on_headers_complete()
            self.cycle.transport = cast(Transport, self._answers)
            # For the gate, to ask whether the client is still there: a key that is ours.
            self.scope["cycle"] = self.cycle  # type: ignore[typeddict-unknown-key]
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        self._body_left = int(length)

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        self._since_body = 0
        self._body_left -= len(body)
        if not self._was_turned_away:
            super().on_body(body)
        if self._was_turned_away or self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED_BYTES:
                self._hang_up()

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._in_head, self._head_ended, self._head_bytes = True, True, 0
        self._body_left = 0
        if self._was_turned_away:
            self._was_turned_away = False
            self._expect(self.timeout_keep_alive)
            return
        if self.cycle.response_complete:
            self._expect(self.timeout_keep_alive)
        elif self._brings_pictures and not self._inside and self._door is not None:
            self._inside = True
            self._door.inside += 1
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._answers.flush()
        self._let_out()
        super().on_response_complete()
        if self._refusal and self._is_answered():
            self._say_refusal(*self._refusal)
            return
        if self._unparsed and not self.pipeline:
            self._parse_on()
            self.flow.resume_reading()
        if self._head_begun:
            self._expect(HEADER_SECONDS)
        elif not self._in_head and self.cycle.response_complete:  # answered before the body has come
            self._expect(DISCARD_SECONDS)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _let_out(self) -> None:
        if self._inside and self._door is not None:
            self._inside = False
            self._door.inside -= 1

    def _path(self) -> str:
        return self.url.partition(b"?")[0].decode("latin-1")

    def _is_answered(self) -> bool:
        """Whether no request of this connection waits for its answer."""
        return not self.pipeline and (self._running is None or self._running.response_complete)

    def _is_over(self) -> bool:
        """Whether nothing of what still comes will be answered."""
        return self._refusal is not None or self.transport.is_closing()

    def _is_too_much(self) -> bool:
        return (
            self._door is not None
            and self._door.inside >= self._door.most
            and self._brings_pictures
            and self._is_answered()  # else that answer would be overtaken
            and not any(name == b"expect" for name, _ in self.headers)  # the body may come, or may not
        )

    def _turn_away(self) -> None:
        """Answer at once; a body that is on its way is read and thrown away, and the connection lives on."""
        if self.flow.write_paused:  # asks on and on, and reads no answer
            self.transport.abort()
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
        self._door.turned_away(self._path())
        self._was_turned_away = True
        if stays:
            self._expect(DISCARD_SECONDS)
        else:
            self._hang_up()

    def _refuse(self, status: int, body: bytes) -> None:
        """End the connection with this answer, behind those to the requests that came whole before it."""
        if self.transport.is_closing() or self._refusal:
            return
        self._refusal = status, body
        broken = self.cycle
        if broken is not None and broken.more_body and not broken.response_complete:
            if broken is not self._running:
                self.pipeline.popleft()
            elif broken.response_started:
                self._hang_up()  # it would be taken for a part of that answer
            else:
                broken.disconnected = True  # no other answer is awaited
                broken.message_event.set()
                self._say_refusal(status, body)
        if self._is_answered():
            self._say_refusal(status, body)

    def _say_refusal(self, status: int, body: bytes) -> None:
        if self.transport.is_closing():
            return
        phrase = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}[status]
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n%s"
            % (status, phrase, len(body), body)
        )
        self._hang_up()

    def _hang_up(self) -> None:
        self.transport.close()  # when all is sent, which may be never
        self.loop.call_later(LAST_WORDS_SECONDS, self.transport.abort)

    def _expect(self, seconds: float | None) -> None:
        """Hang up unless something comes within the time; None: whatever it was has come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._hang_up)

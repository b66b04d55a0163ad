"""The body of a request, received within limits on its size, its time, and the memory of all bodies together.

Routes read a body in the usual way (`await request.body()`, `.form()`, `.stream()`): their `receive` is a
`RequestBody`. Uvicorn has no such limits, and does not decode gzip.
"""

import asyncio
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import Message, Receive

from serving.app.errors import Refusal, overloaded

# Phones on bad networks are faster. At this rate, a photo of 5 MB may take five minutes longer than a small
# body.
SLOWEST_BYTES_PER_SECOND = 16 * 1024
# A body is decoded in chunks of this size, so that a large one does not delay other requests.
DECODED_CHUNK_BYTES = 256 * 1024
# After an early answer the rest of the body is read and discarded: closing the connection while the client
# still sends would reset it, and the client would not see the answer.
MAX_DISCARDED_BYTES = 256 * 2**20
DISCARD_SECONDS = 30.0
DISCARD_IDLE_SECONDS = 2.0

# A gzip body of many tiny members would take seconds per megabyte. Files compressed in blocks have hundreds.
MAX_GZIP_MEMBERS = 1000

_OTHER_ENCODINGS = ("br", "compress", "deflate", "zstd")


class ClientGoneError(Exception):
    """The client disconnected before its request was complete; there is nobody to answer."""


@dataclass
class BodyLimits:
    """Limits for the request bodies of one process.

    Attributes:
        max_bytes: size of one body, both as it was sent and decoded.
        seconds: time for a body to arrive, in addition to its size divided by the slowest accepted rate.
        memory_bytes: total size of the bodies in memory at a time.
        used_bytes: their current total size.
    """

    max_bytes: int
    seconds: float
    memory_bytes: int
    used_bytes: int = 0


class RequestBody:
    """The ASGI `receive` of one request.

    Attributes:
        is_pending: whether a part of the body has not arrived yet.
        on_arrival: called when all of a body has arrived.
    """

    def __init__(self, receive: Receive, headers: dict[bytes, bytes], limits: BodyLimits) -> None:
        self._receive = receive
        self._headers = headers
        self._limits = limits
        self._decoder: _GzipDecoder | None = None
        self._deadline = 0.0
        self._sent_bytes = self._used_bytes = 0
        self._is_started = False
        self._awaits_continue = b"expect" in headers
        self.on_arrival: Callable[[], None] = lambda: None
        self.is_pending = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

    async def __call__(self) -> Message:
        """Return the next part of the body.

        Raises:
            Refusal: 413 too large, 408 too slow, 503 no memory left, 415 or 501 unsupported encoding, 400
                invalid gzip.
            ClientGoneError: the client disconnected before the body was complete.
        """
        decoder = self._decoder
        if not self.is_pending and (decoder is None or not decoder.has_more):
            return await self._receive()  # waits until the client disconnects or the answer is complete
        if not self._is_started:
            self._start()
            decoder = self._decoder
        if decoder is None:
            data = await self._receive_part()
            has_more = self.is_pending
        else:
            if decoder.has_more:
                await asyncio.sleep(0)  # between two chunks, other requests have their turn
            else:
                decoder.feed(await self._receive_part())
            data = decoder.read(is_last=not self.is_pending)
            has_more = self.is_pending or decoder.has_more
        self._reserve(len(data))
        return {"type": "http.request", "body": data, "more_body": has_more}

    def poll(self) -> bool:
        """Return whether the client has disconnected; discard what has arrived of a pending body.

        Call this when the answer is known and the rest of the body is not needed.
        """
        if self.is_pending and self._awaits_continue:  # receiving would ask the client to send the body
            return False
        message = _receive_nowait(self._receive)
        if message is None:
            return False
        self.is_pending = self.is_pending and message.get("more_body", False)
        return bool(message["type"] == "http.disconnect")

    async def discard(self) -> None:
        """Read and discard the rest of the body, unless it is very large or very slow."""
        self.release()
        discarded = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while self.is_pending and discarded < MAX_DISCARDED_BYTES:
                    async with asyncio.timeout(DISCARD_IDLE_SECONDS):
                        message = await self._receive()
                    discarded += len(message.get("body", b""))
                    self.is_pending = message.get("more_body", False)

    def release(self) -> None:
        """Stop counting the body towards the total size of the bodies in memory."""
        self._limits.used_bytes -= self._used_bytes
        self._used_bytes = 0

    def _start(self) -> None:
        """Check the headers that describe the body."""
        self._is_started = True
        if self._headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise Refusal(
                501, "unsupported_encoding", "The only supported Transfer-Encoding of a request is chunked."
            )
        if int(self._headers.get(b"content-length", b"0")) > self._limits.max_bytes:
            raise self._too_large()
        encoding = self._headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if encoding in ("gzip", "x-gzip"):
            self._decoder = _GzipDecoder()
        elif encoding not in ("identity", ""):
            name = f" {encoding}" if encoding in _OTHER_ENCODINGS else ""
            raise Refusal(
                415,
                "unsupported_encoding",
                f"The Content-Encoding{name} is not supported; send gzip, or the body as it is.",
                {"Accept-Encoding": "gzip, identity"},
            )
        self._deadline = time.monotonic() + self._limits.seconds

    async def _receive_part(self) -> bytes:
        self._awaits_continue = False
        message = _receive_nowait(self._receive)
        if message is None:
            seconds = self._deadline + self._sent_bytes / SLOWEST_BYTES_PER_SECOND - time.monotonic()
            try:
                async with asyncio.timeout(seconds):
                    message = await self._receive()
            except TimeoutError:
                raise Refusal(408, "too_slow", "The body of the request did not arrive in time.") from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self.is_pending = message.get("more_body", False)
        data: bytes = message.get("body", b"")
        self._sent_bytes += len(data)
        if self._sent_bytes > self._limits.max_bytes:
            raise self._too_large()
        if not self.is_pending:
            self.on_arrival()
        return data

    def _reserve(self, size: int) -> None:
        if self._used_bytes + size > self._limits.max_bytes:
            raise self._too_large()
        if self._limits.used_bytes + size > self._limits.memory_bytes:
            raise overloaded("The server is receiving too much.")
        self._used_bytes += size
        self._limits.used_bytes += size

    def _too_large(self) -> Refusal:
        limit = self._limits.max_bytes // 2**20
        return Refusal(413, "too_large", f"The body of a request may have at most {limit} MB.")


class _GzipDecoder:
    """Decodes gzip incrementally, in chunks of limited size.

    Attributes:
        has_more: whether `read` can return more without further input.
    """

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self._input = b""
        self._members = 1
        self.has_more = False

    def feed(self, data: bytes) -> None:
        self._input += data

    def read(self, *, is_last: bool) -> bytes:
        """Return the next chunk, possibly empty; `is_last`: no further input will come.

        Raises:
            Refusal: 400, the input is not gzip, is truncated, or has too many members.
        """
        if self._stream.eof and self._input:  # a gzip file may consist of several members
            self._members += 1
            if self._members > MAX_GZIP_MEMBERS:
                raise _invalid_gzip()
            self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            chunk = self._stream.decompress(self._input, DECODED_CHUNK_BYTES)
        except zlib.error:
            raise _invalid_gzip() from None
        self._input = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        self.has_more = bool(self._input) or (len(chunk) == DECODED_CHUNK_BYTES and not self._stream.eof)
        if is_last and not self.has_more and not self._stream.eof:
            raise _invalid_gzip()
        return chunk


def _invalid_gzip() -> Refusal:
    return Refusal(400, "invalid_gzip", "The body is not valid gzip, as its Content-Encoding says it is.")


def _receive_nowait(receive: Receive) -> Message | None:
    """Return the next ASGI message if it is there already, else None.

    Every request calls this twice; `asyncio.timeout(0)` would take ten times as long.
    """
    steps = receive().__await__()
    try:
        next(steps)
    except StopIteration as finished:
        message: Message = finished.value
        return message
    steps.close()
    return None

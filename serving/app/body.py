"""The body of a request, read with bounds on its size, on its time, and on what all bodies together take."""

import asyncio
import time
from dataclasses import dataclass

from starlette.requests import Request

from serving.app.errors import Refusal, overloaded

# A phone on a bad network sends faster; so a photo of 5 MB may take five minutes more than a small body.
SLOWEST_BYTES_A_SECOND = 16 * 1024


class ClientGoneError(Exception):
    """The client hung up before its request was complete; nobody waits for an answer."""


@dataclass
class Bodies:
    """Bounds of the bodies of one process.

    Attributes:
        largest: bytes of one body.
        seconds: for a body to come, beside what its size takes at the slowest rate.
        room: bytes of all bodies that are in memory at a time.
    """

    largest: int
    seconds: float
    room: int
    held: int = 0

    async def read(self, request: Request) -> bytearray:
        """All of the body. Who takes it gives its length back to `held` when the request is done.

        Raises:
            Refusal: 413 too large, 408 too slow, 503 no room for it now.
            ClientGoneError: see there.
        """
        declared = request.headers.get("content-length")
        if (
            declared is not None and int(declared) > self.largest
        ):  # the protocol lets nothing but digits through
            raise self._too_large()
        body = bytearray()
        deadline = time.monotonic() + self.seconds
        more = True
        try:
            while more:
                left = deadline + len(body) / SLOWEST_BYTES_A_SECOND - time.monotonic()
                async with asyncio.timeout(left):
                    message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                more = message.get("more_body", False)
                self._take(body, message.get("body", b""))
        except TimeoutError:
            self.held -= len(body)
            raise Refusal(
                408, "too_slow", "The body of the request did not come in time.", {"Connection": "close"}
            ) from None
        except BaseException:
            self.held -= len(body)
            raise
        return body

    def _take(self, body: bytearray, chunk: bytes) -> None:
        if len(body) + len(chunk) > self.largest:
            raise self._too_large()
        if self.held + len(chunk) > self.room:
            raise overloaded("The server is receiving too much.")
        body += chunk
        self.held += len(chunk)

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            "too_large",
            f"The request is larger than {self.largest // 2**20} MB, which is the most taken.",
        )

"""What lies between uvicorn's HTTP and the socket: how answers leave, and when there is reading."""

from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class WholeAnswers:
    """The transport of a connection for its answers: head and body leave in one piece.

    Uvicorn writes one after the other, and each write wakes the client, for which the server has to wait.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100 "):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """There is no body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Flow(FlowControl):
    """Reads nothing as long as something that was read waits to be parsed."""

    holds = False

    def resume_reading(self) -> None:
        if not self.holds:
            super().resume_reading()

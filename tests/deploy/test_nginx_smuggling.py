"""A request that is hidden in another one never reaches the service."""

import pytest
import requests

from tests.deploy.proxy import CLOSE, HOST, POST, Service, exchange

# No other test requests this route.
HIDDEN = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"

pytestmark = pytest.mark.slow

LENGTH = b"Content-Length: %d\r\n"
SHAPES = {
    "length and chunks": LENGTH % (len(HIDDEN) + 5) + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\n" + LENGTH % 5 + b"\r\n0\r\n\r\n",
    "two lengths": LENGTH % 0 + LENGTH % len(HIDDEN) + b"\r\n",
    "two equal lengths": LENGTH % 0 + LENGTH % 0 + b"\r\n",
    "list of lengths": b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN),
    "length with a sign": b"Content-Length: +0\r\n\r\n",
    "negative length": b"Content-Length: -1\r\n\r\n",
    "hexadecimal length": b"Content-Length: 0x0\r\n\r\n",
    "unknown encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "encoding in quotes": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "encoding before a colon": b"Transfer-Encoding : chunked\r\n" + LENGTH % 5 + b"\r\n0\r\n\r\n",
    "encoding after a tab": b"Transfer-Encoding:\tchunked\r\n" + LENGTH % 5 + b"\r\n0\r\n\r\n",
    "encoding after a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n" + LENGTH % 5 + b"\r\n0\r\n\r\n",
    "encoding on a folded line": b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH % 5 + b"\r\n0\r\n\r\n",
    "encoding after NUL": b"X: y\x00\r\nTransfer-Encoding: chunked\r\n" + LENGTH % 5 + b"\r\n0\r\n\r\n",
    "encoding after bare CR": b"X: y\rTransfer-Encoding: chunked\r\n" + LENGTH % 5 + b"\r\n0\r\n\r\n",
    "encoding after bare LF": b"X: y\nTransfer-Encoding: chunked\r\n" + LENGTH % 5 + b"\r\n0\r\n\r\n",
    "chunk size with a sign": b"Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
    "chunk size that overflows": b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF0\r\n\r\n",
    "chunk that is longer than its size": b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hidden_request_never_reaches_the_service(port: int, service: Service, shape: str) -> None:
    """`Connection: close` makes the bytes behind the first request belong to it or to nothing."""
    (answer,) = exchange(port, POST + CLOSE + SHAPES[shape] + HIDDEN)
    assert answer.status >= 400
    assert answer.error_code
    # The log lines of a request are written before those of later ones.
    marker = requests.get(f"http://127.0.0.1:{port}/model", timeout=60).headers["X-Request-ID"]
    service.logged("/model", marker)
    assert not service.requests("/version")


def test_a_body_that_looks_like_a_request_stays_a_body(port: int, service: Service) -> None:
    """This holds on a connection that stays open, too."""
    request = (
        POST + LENGTH % len(HIDDEN) + b"\r\n" + HIDDEN + b"GET /ping HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    )
    refused, ping = exchange(port, request)
    assert refused.status >= 400
    assert ping.status == 200
    assert not service.requests("/version")

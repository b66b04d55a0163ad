"""Raw HTTP: invalid or ambiguous requests, early answers, and bodies that are slow, large or encoded."""

import gzip
import json
import socket
import zlib
from collections.abc import Callable

import pytest
import requests

from tests.serving.app.conftest import RED, Answer, Server, Store, read_answer, until

pytestmark = pytest.mark.slow

HOST = b"Host: localhost\r\n"
POST = b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Type: image/png\r\n"
ONE = POST + b"Content-Length: %d\r\n\r\n" % len(RED) + RED
VERSION = b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n"
LARGE = 20 * 2**20  # above the limit of 16 MB, and more than the buffers of a connection hold
KEY = "correct horse battery staple"


def statuses(answer: bytes) -> list[int]:
    return [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:] if not each.startswith(b"100")]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    ],
)
def test_invalid_http_is_refused(server: Server, request_bytes: bytes) -> None:
    assert statuses(server.send(request_bytes)) == [400]


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked\r\n folded\r\n",
    ],
)
def test_a_length_that_a_proxy_could_read_differently_is_refused(server: Server, headers: bytes) -> None:
    """Otherwise the end of a body could be smuggled in as another client's request."""
    answer = server.send(POST + headers + b"\r\n0\r\n\r\n" + VERSION)
    assert statuses(answer) in ([400], [501]), answer


@pytest.mark.parametrize("chunk", [b"zz\r\nab\r\n", b"-1\r\n\r\n", b"FFFFFFFFFFFFFFFFFF\r\n"])
def test_an_invalid_chunk_is_refused(server: Server, chunk: bytes) -> None:
    answer = server.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"\r\n" + VERSION)
    assert statuses(answer) == [400]


@pytest.mark.parametrize("path", [b"/predict", b"/nothing", b"/ping"])
def test_the_body_of_an_upgrade_is_not_taken_for_a_request(server: Server, path: bytes) -> None:
    upgrade = b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n\r\n" % len(VERSION)
    assert statuses(server.send(POST.replace(b"/predict", path) + upgrade, VERSION)) == [400]


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    answer = server.send(ONE + VERSION + ONE.replace(b"Host", b"Connection: close\r\nHost"))
    assert statuses(answer) == [200, 200, 200]
    has_predictions = [b"predictions" in each for each in answer.split(b"HTTP/1.1 ")[1:]]
    assert has_predictions == [True, False, True]


def test_probes_may_use_head(server: Server) -> None:
    for path in ("/ping", "/ready", "/"):
        answer = requests.head(f"{server.url}{path}", timeout=30)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.thorough
def test_a_slow_body_is_refused(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--request-timeout", "1").wait()
    for head in (b"Content-Length: 1000", b"Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(POST + head + b"\r\n\r\n")
            answer = read_answer(connection)
            assert (answer.status, answer.code) == (408, "too_slow")
            assert connection.recv(1) == b""


def test_clients_that_disconnect_leave_nothing_behind(server: Server) -> None:
    for data in (POST + b"Content-Length: 1000\r\n\r\n" + RED[:10], ONE):
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                connection.sendall(data)

    def in_flight() -> float:
        text = requests.get(f"{server.url}/metrics", timeout=60).text
        (line,) = (line for line in text.splitlines() if line.startswith("cifar_requests_in_flight"))
        return float(line.split()[1])

    until(lambda: in_flight() == 1)  # this one
    until(lambda: sum(line.get("status") == 499 for line in server.lines()) > 30)
    assert not [line for line in server.lines() if line.get("level") == "error"]


def exchange(server: Server, head: bytes, body: bytes) -> Answer:
    """Send all of a request, then read the answer, as simple clients do."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head)
        connection.sendall(body)
        answer = read_answer(connection)
        assert connection.recv(1) == b""
        return answer


def request_head(
    path: str = "/predict", kind: str = "image/png", *more: str, host: str = "localhost"
) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}", *more]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


LENGTH = f"Content-Length: {LARGE}"
EARLY_ANSWERS = {
    "too large": (request_head("/predict", "image/png", LENGTH, "Connection: close"), 413, "too_large"),
    "kept alive": (request_head("/predict", "image/png", LENGTH), 413, "too_large"),
    "HTTP/1.0": (
        request_head("/predict", "image/png", LENGTH).replace(b"HTTP/1.1", b"HTTP/1.0"),
        413,
        "too_large",
    ),
    "expects to be told to go on": (
        request_head("/predict", "image/png", LENGTH, "Expect: 100-continue"),
        413,
        "too_large",
    ),
    "invocations": (request_head("/invocations", "text/csv", LENGTH), 413, "too_large"),
    "wrong host": (request_head("/predict", "image/png", LENGTH, host="elsewhere"), 400, "unknown_host"),
    "wrong route": (request_head("/nothing", "image/png", LENGTH), 404, "not_found"),
    "wrong method": (request_head("/model", "image/png", LENGTH), 405, "wrong_method"),
    "wrong encoding": (
        request_head("/predict", "image/png", "Content-Length: 9000000", "Content-Encoding: br"),
        415,
        "unsupported_encoding",
    ),
}


@pytest.mark.parametrize("name", EARLY_ANSWERS)
def test_an_answer_before_the_end_of_the_body_reaches_the_client(server: Server, name: str) -> None:
    head, status, code = EARLY_ANSWERS[name]
    answer = exchange(server, head, bytes(9_000_000 if b"9000000" in head else LARGE))
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["connection"] == "close"


def test_refusals_of_access_reach_the_client(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--rate-limit", "10", CIFAR_MLFLOW_API_KEY=KEY).wait()
    head = request_head("/predict", "image/png", LENGTH, "Connection: close")
    codes = [exchange(server, head, bytes(LARGE)).code for _ in range(2)]
    assert codes == ["wrong_key", "too_many_requests"]


def test_a_chunked_body_is_refused_once_it_is_too_large(server: Server) -> None:
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    head = request_head("/predict", "image/png", "Transfer-Encoding: chunked", "Connection: close")
    answer = exchange(server, head, chunk * 24 + b"0\r\n\r\n")
    assert (answer.status, answer.code) == (413, "too_large")


def test_a_client_may_wait_for_100_continue(server: Server) -> None:
    def head(size: int) -> bytes:
        return request_head("/predict", "image/png", "Expect: 100-continue", f"Content-Length: {size}")

    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head(len(RED)))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(RED)
        assert read_answer(connection).status == 200
        connection.sendall(head(LARGE))
        answer = read_answer(connection)  # without 100: the client need not send the body
        assert (answer.status, answer.code) == (413, "too_large")
        assert connection.recv(1) == b""


def post_encoded(server: Server, body: bytes, encoding: str, kind: str = "image/png") -> requests.Response:
    headers = {"Content-Type": kind, "Content-Encoding": encoding}
    return requests.post(f"{server.url}/predict", data=body, headers=headers, timeout=60)


def test_gzip_bodies_are_decoded(server: Server) -> None:
    parts = gzip.compress(RED[:10]) + gzip.compress(b"") + gzip.compress(RED[10:])
    for body, encoding in ((gzip.compress(RED), "gzip"), (parts, "X-GZIP"), (RED, "identity")):
        assert post_encoded(server, body, encoding).json()["predictions"][0]["label"] == "red"
    padded = json.dumps({"image": "", "padding": 3_000_000 * " "}).encode()  # decoded in several chunks
    answer = post_encoded(server, gzip.compress(padded), "gzip", "application/json")
    assert answer.json()["error"]["code"] == "no_pictures"


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"),
    [
        (gzip.compress(bytes(LARGE)), "gzip", 413, "too_large"),
        (gzip.compress(RED)[:-1], "gzip", 400, "invalid_gzip"),
        (RED, "gzip", 400, "invalid_gzip"),
        (b"", "gzip", 400, "empty_image"),
        (zlib.compress(RED), "deflate", 415, "unsupported_encoding"),
        (RED, "gzip, gzip", 415, "unsupported_encoding"),
        (gzip.compress(b"") * 2000 + gzip.compress(RED), "gzip", 400, "invalid_gzip"),
    ],
)
def test_other_encodings_are_refused(
    server: Server, body: bytes, encoding: str, status: int, code: str
) -> None:
    answer = post_encoded(server, body, encoding)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if status == 415:
        assert "gzip" in answer.headers["Accept-Encoding"]
        assert encoding != "deflate" or "deflate" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Content-Encoding: gzip", "Content-Encoding: gzip"), 415),
        (("Content-Encoding: gzip", "Content-Encoding: identity"), 415),
        (("Content-Encoding: br", "content-encoding: gzip"), 415),
        (("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"), 501),
    ],
)
def test_a_header_that_is_sent_twice_counts_twice(
    server: Server, headers: tuple[str, str], status: int
) -> None:
    body = gzip.compress(RED)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    is_chunked = "Transfer" in headers[0]
    length = () if is_chunked else (f"Content-Length: {len(body)}",)
    head = request_head("/predict", "image/png", *headers, *length, "Connection: close")
    answer = exchange(server, head, chunked if is_chunked else body)
    assert (answer.status, answer.code) == (status, "unsupported_encoding")


def test_a_transfer_encoding_that_is_not_decoded_is_refused(server: Server) -> None:
    body = gzip.compress(RED)
    head = request_head("/predict", "image/png", "Transfer-Encoding: gzip, chunked", "Connection: close")
    answer = exchange(server, head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert (answer.status, answer.code) == (501, "unsupported_encoding")

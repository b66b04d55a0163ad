"""nginx refuses or cuts off large requests and slow clients, and the service does not notice them."""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
import requests

from tests.deploy.proxy import (
    CLOSE,
    HOST,
    POST,
    Recorder,
    Response,
    Service,
    connect,
    exchange,
    free_port,
    predict,
    receive,
)

IDLE_UPLOADS = 500

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        pytest.param(
            b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 9000 + b"\r\n\r\n",
            431,
            "headers_too_large",
            id="line",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + HOST + (b"X-A: " + b"a" * 300 + b"\r\n") * 200 + b"\r\n",
            431,
            "headers_too_large",
            id="many headers",
        ),
        pytest.param(
            b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "uri_too_long", id="address"
        ),
        pytest.param(
            POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400, "not_http", id="length overflows"
        ),
        pytest.param(
            POST + b"Transfer-Encoding: xchunked\r\n\r\n", 501, "unsupported_encoding", id="encoding"
        ),
        pytest.param(b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405, "wrong_method", id="TRACE"),
        pytest.param(b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 505, "not_http", id="version"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "not_http", id="no host"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "not_http", id="TLS"),
    ],
)
def test_a_refusal_has_the_form_of_the_service(
    port: int, request_bytes: bytes, status: int, code: str
) -> None:
    (answer,) = exchange(port, request_bytes)
    assert (answer.status, answer.error_code) == (status, code)
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_with_an_answer_and_not_with_a_reset(port: int, chunked: bool) -> None:
    piece = bytes(2**20)
    if chunked:
        request = (
            POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + piece + b"\r\n") * 40
        )
    else:
        request = POST + CLOSE + b"Content-Length: 41943040\r\n\r\n" + piece * 40
    (answer,) = exchange(port, request)  # all of it is sent before the answer is read
    assert (answer.status, answer.error_code) == (413, "too_large")


def test_a_body_at_the_limit_reaches_the_service(port: int) -> None:
    answer = predict(port, bytes(16 * 2**20))
    assert answer.json()["error"]["code"] not in ("too_large", "internal_error")
    assert answer.status_code == 400


def test_a_service_that_is_down_gives_502(start: Callable[..., int]) -> None:
    answer = predict(start(f"127.0.0.1:{free_port()}"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "unreachable")
    assert answer.headers["Retry-After"]


def test_below_v2_a_refusal_has_the_form_of_the_open_inference_protocol(start: Callable[..., int]) -> None:
    url = f"http://127.0.0.1:{start(f'127.0.0.1:{free_port()}', prefix='/cifar')}/cifar"
    message = "The service cannot be reached. Try again in a moment."
    for path in ("/v2", "/v2?a=b", "/v2/health/ready", "/v2/models/cifar10/infer"):
        answer = requests.get(url + path, timeout=60)
        assert (answer.status_code, answer.json()) == (502, {"error": message})
    for path in ("/v20", "/model"):
        assert requests.get(url + path, timeout=60).json()["error"]["code"] == "unreachable"


def test_a_service_that_hangs_gives_504(start: Callable[..., int]) -> None:
    hanging = Recorder(silent=True)
    answer = predict(start(hanging.address, changes={"proxy_read_timeout 35s": "proxy_read_timeout 1s"}))
    hanging.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert len(hanging.received) == 1  # it is not sent again


def test_headers_that_do_not_end_are_cut_off(start: Callable[..., int], service: Service) -> None:
    port = start(service.address, changes={"client_header_timeout 10s": "client_header_timeout 1s"})
    with connect(port) as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\n")
        assert _drip(connection, b"X-A: 1\r\n") == b""
    assert not service.requests("/version")


def test_a_body_that_stops_is_cut_off(start: Callable[..., int], service: Service) -> None:
    port = start(service.address, changes={"client_body_timeout 15s": "client_body_timeout 1s"})
    with connect(port) as connection:
        connection.sendall(POST + b"X-Request-ID: stops\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
        assert receive(connection) == b""  # nginx closes without a response
    assert not [line for line in service.requests("/predict") if line["request_id"] == "stops"]


def test_idle_uploads_of_one_client_block_nothing(port: int, service: Service) -> None:
    """They do not reach the service, so probes and predictions go on, even those of the same client."""
    with ExitStack() as stack:
        for _ in range(IDLE_UPLOADS):
            connection = stack.enter_context(connect(port))
            connection.sendall(POST + b"Content-Length: 100000\r\n\r\n" + bytes(1000))
        assert service.in_progress() == 0
        for probe in ("/ping", "/ready"):
            assert requests.get(f"http://127.0.0.1:{port}{probe}", timeout=60).status_code == 200
        assert predict(port).status_code == 200


def test_a_client_has_a_limited_number_of_requests_in_progress(
    start: Callable[..., int], service: Service
) -> None:
    limit = 10
    port = start(service.address, changes={"limit_conn clients 1000": f"limit_conn clients {limit}"})
    model = b"GET /model HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    with ExitStack() as stack:
        for _ in range(2 * limit):  # some are refused, the others stay
            connection = stack.enter_context(connect(port))
            connection.sendall(POST + b"Content-Length: 1000\r\n\r\n" + b"x")
        answer = _until(lambda: exchange(port, model)[0], lambda answer: answer.status == 429)
        assert answer.error_code == "too_many_requests"
        assert answer.headers["retry-after"] == "1"
        assert requests.get(f"http://127.0.0.1:{port}/ready", timeout=60).status_code == 200
        assert exchange(port, model, source="127.0.0.2")[0].status == 200  # another client
    _until(lambda: exchange(port, model)[0], lambda answer: answer.status == 200)


def _drip(connection: socket.socket, piece: bytes) -> bytes:
    """Send a piece every 0.2 s until the peer closes the connection; return its response.

    Raises:
        AssertionError: the connection is still open after a minute.
    """
    connection.settimeout(0.2)
    for _ in range(300):
        with suppress(TimeoutError):
            return receive(connection)
        try:
            connection.sendall(piece)
        except ConnectionError:
            return b""
    raise AssertionError("the connection is still open")


def _until(get: Callable[[], Response], condition: Callable[[Response], bool]) -> Response:
    deadline = time.monotonic() + 60
    while not condition(found := get()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found

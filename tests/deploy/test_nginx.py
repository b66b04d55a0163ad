"""nginx with deploy/nginx.conf keeps slow, huge and ambiguous requests away from a real service."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from serving.config import ServeConfig
from tests.deploy.proxy import (
    NGINX,
    PLACEHOLDERS,
    TEMPLATE,
    Response,
    Service,
    connect,
    exchange,
    free_port,
    nginx,
    receive,
)
from tests.deploy.files import ROOT, read_yaml
from tests.scorer_folders import write_scorer_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx-light)"),
]

PHOTO = (ROOT / "serving/examples/cat.jpg").read_bytes()
HOST = b"Host: localhost\r\n"
POST = b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Type: image/jpeg\r\n"
CLOSE = b"Connection: close\r\n"
# A request hidden in the body of another one; no test asks for this route otherwise.
HIDDEN = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
IDLE_UPLOADS = 500


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("proxied")
    service = Service(folder, write_scorer_folder(folder / "scorer"))
    try:
        yield service.wait()
    finally:
        service.stop()


@pytest.fixture(scope="module")
def port(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an nginx with the configuration as it is shipped."""
    with nginx(tmp_path_factory.mktemp("nginx"), service.address) as port:
        yield port


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Start further instances of nginx; they end with the test."""
    with ExitStack() as stack:
        yield lambda upstream, **options: stack.enter_context(nginx(tmp_path / "nginx", upstream, **options))


class Recorder:
    """An upstream that keeps the bytes of each request and answers with 204; `silent` never answers."""

    def __init__(self, silent: bool = False) -> None:
        self.received: list[bytes] = []
        self._silent = silent
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.received.append(connection.recv(65536))
                if not self._silent:
                    connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                else:
                    connection.recv(1)  # until nginx closes

    def headers(self) -> dict[str, str]:
        """Return the headers of the last request, with names in lower case."""
        lines = self.received[-1].decode().partition("\r\n\r\n")[0].split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


def predict(port: int, body: bytes = PHOTO, **options: object) -> requests.Response:
    headers = {"Content-Type": "image/jpeg"}
    return requests.post(f"http://127.0.0.1:{port}/predict", data=body, headers=headers, timeout=60)


# --- requests that pass ---


def test_every_route_is_answered_as_without_nginx(port: int, service: Service) -> None:
    for path in ("/", "/page/main.js", "/ping", "/health", "/ready", "/model", "/docs", "/openapi.json"):
        direct = requests.get(f"http://{service.address}{path}", timeout=60)
        proxied = requests.get(f"http://127.0.0.1:{port}{path}", timeout=60)
        assert proxied.status_code == direct.status_code == 200, path
        assert proxied.headers["Content-Type"] == direct.headers["Content-Type"], path
    assert predict(port).json()["predictions"][0]["label"]


def test_a_chunked_upload_is_answered(port: int) -> None:
    answer = requests.post(
        f"http://127.0.0.1:{port}/predict", data=iter([PHOTO]), headers={"Content-Type": "image/jpeg"}, timeout=60
    )
    assert answer.json()["predictions"][0]["label"]


def test_request_ids_pass_in_both_directions(port: int) -> None:
    url = f"http://127.0.0.1:{port}/model"
    assert requests.get(url, headers={"X-Request-ID": "abc.1"}, timeout=60).headers["X-Request-ID"] == "abc.1"
    ids = [requests.get(url, timeout=60).headers["X-Request-ID"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_errors_of_the_service_pass_unchanged(port: int, service: Service) -> None:
    for path, body in (("/predict", b"no image"), ("/nowhere", PHOTO), ("/feedback", b"{}")):
        direct = requests.post(f"http://{service.address}{path}", data=body, timeout=60)
        proxied = requests.post(f"http://127.0.0.1:{port}{path}", data=body, timeout=60)
        assert direct.status_code >= 400
        assert (proxied.status_code, proxied.json()) == (direct.status_code, direct.json())


def test_one_connection_carries_several_requests(port: int) -> None:
    ping = b"GET /ping HTTP/1.1\r\n" + HOST
    answers = exchange(port, ping + b"\r\n" + ping + CLOSE + b"\r\n")
    assert [answer.status for answer in answers] == [200, 200]


# --- headers that the service believes ---


def test_a_client_cannot_set_the_forwarded_headers(start: Callable[..., int], recorder: Recorder) -> None:
    port = start(recorder.address)
    forged = {
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "example.org",
        "X-Forwarded-Port": "1",
        "X-Forwarded-Prefix": "/elsewhere",
        "X-Real-IP": "192.0.2.1",
        "X_Forwarded_For": "192.0.2.1",
        "Forwarded": "for=192.0.2.1",
    }
    requests.get(f"http://127.0.0.1:{port}/", headers=forged, timeout=60)
    headers = recorder.headers()
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["host"] == f"127.0.0.1:{port}"
    others = {name.lower() for name in forged} - {"x-forwarded-for", "x-forwarded-proto"}
    assert not others & headers.keys()


def test_the_service_logs_the_address_of_the_client(port: int, service: Service) -> None:
    request = b"GET /model HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n" + HOST + CLOSE + b"\r\n"
    (answer,) = exchange(port, request, source="127.0.0.9")
    line = _logged(service, "/model", answer.headers["x-request-id"])
    assert line["client"] == "127.0.0.9"


def test_a_trusted_proxy_reports_address_and_scheme(start: Callable[..., int], recorder: Recorder) -> None:
    port = start(recorder.address, changes={"#set_real_ip_from 10.0.0.0/8;": "set_real_ip_from 127.0.0.1;"})
    headers = {"X-Forwarded-For": "198.51.100.1, 192.0.2.1", "X-Forwarded-Proto": "https"}
    requests.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=60)
    assert recorder.headers()["x-forwarded-for"] == "192.0.2.1"
    assert recorder.headers()["x-forwarded-proto"] == "https"


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        (b"/", b"localhost:8000", "localhost:8000"),
        (b"/", b"[::1]:8000", "[::1]:8000"),
        (b"http://localhost:8000/", b"localhost:8000", "localhost:8000"),
        (b"http://evil.example/", b"localhost", "evil.example"),
    ],
)
def test_the_service_sees_the_host_that_the_client_named(
    start: Callable[..., int], recorder: Recorder, target: bytes, host: bytes, expected: str
) -> None:
    port = start(recorder.address)
    exchange(port, b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + CLOSE + b"\r\n")
    assert recorder.headers()["host"] == expected
    assert recorder.received[-1].startswith(b"GET / HTTP/1.1\r\n")


def test_the_service_refuses_an_absolute_address_of_another_host(port: int) -> None:
    request = b"GET http://evil.example/model HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    (answer,) = exchange(port, request)
    assert (answer.status, answer.error_code) == (400, "unknown_host")


def test_the_service_gets_whole_bodies_with_a_length(start: Callable[..., int], recorder: Recorder) -> None:
    port = start(recorder.address)
    exchange(port, POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    headers = recorder.headers()
    assert headers["content-length"] == "5"
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert recorder.received[-1].endswith(b"\r\n\r\nabcde")


# --- refusals of nginx itself ---


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        pytest.param(
            b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 9000 + b"\r\n\r\n", 431, "headers_too_large", id="line"
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
        pytest.param(b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405, "wrong_method", id="TRACE"),
        pytest.param(b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 505, "not_http", id="version"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "not_http", id="no host"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "not_http", id="TLS"),
    ],
)
def test_a_refusal_has_the_form_of_the_service(port: int, request_bytes: bytes, status: int, code: str) -> None:
    (answer,) = exchange(port, request_bytes)
    assert (answer.status, answer.error_code) == (status, code)
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_with_an_answer_and_not_with_a_reset(port: int, chunked: bool) -> None:
    piece = bytes(2**20)
    if chunked:
        request = POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + piece + b"\r\n") * 40
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


def test_a_service_that_hangs_gives_504(start: Callable[..., int]) -> None:
    hanging = Recorder(silent=True)
    answer = predict(start(hanging.address, changes={"proxy_read_timeout 35s": "proxy_read_timeout 1s"}))
    hanging.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert len(hanging.received) == 1  # it is not sent again


# --- slow clients ---


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
    """The service sees none of them, so that probes and predictions go on, even those of the same client."""
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


# --- request smuggling ---

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
    "encoding after bare CR": b"X: y\rTransfer-Encoding: chunked\r\n" + LENGTH % (len(HIDDEN) + 5) + b"\r\n0\r\n\r\n",
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
    _logged(service, "/model", marker)
    assert not service.requests("/version")


def test_a_body_that_looks_like_a_request_stays_a_body(port: int, service: Service) -> None:
    """On a connection that is kept open, too."""
    request = POST + LENGTH % len(HIDDEN) + b"\r\n" + HIDDEN + b"GET /ping HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    refused, ping = exchange(port, request)
    assert refused.status >= 400
    assert ping.status == 200
    assert not service.requests("/version")


# --- below a prefix ---


def test_the_service_can_be_below_a_prefix(start: Callable[..., int], service: Service) -> None:
    url = f"http://127.0.0.1:{start(service.address, prefix='/cifar')}"
    page = requests.get(f"{url}/cifar", timeout=60)  # follows the redirection
    assert page.url == f"{url}/cifar/"
    assert "page/main.js" in page.text
    assert requests.get(f"{url}/cifar/page/main.js", timeout=60).status_code == 200
    assert requests.get(f"{url}/cifar/ready", timeout=60).status_code == 200
    answer = requests.post(f"{url}/cifar/predict", files={"file": PHOTO}, timeout=60)
    assert answer.json()["predictions"][0]["label"]
    for outside in ("/", "/ready", "/cifarette/ready"):
        refused = requests.get(url + outside, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


def test_the_service_is_told_the_prefix(start: Callable[..., int], recorder: Recorder) -> None:
    port = start(recorder.address, prefix="/cifar")
    exchange(port, b"GET /cifar/model?a=%20b HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
    assert recorder.received[-1].startswith(b"GET /model?a=%20b HTTP/1.1\r\n")
    assert recorder.headers()["x-forwarded-prefix"] == "/cifar"


# --- the deployments fit the template ---


def test_compose_sets_every_placeholder_and_the_limit_of_the_service() -> None:
    services = read_yaml("compose.yaml")["services"]
    given = services["proxy"]["environment"]
    _check_values(given)
    assert given["LISTEN"] == services["proxy"]["ports"][0].rpartition(":")[2]
    assert f"--port={given['UPSTREAM'].rpartition(':')[2]}" in services["service"]["command"]
    assert given["UPSTREAM"].partition(":")[0] in services


def _check_values(given: dict[str, str]) -> None:
    # The image finds the resolvers itself if the second variable is set.
    assert given.keys() & PLACEHOLDERS == PLACEHOLDERS - {"NGINX_LOCAL_RESOLVERS"}
    assert given["NGINX_ENTRYPOINT_LOCAL_RESOLVERS"]
    assert int(given["MAX_BODY_MB"]) == ServeConfig().max_body_mb


def test_nginx_waits_longer_than_the_service_works() -> None:
    assert f"proxy_read_timeout {ServeConfig().request_timeout + 5:.0f}s" in TEMPLATE


# --- helpers ---


def _drip(connection: socket.socket, piece: bytes) -> bytes:
    """Send a piece every 0.2 s until the peer closes the connection, at most a minute; return its response."""
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


def _logged(service: Service, route: str, request_id: str) -> dict[str, object]:
    """Return the log line of a request, which is written shortly after the response."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in service.requests(route):
            if line["request_id"] == request_id:
                return line
        time.sleep(0.05)
    raise AssertionError(f"request {request_id} is not in the log")

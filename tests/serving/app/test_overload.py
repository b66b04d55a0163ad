"""Limits on concurrent requests: a busy server refuses images and still answers other requests."""

import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest
import requests

from serving.app.admission import MAX_UPLOADS
from tests.serving.app.conftest import RED, Answer, Server, Store, image, read_answer, until
from tests.serving.test_models_serve import CSV, text

pytestmark = pytest.mark.slow

LIMIT = 4
PROBES = ("/ping", "/health", "/ready")
# Starts the command with a limit below what the tests need: the server has to raise it.
FEW_OPEN_FILES = (
    "-c",
    "import resource, runpy; "
    "resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1])); "
    "runpy.run_module('cifar_mlflow', run_name='__main__')",
)


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    """Set the limit on open files of this process."""
    previous = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, previous[1]), previous[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, previous)


@contextmanager
def kept_busy(server: Server) -> Iterator[None]:
    """Keep more requests waiting than the server accepts."""
    photo = image("lime", (3000, 3000), "jpeg")
    stop = threading.Event()

    def send_requests() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                session.post(
                    f"{server.url}/predict", data=photo, headers={"Content-Type": "image/jpeg"}, timeout=60
                )

    with ThreadPoolExecutor(3 * LIMIT) as pool:
        clients = [pool.submit(send_requests) for _ in range(3 * LIMIT)]
        try:
            until(lambda: server.predict().status_code == 503)
            yield
        finally:
            stop.set()
    for client in clients:
        client.result()


@pytest.fixture(scope="module")
def small(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server with a small limit."""
    options = ("--queue-limit", str(LIMIT))
    server = Server(tmp_path_factory.mktemp("small"), shared_store.uri, *options, program=FEW_OPEN_FILES)
    try:
        yield server.wait()
    finally:
        server.stop()


@pytest.fixture
def full(small: Server) -> Iterator[Server]:
    with kept_busy(small):
        yield small


def head(size: int, *more: str) -> bytes:
    lines = ("Host: localhost", "Content-Type: image/png", f"Content-Length: {size}", *more)
    return ("POST /predict HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()


def refused(server: Server, *parts: bytes) -> tuple[socket.socket, Answer]:
    """Repeat a request until it is answered with 503; return its connection, and the answer.

    An accepted request whose body is incomplete gets no answer: try again, as the next may be refused.
    """
    for _ in range(200):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with suppress(TimeoutError):
            for part in parts:
                connection.sendall(part)
            answer = read_answer(connection)
            if answer.status == 503:
                connection.settimeout(30)
                return connection, answer
        connection.close()
    pytest.fail("never refused")


def test_a_refusal_tells_when_to_try_again_and_keeps_the_connection(full: Server) -> None:
    connection, answer = refused(full, head(len(RED), "X-Request-ID: mine") + RED)
    with connection:
        assert answer.code == "overloaded"
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"] == "mine"
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(connection).status == 200


def test_the_body_of_a_refused_request_is_not_taken_for_a_request(full: Server) -> None:
    smuggled = b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3
    connection, answer = refused(full, head(2 * len(smuggled)), smuggled)
    with connection:
        assert answer.headers["connection"] == "close"
        connection.sendall(smuggled)
        assert connection.recv(1) == b""


def test_a_large_body_of_a_refused_request_is_read_before_the_connection_is_closed(full: Server) -> None:
    size = 12 * 2**20
    connection, _ = refused(full, head(size, "Connection: close"), bytes(size))
    with connection:
        assert connection.recv(1) == b""


def test_other_routes_are_answered(full: Server) -> None:
    for route in (*PROBES, "/metrics", "/model", "/"):
        assert requests.get(full.url + route, timeout=30).ok, route
    counted = 'cifar_requests_total{route="/predict",status="503"}'
    assert counted in requests.get(f"{full.url}/metrics", timeout=30).text
    until(lambda: any(line.get("event") == "overloaded" and line["turned_away"] for line in full.lines()))


def test_after_an_overload_all_requests_are_accepted(small: Server) -> None:
    with kept_busy(small):
        for _ in range(50):  # clients that disconnect at once
            with socket.create_connection(("127.0.0.1", small.port), timeout=30) as connection:
                connection.sendall(head(len(RED)) + RED)
    until(lambda: small.predict().ok)
    with ThreadPoolExecutor(LIMIT) as pool:
        assert all(answer.ok for answer in pool.map(lambda _: small.predict(), range(100)))


def test_slow_uploads_keep_nobody_out_and_probes_are_answered_however_many_there_are(small: Server) -> None:
    """Kubernetes kills a server whose probes are refused."""
    with open_files(2 * MAX_UPLOADS), ExitStack() as stack:

        def upload(count: int) -> None:
            for _ in range(count):
                connection = stack.enter_context(
                    socket.create_connection(("127.0.0.1", small.port), timeout=30)
                )
                connection.sendall(head(len(RED)) + RED[:-1])

        def uploading() -> float:
            text = requests.get(f"{small.url}/metrics", timeout=60).text
            (line,) = (line for line in text.splitlines() if line.startswith("cifar_requests_in_flight"))
            return float(line.split()[1])

        upload(400)
        assert all(requests.get(small.url + route, timeout=30).ok for route in PROBES)
        assert all(small.predict().ok for _ in range(20))
        upload(MAX_UPLOADS - 400)
        until(lambda: uploading() >= MAX_UPLOADS)
        assert small.predict().json()["error"]["code"] == "overloaded"
        assert small.post("/zebra-4711", RED).status_code == 503
        assert "zebra" not in requests.get(f"{small.url}/metrics", timeout=60).text
        assert all(requests.get(small.url + route, timeout=30).ok for route in (*PROBES, "/model"))
    until(lambda: small.predict().ok)


def test_probes_are_answered_when_the_memory_for_bodies_is_used_up(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--max-body-mb", "1").wait()
    size = 2**20
    with ExitStack() as stack:
        for _ in range(200):  # there is memory for 16, but on a busy machine the first may have timed out
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            with suppress(ConnectionError):
                connection.sendall(head(size) + bytes(size - 1))
            if server.predict().status_code == 503:
                break
        else:
            pytest.fail("never refused")
        assert all(requests.get(server.url + route, timeout=30).ok for route in (*PROBES, "/model"))
    until(lambda: server.predict().ok)


def test_answers_before_the_end_of_the_body_free_their_place(small: Server) -> None:
    early = b"POST /predict HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 3\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(4 * LIMIT):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", small.port), timeout=30))
            connection.sendall(early)
            assert read_answer(connection).status == 400
            connection.sendall(b"x")
        assert all(small.predict().ok for _ in range(10))


def test_one_client_with_many_pipelined_requests_keeps_nobody_out(small: Server) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as connection:
        connection.setblocking(False)
        try:
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
            connection.sendall((head(len(RED)) + RED) * 100)
        except BlockingIOError:  # the server reads no more, because the client reads no answers
            pass
        assert all(small.predict().ok for _ in range(20))


def test_a_table_waits_no_longer_than_a_request_may_take(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--request-timeout", "1").wait()
    row = text(image("lime", (2500, 2500)))
    table = "image\n" + f"{row}\n" * 150  # seconds of work
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.post("/invocations", table, CSV), range(6)))
    codes = [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]
    assert set(codes) == {(504, "timeout"), (503, "overloaded")}
    until(lambda: server.predict(RED).status_code == 200)


def test_feedback_that_waits_for_the_database_does_not_delay_images(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--request-timeout", "5").wait()
    photo = image("lime", (1500, 1500), "jpeg")  # decoded in a thread
    stop = threading.Event()

    def send_feedback(client: int) -> set[int]:
        found = set()
        while not stop.is_set():
            given = {"request_id": f"nobody-{client}", "correct": True}
            found.add(server.post("/feedback", given).status_code)
        return found

    with ThreadPoolExecutor(20) as pool:
        clients = [pool.submit(send_feedback, client) for client in range(20)]
        try:
            assert [server.predict(photo).status_code for _ in range(5)] == [200] * 5
        finally:
            stop.set()
    assert {status for client in clients for status in client.result()} == {404}

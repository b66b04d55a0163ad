"""What is turned away at the door while too many requests are inside, on real connections."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import requests

from tests.serving.app.conftest import RED, Server, Store, image, until
from tests.serving.test_models_serve import CSV, text

pytestmark = pytest.mark.slow

BUSY = 4


@pytest.fixture
def full(start: Callable[..., Server], shared_store: Store) -> Iterator[Server]:
    """A server that is kept full by requests of several pictures."""
    server = start(shared_store.uri, "--queue-limit", str(BUSY)).wait()
    with kept_busy(server):
        yield server


@contextmanager
def kept_busy(server: Server) -> Iterator[None]:
    photo = image("lime", (3000, 3000), "jpeg")
    over = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not over.is_set():
                session.post(
                    f"{server.url}/predict", data=photo, headers={"Content-Type": "image/jpeg"}, timeout=60
                )

    with ThreadPoolExecutor(3 * BUSY) as pool:
        asking = [pool.submit(ask) for _ in range(3 * BUSY)]
        try:
            until(lambda: server.predict().status_code == 503)
            yield
        finally:
            over.set()
    for each in asking:
        each.result()


def head(size: int, *more: str) -> bytes:
    lines = ("Host: localhost", "Content-Type: image/png", f"Content-Length: {size}", *more)
    return ("POST /predict HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer; the connection may stay."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or pytest.fail(f"closed after {data!r}")
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(first.split()[1]), headers, body


def turned_away(connection: socket.socket, *parts: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of the first 503 among the answers to what is sent again and again."""
    for _ in range(200):
        for part in parts:
            connection.sendall(part)
        status, headers, body = read_answer(connection)
        if status == 503:
            return headers, body
        assert status == 200, body
    pytest.fail("never turned away")


def test_the_answer_says_what_and_when_and_the_connection_stays(full: Server) -> None:
    with socket.create_connection(("127.0.0.1", full.port), timeout=30) as connection:
        for number in range(3):
            headers, body = turned_away(connection, head(len(RED), f"X-Request-ID: mine-{number}") + RED)
            assert json.loads(body)["error"]["code"] == "overloaded"
            assert headers["retry-after"] == "1"
            assert headers["content-type"] == "application/json"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-request-id"] == f"mine-{number}"


def test_a_body_that_comes_later_is_thrown_away_and_no_request_of_its_own(full: Server) -> None:
    smuggled = b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3
    with socket.create_connection(("127.0.0.1", full.port), timeout=30) as connection:
        for _ in range(100):
            connection.sendall(head(len(smuggled)))
            connection.sendall(smuggled)
            status, _, body = read_answer(connection)
            assert status in (400, 503), body
            if status == 503:
                break
        else:
            pytest.fail("never turned away")
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_who_wants_to_close_is_closed(full: Server) -> None:
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", full.port), timeout=30) as connection:
            connection.sendall(head(len(RED), "Connection: close") + RED)
            status, headers, _ = read_answer(connection)
            assert connection.recv(1) == b""
            if status == 503:
                assert headers["connection"] == "close"
                return
    pytest.fail("never turned away")


def test_what_brings_no_picture_is_answered(full: Server) -> None:
    for route in ("/ready", "/metrics", "/model", "/"):
        assert requests.get(full.url + route, timeout=30).ok, route
    counted = 'cifar_requests_total{route="/predict",status="503"}'
    assert counted in requests.get(f"{full.url}/metrics", timeout=30).text
    until(lambda: any(line.get("event") == "overloaded" and line["turned_away"] for line in full.lines()))


def test_afterwards_everybody_is_let_in(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--queue-limit", str(BUSY)).wait()
    with kept_busy(server):
        for _ in range(50):  # clients that hang up as soon as they have asked
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                connection.sendall(head(len(RED)) + RED)
    until(lambda: server.predict().ok)
    with ThreadPoolExecutor(BUSY) as pool:
        assert all(answer.ok for answer in pool.map(lambda _: server.predict(), range(100)))


def test_slow_bodies_keep_nobody_out(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--queue-limit", str(BUSY)).wait()
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(BUSY + 2)]
    try:
        for connection in connections:
            connection.sendall(head(len(RED)) + RED[:-1])
        assert all(server.predict().ok for _ in range(20))
    finally:
        for connection in connections:
            connection.close()


def test_answers_that_overtake_their_body_leave_the_door_open(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--queue-limit", str(BUSY)).wait()
    early = b"POST /predict HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 1\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(2 * BUSY):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            connection.sendall(early)
            assert read_answer(connection)[0] == 400
            connection.sendall(b"x")
        time.sleep(0.5)  # that it is read
        assert server.predict().ok


def test_one_client_that_asks_for_much_at_once_keeps_nobody_out(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--queue-limit", str(BUSY)).wait()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(
            b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
        )  # and reads nothing
        connection.sendall((head(len(RED)) + RED) * 100)
        assert all(server.predict().ok for _ in range(20))


def test_a_table_does_not_wait_for_its_turn_longer_than_a_request_may_take(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--request-timeout", "1").wait()
    row = text(image("lime", (2500, 2500)))
    table = "image\n" + f"{row}\n" * 150  # seconds of work
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.post("/invocations", table, CSV), range(6)))
    codes = [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]
    assert set(codes) == {(504, "timeout"), (503, "overloaded")}
    assert server.predict(RED).status_code == 200


def test_feedback_that_waits_for_the_database_keeps_no_picture_waiting(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--request-timeout", "5").wait()
    photo = image("lime", (1500, 1500), "jpeg")  # too large to be decoded between two requests
    over = threading.Event()

    def ask(client: int) -> set[int]:
        found = set()
        while not over.is_set():
            given = {"request_id": f"nobody-{client}", "correct": True}
            found.add(server.post("/feedback", given).status_code)
        return found

    with ThreadPoolExecutor(20) as pool:
        asking = [pool.submit(ask, client) for client in range(20)]
        try:
            assert [server.predict(photo).status_code for _ in range(5)] == [200] * 5
        finally:
            over.set()
    assert {status for each in asking for status in each.result()} == {404}

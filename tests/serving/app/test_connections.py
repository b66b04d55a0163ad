"""Clients that do not speak HTTP as they should: slow, endless, ambiguous, many, gone."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.serving.app.conftest import RED, Server, Store, until

pytestmark = pytest.mark.slow

HOST = b"Host: localhost\r\n"
POST = b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Type: image/png\r\n"
HIDDEN = b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n"


def statuses(answer: bytes) -> list[int]:
    return [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:]]


def code(answer: bytes) -> str:
    found: str = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    return found


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
def test_what_is_no_http_is_refused(server: Server, request_bytes: bytes) -> None:
    answer = server.send(request_bytes)
    assert statuses(answer) == [400]
    assert code(answer) == "not_http"


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
def test_a_length_that_two_could_read_differently_is_refused(server: Server, headers: bytes) -> None:
    """Else what a proxy takes for a body could be taken for the next request here."""
    answer = server.send(POST + headers + b"\r\n0\r\n\r\n" + HIDDEN)
    assert statuses(answer) == [400], answer


@pytest.mark.parametrize(
    "chunk", [b"zz\r\nab\r\n", b"-1\r\n\r\n", b"FFFFFFFFFFFFFFFFFF\r\n", b"2;" + b"x" * 70_000]
)
def test_a_chunk_that_is_none_is_refused(server: Server, chunk: bytes) -> None:
    answer = server.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"\r\n" + HIDDEN)
    assert 200 not in statuses(answer)
    assert len(statuses(answer)) <= 1


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"x" * 64_000 + b"\r\n\r\n",
        b"".join(b"X%d: x\r\n" % i for i in range(200)) + b"\r\n",
        b"X: " + b"x" * 1_000_000,  # without an end
    ],
)
def test_headers_that_are_too_large_are_refused(server: Server, headers: bytes) -> None:
    answer = server.send(b"GET /ping HTTP/1.1\r\n" + HOST, headers)
    assert statuses(answer) in ([431], []), answer[
        :200
    ]  # no answer arrives where bytes were still on their way
    assert server.predict().ok


def test_a_length_that_is_too_large_is_refused_before_the_body(server: Server) -> None:
    answer = server.send(POST + b"Connection: close\r\nContent-Length: 999999999\r\n\r\n", wait=5)
    assert statuses(answer) == [413]
    assert code(answer) == "too_large"


def test_a_body_without_a_length_is_refused_where_it_gets_too_large(server: Server) -> None:
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    answer = server.send(
        POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", *[chunk] * 17, b"0\r\n\r\n"
    )
    assert statuses(answer) == [413]


def test_a_client_may_wait_to_be_told_to_go_on(server: Server) -> None:
    head = POST + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(RED)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(RED)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_an_answer_comes_in_one_piece(server: Server) -> None:
    one = POST + b"Content-Length: %d\r\n\r\n" % len(RED) + RED
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for _ in range(50):
            connection.sendall(one)
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(body) in head
            assert b"predictions" in body


def test_an_answer_without_a_body_comes_at_once(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for _ in range(3):
            connection.sendall(b"HEAD /docs HTTP/1.1\r\n" + HOST + b"\r\n")
            answer = connection.recv(65536)
            assert statuses(answer) != []
            assert answer.endswith(b"\r\n\r\n")


def test_requests_one_after_the_other_are_answered_in_their_order(server: Server) -> None:
    one = POST + b"Content-Length: %d\r\n\r\n" % len(RED) + RED
    answer = server.send(one + HIDDEN + one.replace(b"Host", b"Connection: close\r\nHost"))
    assert statuses(answer) == [200, 200, 200]
    first, version, last = answer.split(b"HTTP/1.1 ")[1:]
    assert b"predictions" in first
    assert b"predictions" not in version
    assert b"predictions" in last


def test_a_slow_body_is_given_up(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--request-timeout", "1").wait()
    answer = server.send(POST + b"Content-Length: 1000\r\n\r\n" + RED[:10])
    assert statuses(answer) == [408]
    assert code(answer) == "too_slow"


def test_a_client_that_says_nothing_is_hung_up_on(server: Server) -> None:
    assert server.send(b"", wait=60) == b""
    begun = time.monotonic()
    assert statuses(server.send(b"GET /ping HTTP/1.1\r\n" + HOST, wait=60)) == []
    assert time.monotonic() - begun < 50  # it was the server that hung up


@pytest.mark.thorough
def test_a_blank_line_is_nothing_said(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\n" + HOST + b"\r\n")
        assert statuses(connection.recv(65536)) == [200]
        connection.sendall(b"\r\n")
        assert connection.recv(65536) == b""


@pytest.mark.thorough
def test_a_client_that_reads_nothing_is_cut_off(server: Server) -> None:
    ask = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n"
    before = sockets(server)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(200 * ask)
        time.sleep(5)
        assert sockets(server) == before + 1  # it is waited for
        until(lambda: sockets(server) == before, 60)
    assert server.predict().ok


def sockets(server: Server) -> int:
    folder = Path(f"/proc/{server.process.pid}/fd")
    return sum(str(each.readlink()).startswith("socket:") for each in folder.iterdir())


@pytest.mark.thorough
def test_a_slow_body_behind_another_request_has_the_time_of_any(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--request-timeout", "60").wait()
    head = POST + b"Content-Length: %d\r\n" % len(RED)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + b"\r\n" + RED + head + b"Connection: close\r\n\r\n")
        for place in range(40):  # seconds, more than any other bound
            connection.sendall(RED[place : place + 1])
            time.sleep(1)
        connection.sendall(RED[40:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert statuses(answer) == [200, 200]


def test_clients_that_hang_up_leave_nothing_behind(server: Server) -> None:
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(POST + b"Content-Length: 1000\r\n\r\n" + RED[:10])
    metric = "cifar_requests_in_flight"

    def inside() -> float:
        text = requests.get(f"{server.url}/metrics", timeout=60).text
        return float(next(line for line in text.splitlines() if line.startswith(metric)).split()[-1])

    until(lambda: inside() <= 1)  # the one that asks
    gone = [line for line in server.lines() if line.get("status") == 499]
    assert len(gone) >= 50


def test_many_idle_connections_keep_nobody_out(server: Server) -> None:
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(400)]
    try:
        assert server.predict().ok
    finally:
        for connection in connections:
            connection.close()


def send_on(connection: socket.socket, data: bytes) -> None:
    for _ in range(200):
        connection.sendall(data)
        time.sleep(0.01)


def test_trailers_are_no_headers_and_bounded(server: Server) -> None:
    body = b"%x\r\n%s\r\n" % (len(RED), RED)
    chunked = POST + b"X-Request-ID: mine\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    answer = server.send(chunked + b"0\r\nX-Request-ID: theirs\r\nHost: elsewhere\r\n\r\n")
    assert statuses(answer) == [200]
    assert b"x-request-id: mine\r\n" in answer
    for endless in (b"a: b\r\n" * 2000, b"a" * 8000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(chunked + b"0\r\na: ")
            with pytest.raises(ConnectionError):
                send_on(connection, endless)


def test_the_body_of_an_upgrade_is_no_request(server: Server) -> None:
    upgrade = b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)
    assert statuses(server.send(POST + upgrade, HIDDEN)) == [400]
    get = b"GET /version HTTP/1.1\r\n" + HOST + b"Connection: upgrade, close\r\nUpgrade: h2c\r\n\r\n"
    assert statuses(server.send(get)) == [200]


ONE = POST + b"Content-Length: %d\r\n\r\n" % len(RED) + RED
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(RED), RED)
MANY_HEADERS = b"GET /ping HTTP/1.1\r\n" + HOST + 101 * b"X: a\r\n" + b"\r\n"


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (MANY_HEADERS, 431),
        (b"GET /ping HTTP/1.1\r\nX: " + b"x" * 40_000, 431),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED, 400),
        (POST + b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n1", 400),
    ],
)
def test_what_is_refused_behind_good_requests_comes_after_their_answers(
    server: Server, bad: bytes, status: int
) -> None:
    answer = server.send(ONE + HIDDEN + ONE + bad)
    assert statuses(answer) == [200, 200, 200, status]
    assert b"predictions" in answer.split(b"HTTP/1.1 ")[3]
    assert server.predict().ok


def test_an_upgrade_that_is_not_made_swallows_no_request(server: Server) -> None:
    upgrade = b"GET /version HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    answer = server.send(upgrade + HIDDEN + ONE.replace(b"Host", b"Connection: close\r\nHost"))
    assert statuses(answer) == [200, 200, 200]


def test_thousands_of_requests_at_once_wait_outside(server: Server) -> None:
    """Unpacked, each of these would take kilobytes."""

    def megabytes() -> float:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    server.predict()
    before = megabytes()
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(40)]
    for connection in connections:
        connection.setblocking(False)
        with suppress(BlockingIOError):
            connection.send(4000 * (b"GET /ping HTTP/1.1\r\n" + HOST + b"\r\n"))
    assert server.predict().ok
    assert megabytes() < before + 50
    for connection in connections:
        connection.close()
    server.process.poll()
    assert server.predict().ok


def test_requests_one_after_the_other_are_all_answered_however_many(server: Server) -> None:
    last = b"GET /version HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    answer = server.send(300 * HIDDEN + 20 * ONE + last, wait=60)
    assert statuses(answer) == 321 * [200]


def test_who_hangs_up_before_the_answer_is_noted_as_gone_and_is_no_fault(server: Server) -> None:
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        connection.sendall(5 * ONE)
        connection.close()
    assert server.predict().ok
    time.sleep(1)
    lines = server.lines()
    assert not [line for line in lines if line.get("level") == "error"]
    assert [line for line in lines if line.get("status") == 499]


def test_probes_may_ask_for_the_head_alone(server: Server) -> None:
    for path in ("/ping", "/ready", "/"):
        answer = requests.head(f"{server.url}{path}", timeout=30)
        assert (answer.status_code, answer.content) == (200, b"")

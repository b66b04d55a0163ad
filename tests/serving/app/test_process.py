"""The processes of the service: how they begin, share the work and end, and what a kill leaves."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests

from tests.serving.app.conftest import BLUE, RED, ROOT, Server, Store, children, image, until

pytestmark = pytest.mark.slow


def rows(server: Server) -> list[tuple[str, str]]:
    """Id and label of what is in the request log."""
    with sqlite3.connect(f"file:{server.folder / 'requests.db'}?mode=ro", uri=True) as log:
        return log.execute("select request_id, label from request_log").fetchall()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_was_accepted_is_answered_before_the_end(
    start: Callable[..., Server], shared_store: Store, signum: int
) -> None:
    server = start(shared_store.uri).wait()
    photo = image("lime", (3000, 3000), "jpeg")
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    )
    connections = []
    for _ in range(12):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        connection.sendall(head % len(photo) + photo)
        connections.append(connection)
    until(lambda: sum(line.get("event") == "request" for line in server.lines()) >= 1)
    server.process.send_signal(signum)
    answers = []
    for connection in connections:
        with connection:
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            answers.append(answer)
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers), answers
    assert all(json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"] for answer in answers)
    assert server.process.wait(60) == 0
    assert len(rows(server)) == 12
    assert "Traceback" not in server.log.read_text()


def test_workers_share_the_work_and_are_replaced(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--workers", "2").wait()
    for _ in range(60):
        assert server.predict(BLUE).json()["predictions"][0]["label"] == "blue"
    counted = 'cifar_requests_total{route="/predict",status="200"} 60.0'
    # The worker that is asked counts its own at once; the other one does so a moment later.
    until(lambda: counted in requests.get(f"{server.url}/metrics", timeout=60).text)
    workers = children(server.process.pid)
    assert len(workers) >= 2
    time.sleep(1)  # the rows of the last second go with a worker that is killed
    os.kill(workers[-1], signal.SIGKILL)
    until(lambda: len(set(children(server.process.pid)) - set(workers)) >= 1)

    def answered() -> bool:
        try:
            return server.predict().ok
        except requests.ConnectionError:  # what the killed one had in its hands
            return False

    assert until(lambda: all(answered() for _ in range(20)))
    assert server.stop() == 0
    assert len(rows(server)) >= 60


def test_a_worker_that_dies_before_it_is_heard_of_is_replaced_and_said(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--workers", "2").wait()
    first = set(children(server.process.pid))
    os.kill(max(first), signal.SIGKILL)
    second = until(lambda: set(children(server.process.pid)) - first)
    os.kill(max(second), signal.SIGKILL)  # in the midst of its imports
    until(lambda: set(children(server.process.pid)) - first - second, 30)

    def replaced() -> list[dict[str, Any]]:
        return [line for line in server.lines() if line.get("event") == "worker replaced"]

    until(lambda: len(replaced()) == 2)  # it is said once the new one has begun
    assert [(line["worker"], line["ended_by"]) for line in replaced()] == [
        (max(first), "SIGKILL"),
        (max(second), "SIGKILL"),
    ]
    assert server.stop() == 0


def test_a_worker_that_hangs_is_killed_at_the_end(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--workers", "2", "--request-timeout", "1").wait()
    hung = max(children(server.process.pid))
    os.kill(hung, signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(40) == 0
    (said,) = [line for line in server.lines() if line.get("event") == "worker killed, it did not end"]
    assert said["worker"] == hung


def test_with_its_parent_killed_no_worker_keeps_the_port(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--workers", "2").wait()
    os.kill(server.process.pid, signal.SIGKILL)
    until(lambda: socket.socket().connect_ex(("127.0.0.1", server.port)) != 0)


def test_a_kill_loses_at_most_the_last_second_of_the_request_log(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri).wait()
    ids = [server.predict(picture).json()["request_id"] for picture in (RED, BLUE)]
    time.sleep(1)
    server.predict()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert set(zip(ids, ("red", "blue"), strict=True)) <= set(rows(server))


def test_the_log_of_the_process_has_a_line_of_json_for_each_request(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--request-log", "none").wait()
    request_id = server.predict(headers={"X-Request-ID": "mine-1"}).headers["X-Request-ID"]
    server.predict(b"no picture")
    server.stop()
    said = [line for line in server.lines() if line.get("event") == "request"]
    assert (said[0]["request_id"], said[0]["route"], said[0]["status"]) == (request_id, "/predict", 200)
    assert (said[1]["status"], said[1]["error"]) == (400, "not_an_image")
    assert not (server.folder / "requests.db").exists()


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="pipes of packets are Linux's")
def test_lines_of_the_log_are_written_so_that_other_workers_cannot_tear_them(
    shared_store: Store, tmp_path: Path
) -> None:
    # Each write is a packet of its own, and one that is longer than what a pipe keeps whole becomes several.
    reading, writing = os.pipe2(os.O_DIRECT)
    process, url = _begin(shared_store, tmp_path, writing)
    os.close(writing)
    packets: list[bytes] = []

    def read() -> None:
        while packet := os.read(reading, 65536):
            packets.append(packet)

    reader = Thread(target=read)
    reader.start()
    try:
        until(lambda: _is_up(url), 120)
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            one = b"GET /version HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
            connection.sendall(300 * (one % b"") + one % b"Connection: close\r\n")
            while connection.recv(65536):
                pass
    finally:
        process.terminate()
        process.wait(60)
        reader.join(60)
        os.close(reading)
    lines = [packet for packet in packets if b'"route": "/version"' in packet]
    assert b"".join(lines).count(b'"event": "request"') == 301
    assert len(lines) < 301, "the lines of a moment are written together"
    for packet in lines:
        assert packet.endswith(b"\n")
        assert all(json.loads(line) for line in packet.splitlines())


def test_a_log_that_nobody_takes_stops_nothing(shared_store: Store, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process, url = _begin(shared_store, tmp_path, writing)
    os.close(writing)
    try:
        until(lambda: _is_up(url), 120)
        os.close(reading)
        for _ in range(3):
            answer = requests.post(
                f"{url}/predict", data=RED, headers={"Content-Type": "image/png"}, timeout=60
            ).json()
            said = {"request_id": answer["request_id"], "correct": True}
            assert requests.post(f"{url}/feedback", json=said, timeout=60).status_code == 204
            assert requests.get(f"{url}/metrics", timeout=60).status_code == 200
    finally:
        process.terminate()
        assert process.wait(60) == 0
    with sqlite3.connect(tmp_path / "requests.db") as log:
        assert log.execute("select count(*), sum(feedback_correct) from request_log").fetchall() == [(3, 3)]


def _begin(store: Store, folder: Path, stderr: int) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_mlflow", "serve", "--port", str(port)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store.uri},
        stderr=stderr,
    )
    return process, f"http://127.0.0.1:{port}"


def _is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=60).ok
    except requests.ConnectionError:
        return False


def test_pictures_are_kept_if_asked_for(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--images-dir", "kept").wait()
    for picture in (RED, RED, BLUE):
        server.predict(picture)
    server.stop()
    kept = [path for path in (server.folder / "kept").rglob("*") if path.is_file()]
    assert sorted(path.read_bytes() for path in kept) == sorted([RED, BLUE])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--api-key", "short"), "16 characters"),
        (("--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
        (("--request-log", "mysql://localhost/x"), "request log"),
        (("--request-log", "sqlite:////no/such/folder/requests.db"), "request log"),
        (("--workers", "0"), "workers"),
        (("--model-uri", "models:/cifar10/99"), "models:/cifar10/99"),
    ],
)
def test_what_cannot_be_served_so_is_said_in_a_line(
    start: Callable[..., Server], shared_store: Store, options: tuple[str, str], said: str
) -> None:
    server = start(shared_store.uri, *options)
    assert server.process.wait(120) in (1, 2)
    text = server.log.read_text()
    assert "Error: " in text
    assert said in text
    assert "Traceback" not in text
    assert "short" not in text.replace("too short", "") or options[0] != "--api-key"


def test_a_port_that_is_taken_is_said(start: Callable[..., Server], shared_store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start(shared_store.uri, "--port", str(taken.getsockname()[1]))
        assert server.process.wait(120) == 2
    assert "cannot listen on 127.0.0.1:" in server.log.read_text()
    assert "--port chooses another" in server.log.read_text()

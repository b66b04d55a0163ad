"""The server processes: start, workers, signals, orderly stop, and what survives a kill."""

import json
import os
import pty
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
import requests
from click.testing import CliRunner, Result

from cifar_mlflow.cli import main
from serving.registry.mlflow_server import free_port
from tests.serving.app.conftest import BLUE, LIME, RED, ROOT, Server, Store, children, image, until

pytestmark = pytest.mark.slow


def rows(server: Server) -> list[tuple[str, str]]:
    """Return the id and label of each row of the request log."""
    with sqlite3.connect(f"file:{server.folder / 'requests.db'}?mode=ro", uri=True) as log:
        return log.execute("select request_id, label from request_log").fetchall()


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGTERM,
        *(pytest.param(signum, marks=pytest.mark.thorough) for signum in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_accepted_requests_are_answered_before_the_process_ends(
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


def test_a_second_ctrl_c_cuts_open_requests_off_without_a_traceback(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri).wait()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 9999\r\n\r\n")
        assert connection.recv(25).startswith(b"HTTP/1.1 100 ")  # the route reads the body
        server.process.send_signal(signal.SIGINT)
        until(lambda: socket.socket().connect_ex(("127.0.0.1", server.port)) != 0)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
    log = server.log.read_text()
    assert "Open request cut off" in log
    assert "Traceback" not in log


def test_workers_share_the_work_and_are_replaced(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--workers", "2").wait()
    for _ in range(60):
        assert server.predict(BLUE).json()["predictions"][0]["label"] == "blue"
    counted = 'cifar_requests_total{route="/predict",status="200"} 60.0'
    # The worker that is asked counts its own requests at once, the other one a moment later.
    until(lambda: counted in requests.get(f"{server.url}/metrics", timeout=60).text)
    workers = children(server.process.pid)
    assert len(workers) == 2
    os.kill(workers[-1], signal.SIGKILL)
    until(lambda: len(set(children(server.process.pid)) - set(workers)) == 1)
    until(lambda: any(str(workers[-1]) in line.get("event", "") for line in server.lines()))

    def is_answered() -> bool:
        try:
            return server.predict().ok
        except requests.ConnectionError:  # the killed worker had accepted the connection
            return False

    assert until(lambda: all(is_answered() for _ in range(20)))
    assert server.stop() == 0


@pytest.mark.thorough
def test_workers_have_the_settings_of_the_command(start: Callable[..., Server], shared_store: Store) -> None:
    key, hosts = "correct horse battery staple", "127.0.0.1,*.example.org"
    options = ("--workers", "2", "--api-key", key, "--allowed-hosts", hosts, "--max-body-mb", "2")
    server = start(shared_store.uri, *options, "--request-log", "sqlite:///other.db").wait()
    assert server.predict().status_code == 401
    assert server.predict(headers={"X-API-Key": key, "Host": "a.example.org"}).ok
    assert server.predict(bytes(3 * 2**20), headers={"X-API-Key": key}).status_code == 413
    assert server.stop() == 0
    assert (server.folder / "other.db").exists()
    assert not (server.folder / "requests.db").exists()
    assert key not in server.log.read_text()


@pytest.mark.thorough
def test_workers_stop_when_their_parent_is_killed(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, "--workers", "2").wait()
    os.kill(server.process.pid, signal.SIGKILL)
    until(lambda: socket.socket().connect_ex(("127.0.0.1", server.port)) != 0)


@pytest.mark.thorough
@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs shared memory")
def test_the_metrics_of_a_killed_server_are_removed_by_the_next_one(
    start: Callable[..., Server], shared_store: Store
) -> None:
    def folders(server: Server) -> set[Path]:
        environment = Path(f"/proc/{children(server.process.pid)[0]}/environ").read_bytes()
        return {
            Path(os.fsdecode(entry.partition(b"=")[2]))
            for entry in environment.split(b"\0")
            if entry.startswith(b"PROMETHEUS_MULTIPROC_DIR=")
        }

    killed, living = (start(shared_store.uri, "--workers", "2").wait() for _ in range(2))
    (left,), (used,) = folders(killed), folders(living)
    os.killpg(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    assert left.is_dir()
    following = start(shared_store.uri, "--workers", "2").wait()
    assert not left.exists()
    assert used.is_dir()
    assert living.predict().ok
    (own,) = folders(following)
    assert following.stop() == living.stop() == 0
    assert not own.exists()
    assert not used.exists()


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


def test_the_process_logs_a_line_of_json_per_request(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--request-log", "none").wait()
    request_id = server.predict().json()["request_id"]
    server.predict(b"no picture")
    assert requests.get(f"{server.url}/page/main.js", timeout=60).ok
    server.stop()
    lines = [line for line in server.lines() if line.get("event") == "request"]
    assert (lines[0]["request_id"], lines[0]["route"], lines[0]["status"]) == (request_id, "/predict", 200)
    assert (lines[1]["status"], lines[1]["error"]) == (400, "not_an_image")
    assert len(lines) == 2  # none for a file of the page
    assert not (server.folder / "requests.db").exists()


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="pipes of packets are Linux's")
def test_lines_of_the_log_are_written_whole_because_workers_share_the_stream(
    shared_store: Store, tmp_path: Path
) -> None:
    # A pipe of packets: each write is one packet, or several if it is longer than a pipe writes atomically.
    reading, writing = os.pipe2(os.O_DIRECT)
    process, url = _start(shared_store, tmp_path, writing)
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
    for packet in lines:
        assert packet.endswith(b"\n")
        assert all(json.loads(line) for line in packet.splitlines())


def test_a_closed_standard_error_stops_nothing(shared_store: Store, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process, url = _start(shared_store, tmp_path, writing)
    os.close(writing)
    try:
        until(lambda: _is_up(url), 120)
        os.close(reading)
        for _ in range(3):
            answer = requests.post(
                f"{url}/predict", data=RED, headers={"Content-Type": "image/png"}, timeout=60
            ).json()
            given = {"request_id": answer["request_id"], "correct": True}
            assert requests.post(f"{url}/feedback", json=given, timeout=60).status_code == 204
            assert requests.get(f"{url}/metrics", timeout=60).status_code == 200
    finally:
        process.terminate()
        assert process.wait(60) == 0
    with sqlite3.connect(tmp_path / "requests.db") as log:
        assert log.execute("select count(*), sum(feedback_correct) from request_log").fetchall() == [(3, 3)]


def test_a_person_at_a_terminal_gets_the_address_and_readable_lines(
    shared_store: Store, tmp_path: Path
) -> None:
    terminal, stderr = pty.openpty()
    process, url = _start(shared_store, tmp_path, stderr)
    os.close(stderr)
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # at the end of the process
            while chunk := os.read(terminal, 65536):
                shown.extend(chunk)

    reader = Thread(target=read)
    reader.start()
    try:
        until(lambda: _is_up(url), 120)
        assert requests.get(f"{url}/version", timeout=60).ok
    finally:
        process.terminate()
        process.wait(60)
        reader.join(60)
        os.close(terminal)
    text = shown.decode()
    assert f"Open {url} in a browser. Ctrl-C stops the server." in text
    assert "route=/version" in text
    assert '{"' not in text


def _start(store: Store, folder: Path, stderr: int) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
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


def test_images_dir_keeps_each_image_once_and_ready_says_when_it_cannot(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--images-dir", "kept").wait()
    kept = server.folder / "kept"
    for picture in (RED, RED, BLUE):
        server.predict(picture)

    until(lambda: len(list(kept.glob("*.png"))) == 2)
    content = [path.read_bytes() for path in kept.rglob("*") if path.is_file()]
    assert sorted(content) == sorted([RED, BLUE])
    shutil.rmtree(kept)
    assert server.predict(LIME).ok
    until(lambda: server.ready()["problems"])
    problem = "the images of requests cannot be written; the log of the process says why"
    assert server.ready()["problems"] == [problem]
    assert "cifar_request_log_up 1.0" in requests.get(f"{server.url}/metrics", timeout=60).text.splitlines()


@pytest.fixture
def refused(shared_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `serve` in this process, with options for which it does not start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store.uri)

    def serve(*options: str) -> Result:
        result = CliRunner().invoke(main, ["serve", *options])
        assert isinstance(result.exception, SystemExit)  # anything else would be a traceback
        return result

    return serve


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--api-key", "short"), "16 characters"),
        (("--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
        (("--request-log", "mysql://localhost/x"), "request log"),
        (("--request-log", "sqlite:////no/such/folder/requests.db"), "request log"),
        (("--workers", "0"), "workers"),
        (("--model-uri", "models:/cifar10/99"), "models:/cifar10/99"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(
    refused: Callable[..., Result], options: tuple[str, str], message: str
) -> None:
    result = refused(*options)
    assert result.exit_code in (1, 2)
    assert "Error: " in result.stderr
    assert message in result.stderr
    assert "short" not in result.stderr.replace("too short", "") or options[0] != "--api-key"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("localhost", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("::", "::1"),
    ],
)
def test_a_port_that_is_taken_is_reported(refused: Callable[..., Result], first: str, second: str) -> None:
    if first == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    family = socket.AF_INET6 if first == "::" else socket.AF_INET
    with socket.create_server((first, 0), family=family, dualstack_ipv6=first == "::") as taken:
        result = refused("--host", second, "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    host = f"[{second}]" if ":" in second else second
    assert f"cannot listen on {host}:" in result.stderr
    assert "--port selects another port" in result.stderr


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.thorough)])
def test_of_two_servers_started_at_the_same_time_one_serves(
    start: Callable[..., Server], shared_store: Store, workers: str
) -> None:
    port = str(free_port())
    options = ("--port", port, "--workers", workers)
    servers = [start(shared_store.uri, *options), start(shared_store.uri, "--host", "localhost", *options)]
    until(lambda: any(server.process.poll() is not None for server in servers), 120)
    (loser,) = (server for server in servers if server.process.poll() is not None)
    (winner,) = (server for server in servers if server is not loser)
    assert loser.process.returncode == 2
    text = loser.log.read_text()
    assert "Traceback" not in text
    assert [line for line in text.splitlines() if "cannot listen on" in line] == text.splitlines()[-1:]
    assert winner.wait().predict().ok

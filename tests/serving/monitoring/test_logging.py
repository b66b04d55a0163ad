"""The log of the process on standard error, which must never block the event loop."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from serving.monitoring.logging import QUEUE_LINES
from tests.serving.app.conftest import BLUE, Store, shared_store
from tests.serving.monitoring.request_logs import wait_until

__all__ = ["shared_store"]  # a fixture

ROOT = Path(__file__).parents[3]

# An event loop that logs more than a pipe and the queue hold, and then prints `through`.
PROGRAM = """
import asyncio, logging, sys
from serving.monitoring.logging import QUEUE_LINES, log, set_up_logging, stderr_lines

async def main():
    set_up_logging()
    for number in range(int(sys.argv[1]) or 2 * QUEUE_LINES):
        log.info("structured", number=number)
        logging.getLogger("serving").warning("of the standard library %d", number)
    await asyncio.sleep(0)
    print("through", stderr_lines().dropped, flush=True)
    while sys.stdin.readline():
        log.info("one more")
        stderr_lines().drain(10)
        print("written", flush=True)

asyncio.run(main())
"""


class Program:
    """The program above, with a pipe as its standard error."""

    def __init__(self, events: int) -> None:
        self.reading, writing = os.pipe2(os.O_DIRECT)  # a pipe of packets: each write is one
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(events)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=writing,
            text=True,
        )
        os.close(writing)

    def next_output(self, seconds: float = 60) -> list[str]:
        """Return the words of the next line; fail if it does not come, because the process is blocked."""
        assert self.process.stdout
        watchdog = threading.Timer(seconds, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        assert line, "the event loop was blocked"
        return line.split()

    def ask_for_one_more_line(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(60)

    def read_packets(self) -> list[bytes]:
        """Read until the process ends; each packet is from one system call."""
        return list(iter(lambda: os.read(self.reading, 1 << 20), b""))


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.process.kill()
        program.process.wait()
        os.close(program.reading)
        for pipe in (program.process.stdin, program.process.stdout):
            assert pipe
            pipe.close()


def test_a_pipe_that_nobody_reads_does_not_block_the_event_loop(programs: list[Program]) -> None:
    programs.append(program := Program(events=0))
    word, dropped = program.next_output(30)
    assert word == "through"
    assert int(dropped) > 10_000
    # When the pipe is read again, the lines that waited come, and then the number of lost ones.
    packets: list[bytes] = []
    reader = threading.Thread(target=lambda: packets.extend(program.read_packets()))
    reader.start()
    for _ in range(2):
        program.ask_for_one_more_line()
        assert program.next_output() == ["written"]
    assert program.finish() == 0
    reader.join()
    lines = [json.loads(line) for line in b"".join(packets).splitlines()]
    numbers = [line["number"] for line in lines if line["event"] == "structured"]
    assert numbers == sorted(set(numbers))  # in their order; while the pipe fills, the queue may lose some
    # Every line was written or counted as lost, also the first "one more", which may find the queue full.
    lost = sum(line["lines"] for line in lines if line["event"] == "log lines dropped")
    written = sum(line["event"] != "log lines dropped" for line in lines)
    assert lost >= int(dropped)
    assert written + lost == 4 * QUEUE_LINES + 2
    assert lines[-1]["event"] == "one more"


@pytest.mark.slow
def test_a_process_ends_although_nobody_reads_its_log(programs: list[Program]) -> None:
    programs.append(program := Program(events=0))
    assert program.next_output(30)[0] == "through"
    assert program.finish() == 0


def test_a_closed_pipe_does_no_harm(programs: list[Program]) -> None:
    programs.append(program := Program(events=10))
    assert program.next_output() == ["through", "0"]
    os.close(program.reading)
    program.reading = os.open(os.devnull, os.O_RDONLY)
    for _ in range(3):
        program.ask_for_one_more_line()
        assert program.next_output() == ["written"]
    assert program.finish() == 0


def test_all_lines_are_written_before_the_process_ends_and_none_is_torn(programs: list[Program]) -> None:
    programs.append(program := Program(events=500))
    packets: list[bytes] = []
    reader = threading.Thread(target=lambda: packets.extend(program.read_packets()))
    reader.start()
    assert program.next_output() == ["through", "0"]
    assert program.finish() == 0
    reader.join()
    assert len(b"".join(packets).splitlines()) == 1000
    assert all(packet.endswith(b"\n") for packet in packets)
    assert len(packets) < 1000


def full_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while os.write(writing, bytes(4096)):
            pass
    os.set_blocking(writing, True)
    return reading, writing


@pytest.mark.slow
def test_a_server_answers_although_its_standard_error_is_full(shared_store: Store, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reading, writing = full_pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_mlflow", "serve", "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": shared_store.uri},
        stderr=writing,
    )
    os.close(writing)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url), "the server answers")
        for _ in range(3):
            answer = requests.post(
                f"{url}/predict", data=BLUE, headers={"Content-Type": "image/png"}, timeout=60
            )
            assert answer.json()["predictions"][0]["label"] == "blue"
            # Access lines are written some milliseconds after the answer.
            assert requests.get(f"{url}/metrics", timeout=60).status_code == 200
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=10).ok
    except requests.RequestException:
        return False


def test_a_terminal_gets_short_lines_without_empty_fields() -> None:
    program = """
from serving.monitoring.logging import stderr_lines, write_events
write_events([{"event": "request", "route": "/predict", "status": 200, "error": None, "ms": 5.1}])
stderr_lines().drain(10)
"""
    reading, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=terminal
    )
    os.close(terminal)
    line = os.read(reading, 10_000).decode()
    os.close(reading)
    assert done.returncode == 0
    assert line.rstrip().endswith("request route=/predict status=200 ms=5.1")

"""A real server skips work that no client waits for, and detects a network that is stuck."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from starlette.requests import Request
from starlette.types import Message

from cifar_mlflow.errors import CifarError
from serving.app.errors import Refusal
from serving.app.inference import Inference
from serving.app.state import AppState
from serving.config import ServeConfig
from tests.serving.app.conftest import BLUE, RED, ROOT, Server, Store, until
from tests.serving.app.stalling_model import ENDLESS, SLOW, save_stalling_model, write_stalling_scorer

pytestmark = pytest.mark.slow

UPLOAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_stalling_model(tmp_path_factory.mktemp("stalling") / "model")


@pytest.fixture
def serve(start: Callable[..., Server], model: str) -> Iterator[Callable[..., Server]]:
    """Start servers of the stalling model; kill them, because a stuck network does not stop."""
    servers = []

    def serve(*options: str) -> Server:
        servers.append(start("", "--model-uri", model, "--request-log", "none", *options).wait())
        return servers[-1]

    yield serve
    for server in servers:
        server.stop(signal.SIGKILL)


def metric(server: Server, name: str) -> float:
    lines = requests.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def is_ready(server: Server) -> bool:
    response = requests.get(f"{server.url}/ready", timeout=60)
    assert response.status_code in (200, 503)
    return response.ok


def waiting(server: Server) -> float:
    return metric(server, "cifar_queue_length")


def computed(server: Server) -> float:
    return metric(server, "cifar_batch_size_sum")


def test_images_of_requests_that_timed_out_are_not_computed(serve: Callable[..., Server]) -> None:
    server = serve("--request-timeout", "1")
    with ThreadPoolExecutor(6) as pool:
        slow = pool.submit(server.predict, SLOW)
        until(lambda: waiting(server) == 1)
        others = [pool.submit(server.predict, RED) for _ in range(5)]
        assert {each.result().status_code for each in (slow, *others)} == {504}
    until(lambda: waiting(server) == 0)
    assert computed(server) == 1
    assert server.predict(BLUE).json()["predictions"][0]["label"] == "blue"


def test_an_image_keeps_its_place_until_its_batch_has_ended(serve: Callable[..., Server]) -> None:
    server = serve("--request-timeout", "1", "--queue-limit", "1")
    assert server.predict(SLOW).status_code == 504
    refused = server.predict(RED)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert computed(server) == 0
    until(lambda: server.predict(RED).ok)
    assert computed(server) == 2


def test_the_image_of_a_client_that_has_disconnected_is_not_computed(serve: Callable[..., Server]) -> None:
    server = serve()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.predict, SLOW)
        until(lambda: waiting(server) == 1)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(UPLOAD % len(RED) + RED)
            until(lambda: waiting(server) == 2)
        until(lambda: waiting(server) == 1)
        assert not slow.done()
        assert slow.result().ok
    assert computed(server) == 1
    assert metric(server, 'cifar_requests_total{route="/predict",status="499"}') == 1


def test_a_server_with_a_stuck_network_is_alive_but_not_ready(serve: Callable[..., Server]) -> None:
    server = serve("--request-timeout", "1")
    assert is_ready(server)
    assert server.predict(ENDLESS).status_code == 504
    until(lambda: not is_ready(server))
    error = server.ready()["error"]
    assert error["code"] == "not_ready"
    assert "No batch was finished in the last" in error["message"]
    assert requests.get(f"{server.url}/ping", timeout=60).ok


@pytest.mark.thorough
def test_a_long_batch_that_ends_makes_the_server_ready_again(serve: Callable[..., Server]) -> None:
    server = serve("--request-timeout", "1")
    assert server.predict(SLOW).status_code == 504
    until(lambda: not is_ready(server))
    until(lambda: is_ready(server))


def test_an_engine_that_is_closed_is_a_failure(model: str, tmp_path: Path) -> None:
    state = AppState(ServeConfig(model_uri=model, request_log="none"))
    try:
        assert state.failure() is None
        state.champion.current.scorer.close()
        assert "The network is not running any more" in str(state.failure())
    finally:
        state.close()


def test_a_state_that_cannot_be_opened_leaves_no_threads(model: str, tmp_path: Path) -> None:
    """A worker tries again every few seconds, perhaps for hours: the models would fill the memory."""
    (tmp_path / "file").touch()
    log = f"sqlite:///{tmp_path}/file/requests.db"
    before = set(threading.enumerate())
    with pytest.raises(CifarError, match="cannot be used"):
        AppState(ServeConfig(model_uri=model, images_dir=tmp_path / "images", request_log=log))
    until(lambda: set(threading.enumerate()) <= before, seconds=15)


def test_a_new_champion_replaces_one_whose_network_is_stuck(
    start: Callable[..., Server], store: Store
) -> None:
    store.promote(store.add_folder(write_stalling_scorer(store.folder / "stalling")))
    server = start(store.uri, "--follow-seconds", "0.2", "--request-timeout", "10").wait()
    try:
        with ThreadPoolExecutor(1) as pool:
            endless = pool.submit(server.predict, ENDLESS)
            until(lambda: waiting(server) == 1)
            store.promote("1")
            until(lambda: server.ready()["model"]["version"] == "1")
            assert endless.result().status_code == 504
        assert server.predict(BLUE).json()["predictions"][0]["label"] == "blue"
    finally:
        server.stop(signal.SIGKILL)


def test_decoding_threads_that_hang_are_a_failure() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _hang()).result()


async def _hang() -> None:
    inference, go_on = Inference(threads=2, limit=1, timeout=0.2), threading.Event()
    try:
        for _ in range(2):
            assert inference.failure() is None
            with pytest.raises(Refusal):
                await inference.run(_request(), go_on.wait)
        await asyncio.to_thread(until, inference.failure)
        assert "all threads are busy" in str(inference.failure())
        go_on.set()
        await asyncio.to_thread(until, lambda: inference.failure() is None)
    finally:
        go_on.set()
        inference.close()


def test_a_decoding_thread_that_hangs_does_not_keep_the_process_from_ending() -> None:
    program = """
import asyncio, threading
from cifar_mlflow.errors import CifarError
from serving.app.errors import Refusal
from serving.app.inference import Inference
from tests.serving.app.test_inference import _request

async def main():
    inference = Inference(threads=1, limit=1, timeout=0.2)
    try:
        await inference.run(_request(), threading.Event().wait)
    except Refusal:
        inference.close()
        print("closed")

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "closed\n"


def _request() -> Request:
    """Return a request whose client never disconnects."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    return Request({"type": "http"}, receive)


def test_a_table_keeps_its_turn_until_the_reading_has_ended() -> None:
    # In a thread: other tests of this process keep an event loop in the main thread.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _read_two_tables()).result()


async def _read_two_tables() -> None:
    request = _request()
    inference = Inference(threads=2, limit=1, timeout=0.2)
    go_on = threading.Event()

    async def read(function: Callable[[], Any]) -> Any:
        async with inference.read_table(request, function) as table:
            return table

    try:
        with pytest.raises(Refusal) as slow:
            await read(go_on.wait)
        assert slow.value.status == 504
        with pytest.raises(Refusal) as refused:
            await read(dict)
        assert refused.value.status == 503
        go_on.set()
        assert await read(dict) == {}
    finally:
        go_on.set()
        inference.close()

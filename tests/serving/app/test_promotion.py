"""The server follows the champion without dropping requests, and refuses versions it cannot serve."""

import concurrent.futures
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import requests

from serving.app.champion import Champion, ServedModel
from serving.registry.mlflow_server import free_port
from tests.serving.app.conftest import BLUE, NAME, RED, Server, Store, children, until
from tests.shared import use_store

pytestmark = pytest.mark.slow

FOLLOW = ("--follow-seconds", "0.2")
GERMAN = ["rot", "grün", "blau"]


def version(server: Server) -> str:
    found: str = server.ready()["model"]["version"]
    return found


def serves(server: Server, number: str) -> bool:
    return version(server) == number


def loads(server: Server) -> int:
    return sum("Serving cifar10" in line.get("event", "") for line in server.lines())


def metric(server: Server, name: str) -> str:
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    return next((line for line in text.splitlines() if line.startswith(name)), "")


@contextmanager
def registry(store: Store, port: int) -> Iterator[None]:
    """Run a real `mlflow server` with this store."""
    command = ["server", "--backend-store-uri", store.uri, "--port", str(port), "--workers", "1"]
    with (store.folder / "mlflow.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=store.folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 120)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_promotion_under_load_drops_no_request_and_mixes_no_versions(
    start: Callable[..., Server], store: Store
) -> None:
    german = store.add(classes=GERMAN)
    server = start(store.uri, *FOLLOW).wait()
    stop = threading.Event()

    def send_requests() -> list[tuple[int, str, str]]:
        found = []
        with requests.Session() as session:
            while not stop.is_set():
                answer = session.post(
                    f"{server.url}/predict", data=BLUE, headers={"Content-Type": "image/png"}, timeout=60
                )
                body = answer.json()
                found.append((answer.status_code, body["model"]["version"], body["predictions"][0]["label"]))
        return found

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(send_requests) for _ in range(8)]
        try:
            for number in (german, "1", german):
                store.promote(number)
                until(functools.partial(serves, server, number))
        finally:
            stop.set()
        found = [each for client in clients for each in client.result()]
    assert set(found) == {(200, "1", "blue"), (200, german, "blau")}
    assert metric(server, "cifar_model_info").count(f'version="{german}"') == 1


def test_the_description_of_the_model_says_that_its_promotion_was_forced(
    start: Callable[..., Server], store: Store
) -> None:
    said = "version 1 is now the champion of cifar10. It was forced: it is worse"
    store.client.set_model_version_tag(NAME, "1", "promoted", said)
    server = start(store.uri).wait()
    assert requests.get(f"{server.url}/model", timeout=60).json()["promotion"] == said


def test_a_version_that_cannot_be_served_is_refused(start: Callable[..., Server], store: Store) -> None:
    server = start(store.uri, *FOLLOW).wait()
    refused = {
        store.add(temperature=2.0): "scorer.json",
        store.add(classes=["a", "b"]): "classes",
        store.add(format=99): "format",
    }
    damaged = store.file("scorer.json")[1]  # the first is that of the champion
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    for number, reason in refused.items():
        store.promote(number)
        (problem,) = until(lambda: server.ready()["problems"])
        assert problem.startswith(f"version {number} is refused: ")
        assert reason in problem
        assert str(store.folder) not in problem
        assert metric(server, "cifar_model_refused").endswith(f'{{version="{number}"}} 1.0')
        assert server.predict().json()["model"] == {"name": NAME, "version": "1"}
        store.promote("1")
        until(lambda: server.ready()["problems"] == [])


@pytest.mark.thorough
def test_an_outage_of_the_registry_does_not_stop_the_server(
    start: Callable[..., Server], store: Store
) -> None:
    port = free_port()
    with registry(store, port):
        server = start(f"http://127.0.0.1:{port}", *FOLLOW).wait()
    (problem,) = until(lambda: server.ready()["problems"])
    assert problem.startswith("the registry does not answer")
    assert metric(server, "cifar_registry_up").endswith(" 0.0")
    assert server.predict(RED).json()["predictions"][0]["label"] == "red"
    german = store.add(classes=GERMAN)
    store.promote(german)
    with registry(store, port):
        until(lambda: version(server) == german)
        assert server.ready()["problems"] == []


def test_a_deleted_alias_is_not_reported_as_an_outage(start: Callable[..., Server], store: Store) -> None:
    server = start(store.uri, *FOLLOW).wait()
    store.client.delete_registered_model_alias(NAME, "champion")
    (problem,) = until(lambda: server.ready()["problems"])
    assert problem == f"no version is models:/{NAME}@champion any more; {NAME}/1 goes on serving"
    assert metric(server, "cifar_registry_up").endswith(" 1.0")
    assert server.predict(RED).json()["predictions"][0]["label"] == "red"
    store.promote("1")
    until(lambda: server.ready()["problems"] == [])


@pytest.mark.thorough
def test_a_worker_that_dies_during_an_outage_of_the_registry_is_replaced_afterwards(
    start: Callable[..., Server], store: Store
) -> None:
    port = free_port()
    with registry(store, port):
        server = start(f"http://127.0.0.1:{port}", "--workers", "2", CIFAR_MLFLOW_PATIENCE="1").wait()
        until(lambda: loads(server) == 3)  # by the parent and both workers
    workers = children(server.process.pid)
    os.kill(workers[0], signal.SIGKILL)
    until(lambda: any(line.get("event") == "not started" for line in server.lines()))
    assert server.process.poll() is None
    assert server.predict(RED).json()["predictions"][0]["label"] == "red"
    replaced = set(children(server.process.pid)) - set(workers)
    with registry(store, port):
        until(lambda: loads(server) == 4)
    assert set(children(server.process.pid)) - set(workers) == replaced, (
        "it waited, and was not replaced again"
    )
    assert server.stop() == 0


@pytest.mark.thorough
def test_the_server_stops_while_a_worker_waits_for_the_registry(
    start: Callable[..., Server], store: Store
) -> None:
    port = free_port()
    with registry(store, port):
        server = start(f"http://127.0.0.1:{port}", "--workers", "2", CIFAR_MLFLOW_PATIENCE="1").wait()
        until(lambda: loads(server) == 3)  # by the parent and both workers
    os.kill(children(server.process.pid)[0], signal.SIGKILL)
    until(lambda: any(line.get("event") == "not started" for line in server.lines()))
    assert server.stop() == 0


def test_a_version_whose_metrics_cannot_be_set_up_is_closed_before_the_next_attempt(store: Store) -> None:
    """A full disk can cause this; the registry is queried again every few seconds."""
    served = store.add()
    store.promote(served)
    attempts: list[ServedModel] = []

    def fail(model: ServedModel) -> None:
        attempts.append(model)
        raise OSError("No space left on device")

    with use_store(store.uri):
        champion = Champion(f"models:/{NAME}@champion")
        try:
            champion.on_change = fail
            store.promote(store.add())
            champion.follow(0.05)
            until(lambda: len(attempts) > 1)
            assert champion.current.version == served
            assert champion.current.scorer.engine.is_alive
            assert not attempts[0].scorer.engine.is_alive
        finally:
            champion.close()


def test_a_missing_model_is_reported_with_what_to_do(start: Callable[..., Server], store: Store) -> None:
    server = start(store.uri, "--model-uri", "models:/nobody@champion")
    assert server.process.wait(120) == 2
    text = server.log.read_text()
    assert "there is no models:/nobody@champion" in text
    assert "cifar-mlflow register" in text
    assert "Traceback" not in text


def test_a_version_given_by_number_is_served_and_the_champion_not_followed(
    start: Callable[..., Server], store: Store
) -> None:
    german = store.add(classes=GERMAN)
    server = start(store.uri, "--model-uri", f"models:/{NAME}/{german}", *FOLLOW).wait()
    assert json.loads(server.predict(BLUE).text)["predictions"][0]["label"] == "blau"
    assert server.ready()["model"] == {"name": NAME, "version": german}

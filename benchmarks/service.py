"""Our service, beside `mlflow.pytorch` behind `mlflow models serve`, and the same network behind LitServe.

Behind MLServer with MLflow's runtime too, where `make .venv-mlserver` has installed it: it wants older
libraries than ours, so it has an environment of its own.

The same trained network everywhere, one process with the network each (LitServe and MLServer add one that
receives requests, as they always do), the same machine for servers and load (wrk, one thread, keep-alive). A
request has one image of 32x32 pixels: as a PNG for ours, which logs and counts it as ever; as a PNG in base64
for LitServe; as 3,072 floats for the others. The servers take turns; figures are medians over the rounds.

Too much load aims at ten times the requests a second that the service answers: of three times as many
connections as it lets wait, each asks again after a pause, sooner than the answer 503 tells it to. Fewer get
through on the same cores; the row says how many. wrk takes a fifth of a core, which the service lacks.

Log and metrics are all that the observer does: lines of the process's log, request log, Prometheus, drift.
Two servers, one with and one without it, take turns of a few seconds.
"""

import base64
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Row, progress
from benchmarks.load import Load, Sending, Trained, as_json, median, png, post, running, started, train, wrk
from cifar_mlflow.export.reference import load_classifier
from serving.registry.mlflow_model import download
from serving.registry.mlflow_server import Server, free_port, mlflow_server

OURS, MLFLOW, LITSERVE, MLSERVER = "ours", "mlflow.pytorch", "LitServe", "MLServer"
AT_LEAST = {MLFLOW: 10, LITSERVE: 4}
MLSERVER_COMMAND = Path(__file__).parents[1] / ".venv-mlserver/bin/mlserver"
WAIT = 256  # pictures, by default
TURN_SECONDS = 2
BUSY = 64  # connections with which the service does what it can


def measure(
    connections: tuple[int, ...] = (1, 16, 64, 256),
    rounds: int = 3,
    seconds: int = 8,
    turns: int = 20,
    **settings: Any,
) -> list[Row]:
    """Rates and latencies, overload, and what log and metrics cost. `settings` are those of the training."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = train(folder, **settings)
        sent = requests_for(trained, folder)
        if MLSERVER_COMMAND.exists():
            prepare_mlserver(trained, folder)
            sent[MLSERVER] = Sending(folder / "tensor.json")
        classifier, _ = load_classifier(trained.run_id)
        torch.save(classifier, folder / "classifier.pt")
        measured: dict[str, list[dict[int, Load]]] = {side: [] for side in sent}
        for _ in range(rounds):
            for side, sending in sent.items():
                with server_of(side, trained, folder) as (server, path):
                    url = server.address + path
                    post(url, sending)
                    wrk(url, sending, connections[-1], 2)  # warms up
                    measured[side].append({count: wrk(url, sending, count, seconds) for count in connections})
                progress(f"  {side}: {measured[side][-1]}")
        loads = {
            side: {count: median(each[count] for each in found) for count in connections}
            for side, found in measured.items()
        }
        with server_of(OURS, trained, folder) as (server, path):
            overload = overload_rows(server.address + path, sent[OURS], seconds)
        cost = cost_row(trained, folder, sent[OURS], turns)
    rows = [row for count in connections for row in load_rows(count, loads, trained)]
    return [*rows, *overload, cost]


def requests_for(trained: Trained, folder: Path) -> dict[str, Sending]:
    picture = png(trained.image)
    bodies = {
        OURS: Sending(folder / "image.png", "image/png"),
        MLFLOW: Sending(folder / "floats.json"),
        LITSERVE: Sending(folder / "image.json"),
    }
    bodies[OURS].body.write_bytes(picture)
    bodies[MLFLOW].body.write_text(as_json(trained.floats))
    bodies[LITSERVE].body.write_text(json.dumps({"image": base64.b64encode(picture).decode()}))
    return bodies


@contextmanager
def server_of(side: str, trained: Trained, folder: Path) -> Iterator[tuple[Server, str]]:
    """The server of a side, and the path that it answers at."""
    with ExitStack() as stack:
        if side == MLFLOW:
            yield stack.enter_context(mlflow_server(trained.usual)), "/invocations"
        elif side == LITSERVE:
            command = ("benchmarks.litserve_peer", "--model", str(folder / "classifier.pt"))
            yield stack.enter_context(running(*command, health="/health")), "/predict"
        elif side == MLSERVER:
            yield stack.enter_context(mlserver(folder)), "/v2/models/usual/infer"
        else:
            yield stack.enter_context(service("cifar_mlflow", trained, folder)), "/predict"


def prepare_mlserver(trained: Trained, folder: Path) -> None:
    """Its settings, of which only the batches are not the default, and a request of the V2 protocol."""
    home = folder / "mlserver"
    home.mkdir()
    settings = {
        "name": "usual",
        "implementation": "mlserver_mlflow.MLflowRuntime",
        "max_batch_size": 16,
        "max_batch_time": 0.005,
        "parameters": {"uri": str(download(trained.usual, folder / "usual"))},
    }
    (home / "model-settings.json").write_text(json.dumps(settings))
    tensor = {
        "name": "images",
        "datatype": "FP32",
        "shape": list(trained.floats.shape),
        "data": trained.floats.ravel().astype(float).round(4).tolist(),
    }
    request = {"inputs": [tensor], "parameters": {"content_type": "np"}}
    (folder / "tensor.json").write_text(json.dumps(request))


def mlserver(folder: Path) -> AbstractContextManager[Server]:
    port, *others = (free_port() for _ in range(3))
    return started(
        [str(MLSERVER_COMMAND), "start", str(folder / "mlserver")],
        port,
        "/v2/models/usual/ready",
        MLSERVER_HTTP_PORT=str(port),
        MLSERVER_GRPC_PORT=str(others[0]),
        MLSERVER_METRICS_PORT=str(others[1]),
    )


def service(module: str, trained: Trained, folder: Path) -> AbstractContextManager[Server]:
    options = ("--model-uri", trained.ours, "--request-log", f"sqlite:///{folder}/requests.db")
    return running(module, "serve", *options, health="/ping")


def load_rows(count: int, loads: dict[str, dict[int, Load]], trained: Trained) -> Iterator[Row]:
    ours = loads[OURS][count]
    for side in [side for side in loads if side != OURS]:
        peer = loads[side][count]
        yield Row(
            f"service, {trained.model}, {trained.precision}, {count} connections",
            f"{ours.rate:.0f} requests/s, p50 {ours.p50:.0f} ms",
            f"{peer.rate:.0f} requests/s, p50 {peer.p50:.0f} ms ({side})",
            ours.rate / peer.rate,
            "x",
            at_least=AT_LEAST.get(side) if count == 16 else None,
        )
        yield Row(
            f"the same, the slowest of a hundred (p99), {count} connections",
            f"{ours.p99:.0f} ms",
            f"{peer.p99:.0f} ms ({side})",
            ours.p99 / peer.p99,
            "of its time",
            at_most=0.25 if side in AT_LEAST else None,
        )


def overload_rows(url: str, sending: Sending, seconds: int) -> list[Row]:
    busy = wrk(url, sending, BUSY, seconds)
    clients = 3 * WAIT
    # Of those that are turned away; the others wait for their answer.
    pause = (clients - WAIT) / (9 * busy.rate)
    load = wrk(url, sending, clients, seconds, may_refuse=True, pause=pause)
    refused = load.refused / seconds
    offered = load.rate + refused
    progress(f"  overload: {load}")
    return [
        Row(
            f"{offered / busy.rate:.1f} times the load that it can answer: what is still answered",
            f"{load.rate:.0f} requests/s, and {refused:.0f} times 503 a second, to {clients} clients",
            f"{busy.rate:.0f} requests/s ({BUSY} connections)",
            load.rate / busy.rate,
            "of its rate",
        ),
        Row(
            f"the same: median of all answers, {100 * refused / offered:.0f} % of which are 503",
            f"{load.p50:.0f} ms",
            f"{busy.p50:.0f} ms (an answer, {BUSY} connections)",
            load.p50,
            "ms",
        ),
    ]


def cost_row(trained: Trained, folder: Path, sending: Sending, turns: int) -> Row:
    rates: dict[str, list[float]] = {"with": [], "without": []}
    with (
        service("cifar_mlflow", trained, folder) as usual,
        service("benchmarks.bare_service", trained, folder) as bare,
    ):
        for number in range(turns + 1):
            for side, server in (("with", usual), ("without", bare)):
                rate = wrk(f"{server.address}/predict", sending, 16, TURN_SECONDS).rate
                if number:  # the first turn warms up
                    rates[side].append(rate)
    loaded, free = statistics.median(rates["with"]), statistics.median(rates["without"])
    progress(f"  log and metrics: {rates}")
    return Row(
        "throughput that log and metrics cost, 16 connections",
        f"{loaded:.0f} requests/s (with)",
        f"{free:.0f} requests/s (without)",
        100 * (1 - loaded / free),
        "%",
        at_most=5,
    )

"""Our service beside other ways to serve the same trained network over HTTP.

Peers that run the network in PyTorch:
- `mlflow.pytorch` behind `mlflow models serve`
- LitServe
- MLServer with MLflow's runtime, if `make .venv-mlserver` has installed it (it needs older libraries)

Peers that use our own scorer, so that only the HTTP side differs:
- LitServe
- a plain FastAPI app without limits, log and metrics

All sides run on the same machine with one process that holds the network (LitServe and MLServer add one that
receives requests). The load comes from wrk with one thread and keep-alive connections. A request has one
image of 32x32 pixels: as a PNG for our service and FastAPI, as a PNG in base64 for LitServe, as 3,072 floats
for the others. The servers take turns; each is warmed up with the number of connections measured next, and
measured when it is idle again; figures are medians over the rounds.

Overload: three times as many connections as requests may wait in the service. A refused client pauses so
that, in total, ten times as many requests are sent as the service can answer. wrk takes a fifth of a core.

Telemetry (access log, request log, Prometheus, drift, and the digests and statistics of images that they
need): two servers, with and without it, take turns of a few seconds.
"""

import base64
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Row, progress
from benchmarks.load import (
    Load,
    Sending,
    Trained,
    as_json,
    median,
    png,
    post,
    running,
    started,
    train,
    wait_until_idle,
    warm_wrk,
    wrk,
)
from cifar_mlflow.export.reference import load_classifier
from serving.registry.mlflow_model import download
from serving.registry.mlflow_server import Server, free_port, mlflow_server

OURS, MLFLOW, LITSERVE, MLSERVER = "ours", "mlflow.pytorch", "LitServe", "MLServer"
LITSERVE_SCORER, FASTAPI_SCORER = "LitServe with our scorer", "FastAPI with our scorer"
# Targets: our rate divided by the peer's with TARGET_CONNECTIONS, and our p99 divided by the peer's.
RATE_AT_LEAST = {MLFLOW: 10, LITSERVE: 4, LITSERVE_SCORER: 1.3, FASTAPI_SCORER: 1.0}
P99_AT_MOST = {MLFLOW: 0.25, LITSERVE: 0.25, FASTAPI_SCORER: 0.5}
TARGET_CONNECTIONS = 16
MLSERVER_COMMAND = Path(__file__).parents[1] / ".venv-mlserver/bin/mlserver"
QUEUE_LIMIT = 256  # the default of the service
TURN_SECONDS = 2
BUSY = 64  # connections that keep the service fully busy


def measure(
    connections: tuple[int, ...] = (1, 16, 64, 256),
    rounds: int = 3,
    seconds: int = 8,
    turns: int = 20,
    peers: tuple[str, ...] = (MLFLOW, LITSERVE, LITSERVE_SCORER, FASTAPI_SCORER, MLSERVER),
    **settings: Any,
) -> list[Row]:
    """Measure rates and latencies, overload, and the cost of telemetry; `settings` are for the training."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = train(folder, **settings)
        sending = prepare(trained, folder, peers)
        measured: dict[str, list[dict[int, Load]]] = {side: [] for side in sending}
        for _ in range(rounds):
            for side in sending:
                with server_of(side, trained, folder) as (server, path):
                    post(server.address + path, sending[side])
                    loads_of_round = {
                        count: warm_wrk(server, path, sending[side], count, seconds) for count in connections
                    }
                measured[side].append(loads_of_round)
                progress(f"  {side}: {loads_of_round}")
        loads = {
            side: {count: median(each[count] for each in rounds_of_side) for count in connections}
            for side, rounds_of_side in measured.items()
        }
        with server_of(OURS, trained, folder) as (server, path):
            overload = overload_rows(server, path, sending[OURS], seconds)
        cost = telemetry_row(trained, folder, sending[OURS], turns)
    rows = [row for count in connections for row in load_rows(count, loads, trained)]
    return [*rows, *overload, cost]


def prepare(trained: Trained, folder: Path, peers: tuple[str, ...]) -> dict[str, Sending]:
    """Write the files that the peers need; return the request for each side."""
    sending = requests_for(trained, folder)
    if MLSERVER_COMMAND.exists() and MLSERVER in peers:
        prepare_mlserver(trained, folder)
        sending[MLSERVER] = Sending(folder / "tensor.json")
    classifier, _ = load_classifier(trained.run_id)
    torch.save(classifier, folder / "classifier.pt")
    return {side: sending[side] for side in (OURS, *peers) if side in sending}


def requests_for(trained: Trained, folder: Path) -> dict[str, Sending]:
    image, base64_image, floats = folder / "image.png", folder / "image.json", folder / "floats.json"
    image.write_bytes(png(trained.image))
    base64_image.write_text(json.dumps({"image": base64.b64encode(image.read_bytes()).decode()}))
    floats.write_text(as_json(trained.floats))
    return {
        OURS: Sending(image, "image/png"),
        MLFLOW: Sending(floats),
        LITSERVE: Sending(base64_image),
        LITSERVE_SCORER: Sending(base64_image),
        FASTAPI_SCORER: Sending(image, "image/png"),
    }


@contextmanager
def server_of(side: str, trained: Trained, folder: Path) -> Iterator[tuple[Server, str]]:
    """Start the server of a side; yield it and the path of its route."""
    if side == MLSERVER:
        with mlserver(folder) as server:
            yield server, "/v2/models/usual/infer"
    elif side == MLFLOW:
        with mlflow_server(trained.usual) as server:
            yield server, "/invocations"
    elif side == OURS:
        with service("cifar_mlflow", trained, folder) as server:
            yield server, "/predict"
    else:
        commands = {
            LITSERVE: ("litserve_peer", "--classifier", str(folder / "classifier.pt")),
            LITSERVE_SCORER: ("litserve_peer", "--model-uri", trained.ours),
            FASTAPI_SCORER: ("fastapi_peer", "--model-uri", trained.ours),
        }
        module, *options = commands[side]
        with running(f"benchmarks.{module}", *options, health="/health") as server:
            yield server, "/predict"


def prepare_mlserver(trained: Trained, folder: Path) -> None:
    """Write the settings of MLServer (the defaults, but with batching) and a request of the V2 protocol."""
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
            at_least=RATE_AT_LEAST.get(side) if count == TARGET_CONNECTIONS else None,
        )
        yield Row(
            f"the same, p99, {count} connections",
            f"{ours.p99:.0f} ms",
            f"{peer.p99:.0f} ms ({side})",
            ours.p99 / peer.p99,
            "of its time",
            at_most=P99_AT_MOST.get(side),
        )


def overload_rows(server: Server, path: str, sending: Sending, seconds: int) -> list[Row]:
    busy = warm_wrk(server, path, sending, BUSY, seconds)
    clients = 3 * QUEUE_LIMIT
    # QUEUE_LIMIT clients wait for an answer; the others are refused nine times as often as one is answered.
    pause = (clients - QUEUE_LIMIT) / (9 * busy.rate)
    load = wrk(server.address + path, sending, clients, seconds, may_refuse=True, pause=pause)
    refused = load.refused / seconds
    offered = load.rate + refused
    progress(f"  overload: {load}")
    return [
        Row(
            f"rate of answers at {offered / busy.rate:.1f} times the load that the service can answer",
            f"{load.rate:.0f} requests/s, and {refused:.0f} refusals (503) per second, to {clients} clients",
            f"{busy.rate:.0f} requests/s ({BUSY} connections)",
            load.rate / busy.rate,
            "of its rate",
        ),
        Row(
            f"the same, median latency of all answers, {100 * refused / offered:.0f} % of them refusals",
            f"{load.p50:.0f} ms",
            f"{busy.p50:.0f} ms (an answer, {BUSY} connections)",
            load.p50,
            "ms",
        ),
    ]


def telemetry_row(trained: Trained, folder: Path, sending: Sending, turns: int) -> Row:
    rates: dict[str, list[float]] = {"with": [], "without": []}
    with (
        service("cifar_mlflow", trained, folder) as usual,
        service("benchmarks.bare_service", trained, folder) as bare,
    ):
        for number in range(turns + 1):
            for side, server in (("with", usual), ("without", bare)):
                rate = wrk(f"{server.address}/predict", sending, 16, TURN_SECONDS).rate
                wait_until_idle(server)
                if number:  # the first turn is a warm-up
                    rates[side].append(rate)
    loaded, free = statistics.median(rates["with"]), statistics.median(rates["without"])
    progress(f"  telemetry: {rates}")
    return Row(
        "throughput lost to telemetry, with hashing and image statistics, 16 connections",
        f"{loaded:.0f} requests/s (with)",
        f"{free:.0f} requests/s (without)",
        100 * (1 - loaded / free),
        "%",
        at_most=5,
    )

"""Shared by the serving benchmarks: a trained model, servers as child processes, and wrk as the load."""

import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import requests
from PIL import Image

from cifar_mlflow import pipeline
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data import load_dataset
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.verb_config import RegisterConfig
from serving.registry.mlflow_server import Server, free_port
from serving.registry.register import register

# wrk calls `done` when it ends; latencies are in microseconds.
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = os.getenv("KIND")
local file = io.open(os.getenv("BODY"), "rb")
wrk.body = file:read("*a")
local pause = tonumber(os.getenv("PAUSE"))
if pause > 0 then delay = function() return math.random(0, 2 * pause) end end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "p50": %f, "p99": %f, "refused": %d, "failed": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
"""
# A few minutes on two cores. Half of the images are held out, to measure what int8 costs.
TRAINING = {
    "dataset": "sample",
    "model": "resnet18",
    "epochs": 6,
    "optimizer": "muon",
    "lr": 0.1,
    "val_size": 0.5,
}
START_SECONDS = 120
WARM_UP_SECONDS = 2
IDLE_SECONDS = 120
IDLE_WINDOW_SECONDS = 0.5


class Trained(NamedTuple):
    """A trained network, registered by us and logged by `mlflow.pytorch`, and an image for both.

    Attributes:
        ours, usual: models:/ addresses of the two models.
        image: uint8 (32, 32, 3).
        floats: the image as float32 (1, 3, 32, 32) in 0..1.
    """

    run_id: str
    model: str
    precision: str
    ours: str
    usual: str
    image: np.ndarray
    floats: np.ndarray


class Load(NamedTuple):
    """The result of a load: responses with status 200 per second, latency in ms, other responses."""

    rate: float
    p50: float
    p99: float
    refused: int


class Sending(NamedTuple):
    """The request to repeat: a file with the body, and its content type."""

    body: Path
    kind: str = "application/json"


def train(folder: Path, **settings: Any) -> Trained:
    """Train a network with a store in the folder, register it, and log it with `mlflow.pytorch` as well."""
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark needs wrk: apt-get install wrk")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("serving", artifact_location=f"{folder}/artifacts")
    given = {**TRAINING, **settings, "experiment": "serving", "cache_dir": folder / "cache", "test": False}
    config = resolve_train_config(given)
    run_id = pipeline.train(config).run_id
    version = register(run_id, RegisterConfig(cache_dir=config.cache_dir))
    classifier, _ = load_classifier(run_id)
    image = load_dataset(config).split("train").images[0]
    floats = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    with mlflow.start_run(run_id=run_id):
        usual = mlflow.pytorch.log_model(
            classifier, name="usual", serialization_format="pickle", input_example=floats
        )
    (folder / "post.lua").write_text(SCRIPT)
    ours = f"models:/{version.name}/{version.number}"
    return Trained(run_id, config.model, version.precision, ours, usual.model_uri, image, floats)


def as_json(floats: np.ndarray) -> str:
    """Return the request for `mlflow.pytorch`; four decimals are enough for 8-bit pixels."""
    return json.dumps({"inputs": floats.round(4).astype(float).round(4).tolist()})


@contextmanager
def running(*command: str, health: str) -> Iterator[Server]:
    """Run `python -m command --port <free>`; the block begins when it answers at `health`."""
    port = free_port()
    with started([sys.executable, "-m", *command, "--port", str(port)], port, health) as server:
        yield server


@contextmanager
def started(command: list[str], port: int, health: str, **environment: str) -> Iterator[Server]:
    """Run a server that listens on `port`; the block begins when it answers at the path `health`."""
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{address}{health}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} does not start")
            time.sleep(0.2)
        yield Server(address, process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(url, timeout=5).ok
    return False


def post(url: str, sending: Sending) -> Any:
    """Send one request and return the parsed JSON response."""
    answer = requests.post(
        url, data=sending.body.read_bytes(), headers={"Content-Type": sending.kind}, timeout=60
    )
    answer.raise_for_status()
    return answer.json()


def wrk(
    url: str,
    sending: Sending,
    connections: int,
    seconds: int,
    *,
    may_refuse: bool = False,
    pause: float = 0,
) -> Load:
    """Load a server with one wrk thread; each connection sends its next request after the response.

    Args:
        may_refuse: accept a status other than 200.
        pause: mean seconds between a response and the next request of a connection.

    Raises:
        RuntimeError: a connection failed, or a response had another status than 200 without `may_refuse`.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", "post.lua", url]
    environment = {
        **os.environ,
        "BODY": str(sending.body),
        "KIND": sending.kind,
        "PAUSE": str(round(1000 * pause)),
    }
    done = subprocess.run(
        command, cwd=sending.body.parent, env=environment, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout[done.stdout.index("{") :])
    if result["failed"] or not result["requests"] or (result["refused"] and not may_refuse):
        raise RuntimeError(f"{url} failed under load: {done.stdout}")
    good = result["requests"] - result["refused"]
    return Load(
        rate=1e6 * good / result["microseconds"],
        p50=result["p50"] / 1000,
        p99=result["p99"] / 1000,
        refused=int(result["refused"]),
    )


def median(loads: Iterable[Load]) -> Load:
    rates, p50s, p99s, refused = (statistics.median(values) for values in zip(*loads, strict=True))
    return Load(rates, p50s, p99s, int(refused))


def warm_wrk(server: Server, path: str, sending: Sending, connections: int, seconds: int) -> Load:
    """Warm a server up with the same number of connections, then measure it."""
    url = server.address + path
    wrk(url, sending, connections, WARM_UP_SECONDS)
    wait_until_idle(server)
    load = wrk(url, sending, connections, seconds)
    wait_until_idle(server)
    return load


def wait_until_idle(server: Server) -> None:
    """Wait until a server uses less than a third of a core: it may still work on requests that wrk dropped.

    An idle LitServe polls for requests, which takes up to a fifth of a core.

    Raises:
        RuntimeError: it does not come to rest.
    """
    deadline = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < deadline:
        before = sum(_cpu_seconds(process) for process in _processes(server))
        time.sleep(IDLE_WINDOW_SECONDS)
        after = sum(_cpu_seconds(process) for process in _processes(server))
        if after - before < IDLE_WINDOW_SECONDS / 3:
            return
    raise RuntimeError(f"the server at {server.address} does not come to rest")


def memory(server: Server) -> float:
    """Return resident megabytes of the largest process of a server, which holds the model."""
    return max((_resident_megabytes(process) for process in _processes(server)), default=0.0)


def _processes(server: Server) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError, FileNotFoundError):
            if os.getpgid(int(process.name)) == server.process_group:
                yield process


def _cpu_seconds(process: Path) -> float:
    with suppress(ProcessLookupError, FileNotFoundError):
        user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _resident_megabytes(process: Path) -> float:
    with suppress(ProcessLookupError, FileNotFoundError):
        found = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()

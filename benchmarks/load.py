"""A trained model, servers as child processes, and what they do under load."""

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
from cifar_mlflow.config import RegisterConfig, resolve_train_config
from cifar_mlflow.data import load_dataset
from cifar_mlflow.export.reference import load_classifier
from serving.registry.mlflow_server import Server, free_port
from serving.registry.register import register

# wrk calls `done` at its end; latencies are in microseconds.
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
# Minutes on two cores, to a network that is sure enough of itself for int8; half of the images are held out,
# since of a few hundred a third of a point is one.
TRAINING = {
    "dataset": "sample",
    "model": "resnet18",
    "epochs": 6,
    "optimizer": "muon",
    "lr": 0.1,
    "val_size": 0.5,
}
START_SECONDS = 120


class Trained(NamedTuple):
    """A network in the registry as ours, the same one as MLflow logs it, and an image for both.

    `image` is uint8 (32, 32, 3), `floats` are float32 (1, 3, 32, 32) in 0..1.
    """

    run_id: str
    model: str
    version: str
    precision: str
    ours: str
    usual: str
    image: np.ndarray
    floats: np.ndarray


class Load(NamedTuple):
    """What a server did under load: answers 200 a second, milliseconds, and answers of another status."""

    rate: float
    p50: float
    p99: float
    refused: int


class Sending(NamedTuple):
    """The request that is sent again and again: a file with its body, and the content type of that."""

    body: Path
    kind: str = "application/json"


def train(folder: Path, **settings: Any) -> Trained:
    """Train with a store in the folder, register, and log the network for `mlflow.pytorch` too."""
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
    return Trained(
        run_id, config.model, str(version), version.precision, ours, usual.model_uri, image, floats
    )


def as_json(floats: np.ndarray) -> str:
    """The request of `mlflow.pytorch`: four decimals are all that 8 bits need."""
    return json.dumps({"inputs": floats.round(4).astype(float).round(4).tolist()})


@contextmanager
def running(*command: str, health: str) -> Iterator[Server]:
    """A server of `python -m command --port <free>`, as soon as it answers at `health`."""
    port = free_port()
    with started([sys.executable, "-m", *command, "--port", str(port)], port, health) as server:
        yield server


@contextmanager
def started(command: list[str], port: int, health: str, **environment: str) -> Iterator[Server]:
    """A server of a command that listens on the port, as soon as it answers at `health`."""
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
    """Send once, and give back what the JSON of the answer says."""
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
    """Load by connections that each send again as soon as they are answered; one thread.

    Args:
        may_refuse: whether answers other than 200 are no failure.
        pause: seconds that each waits before it sends again, on average.

    Raises:
        RuntimeError: a connection failed, or an answer was not 200 and the server was not to refuse any.
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
    time.sleep(1)  # what wrk gave up on at its end is still worked on
    said = json.loads(done.stdout[done.stdout.index("{") :])
    if said["failed"] or not said["requests"] or (said["refused"] and not may_refuse):
        raise RuntimeError(f"{url} failed under load: {done.stdout}")
    good = said["requests"] - said["refused"]
    return Load(
        1e6 * good / said["microseconds"], said["p50"] / 1000, said["p99"] / 1000, int(said["refused"])
    )


def median(loads: Iterable[Load]) -> Load:
    rates, halves, slow, refused = (statistics.median(values) for values in zip(*loads, strict=True))
    return Load(rates, halves, slow, int(refused))


def memory(server: Server) -> float:
    """Resident megabytes of the largest process of a server, which is the one with the model."""
    sizes = [0.0]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == server.process_group:
                found = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
                sizes.append(int(found[1]) / 1024 if found else 0)
        except (ProcessLookupError, FileNotFoundError):
            continue
    return max(sizes)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()

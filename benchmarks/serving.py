"""Our model behind plain `mlflow models serve`, beside `mlflow.pytorch` behind the same.

The same trained network on both sides, one server process each, the same machine for servers and load
(wrk, one thread, keep-alive). A request has one image of 32x32 pixels: as a PNG in base64 for ours, and as
the 3,072 floats that `mlflow.pytorch` asks for, logged in the usual way. The two sides take turns; figures
are medians over the rounds. An answer other than 200 ends the benchmark.

Start to first answer is from the command to the first prediction. MLflow's own imports are in it twice, once
for the command and once for the server it starts, whatever the model; they are measured alone and taken off.
"""

import base64
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import requests
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.harness import Row, progress
from cifar_mlflow import pipeline
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data import load_dataset
from cifar_mlflow.export.reference import load_classifier
from serving.config import RegisterConfig
from serving.package import register
from serving.scorer.preprocess import decode_image
from serving.server import Server, mlflow_server

# wrk calls `done` at its end; latencies are in microseconds.
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open(os.getenv("BODY"), "rb")
wrk.body = file:read("*a")
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "microseconds": %d, "p50": %f, "p99": %f, "failed": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""
IMPORTS = ("mlflow.cli", "mlflow.pyfunc.scoring_server")


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


class Load(NamedTuple):
    """What a server did under load: requests a second, and milliseconds."""

    rate: float
    p50: float
    p99: float


class Measured(NamedTuple):
    """One start of a server: seconds to the first answer, megabytes after the load, and the loads."""

    start: float
    memory: float
    loads: dict[int, Load]


def measure(
    connections: tuple[int, ...] = (1, 16, 64), rounds: int = 3, seconds: int = 10, **settings: Any
) -> list[Row]:
    """Rates and latencies, start, memory, int8 and large JPEGs. `settings` are those of the training."""
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark needs wrk: apt-get install wrk")
    settings = {**TRAINING, **settings}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("serving", artifact_location=f"{folder}/artifacts")
        given = {**settings, "experiment": "serving", "cache_dir": folder / "cache", "test": False}
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
        bodies = {
            "ours": {"inputs": {"image": [base64.b64encode(png(image)).decode()]}},
            "peer": {"inputs": floats.round(4).astype(float).round(4).tolist()},
        }
        models = {"ours": f"models:/{version.name}/{version.number}", "peer": usual.model_uri}
        (folder / "post.lua").write_text(SCRIPT)
        measured: dict[str, list[Measured]] = {"ours": [], "peer": []}
        for _ in range(rounds):
            for side, model_uri in models.items():
                body = folder / f"{side}.json"
                body.write_text(json.dumps(bodies[side]))
                measured[side].append(under_load(model_uri, body, connections, seconds))
                progress(f"  {side}: {measured[side][-1]}")
        metrics = mlflow.MlflowClient().get_run(run_id).data.metrics
    return [
        *(
            row
            for count in connections
            for row in load_rows(count, measured, f"{config.model}, {version.precision}")
        ),
        *server_rows(measured),
        Row(
            "check: validation accuracy lost by int8",
            f"{metrics['serve/int8/val_accuracy']:.2%} (int8)",
            f"{metrics['serve/fp32/val_accuracy']:.2%} (fp32)",
            100 * (metrics["serve/fp32/val_accuracy"] - metrics["serve/int8/val_accuracy"]),
            "points",
            at_most=0.3,
        ),
        photo_row(),
    ]


def under_load(model_uri: str, body: Path, connections: tuple[int, ...], seconds: int) -> Measured:
    begun = time.perf_counter()
    with mlflow_server(model_uri) as server:
        headers = {"Content-Type": "application/json"}
        url = f"{server.address}/invocations"
        requests.post(url, data=body.read_bytes(), headers=headers, timeout=60).raise_for_status()
        start = time.perf_counter() - begun
        wrk(url, body, connections[-1], 2)  # warms up
        loads = {count: wrk(url, body, count, seconds) for count in connections}
        return Measured(start, memory(server), loads)


def wrk(url: str, body: Path, connections: int, seconds: int) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", "post.lua", url]
    environment = {**os.environ, "BODY": str(body)}
    done = subprocess.run(
        command, cwd=body.parent, env=environment, capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout[done.stdout.index("{") :])
    if said["failed"] or not said["requests"]:
        raise RuntimeError(f"{url} failed under load: {done.stdout}")
    return Load(1e6 * said["requests"] / said["microseconds"], said["p50"] / 1000, said["p99"] / 1000)


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


def load_rows(count: int, measured: dict[str, list[Measured]], model: str) -> list[Row]:
    ours, peer = (
        Load(
            *(statistics.median(values) for values in zip(*(each.loads[count] for each in side), strict=True))
        )
        for side in (measured["ours"], measured["peer"])
    )
    target = count == 16
    return [
        Row(
            f"{model}, one image a request, {count} connections",
            f"{ours.rate:.0f} requests/s, p50 {ours.p50:.0f} ms (PNG)",
            f"{peer.rate:.0f} requests/s, p50 {peer.p50:.0f} ms (mlflow.pytorch, floats)",
            ours.rate / peer.rate,
            "x",
            at_least=6 if target else None,
        ),
        Row(
            f"the same, the slowest of a hundred (p99), {count} connections",
            f"{ours.p99:.0f} ms",
            f"{peer.p99:.0f} ms",
            ours.p99 / peer.p99,
            "of its time",
            at_most=0.25 if target else None,
        ),
    ]


def server_rows(measured: dict[str, list[Measured]]) -> list[Row]:
    start, peer_start = (
        statistics.median(each.start for each in measured[side]) for side in ("ours", "peer")
    )
    size, peer_size = (statistics.median(each.memory for each in measured[side]) for side in ("ours", "peer"))
    imports = sum(import_seconds(module) for module in IMPORTS)
    return [
        Row(
            f"start to first answer, without {imports:.1f} s of MLflow's own imports",
            f"{start:.1f} s with them",
            f"{peer_start:.1f} s with them",
            start - imports,
            "s",
            at_most=3,
        ),
        Row(
            "memory of the server after the load",
            f"{size:.0f} MB",
            f"{peer_size:.0f} MB",
            size,
            "MB",
            at_most=250,
        ),
    ]


def import_seconds(module: str) -> float:
    durations = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        durations.append(time.perf_counter() - begun)
    return statistics.median(durations)


def photo_row(size: tuple[int, int] = (4000, 3000), repeats: int = 9) -> Row:
    """A photograph with the grain of a sensor, from a file to what the network takes."""
    photo = np.asarray(
        Image.fromarray(load_sample_image("flower.jpg")).resize(size, Image.Resampling.LANCZOS)
    )
    grain = np.random.default_rng(0).normal(0, 3, photo.shape)
    file = io.BytesIO()
    Image.fromarray((photo + grain).clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
    data = file.getvalue()
    ours, full = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        decode_image(data, 32, "crop")
        between = time.perf_counter()
        Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        ours.append(between - begun)
        full.append(time.perf_counter() - between)
    fast, slow = statistics.median(ours), statistics.median(full)
    return Row(
        f"JPEG of 12 megapixels, {len(data) / 1e6:.1f} MB, to 32x32",
        f"{1000 * fast:.0f} ms (checked, decoded at reduced scale)",
        f"{1000 * slow:.0f} ms (Pillow, full decode)",
        fast / slow,
        "of its time",
        at_most=0.2,
    )


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()

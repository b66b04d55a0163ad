"""Compare our model with the same network as an `mlflow.pytorch` model, both behind `mlflow models serve`.

Each side has one server process; servers and load (wrk, one thread, keep-alive) share the machine. A request
holds one image of 32x32 pixels: for ours a PNG in base64, for `mlflow.pytorch` 3,072 floats. The two sides
take turns, and the figures are medians over the rounds. Any status other than 200 aborts the benchmark.

The start is the time from the command to the first prediction. It includes MLflow's own imports twice, for
the command and for the server that it starts; they are measured separately and subtracted.
"""

import base64
import io
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.harness import Row, progress
from benchmarks.load import Load, Sending, as_json, median, memory, png, post, train, warm_wrk
from cifar_mlflow.scorer.preprocess import decode_image
from serving.registry.mlflow_server import mlflow_server

IMPORTS = ("mlflow.cli", "mlflow.pyfunc.scoring_server")


class Measured(NamedTuple):
    """One run of a server: seconds to the first answer, megabytes after the load, and the loads."""

    start: float
    memory: float
    loads: dict[int, Load]


def measure(
    connections: tuple[int, ...] = (1, 16, 64), rounds: int = 3, seconds: int = 10, **settings: Any
) -> list[Row]:
    """Measure rate, latency, start, memory, int8 and large JPEGs; `settings` are those of the training."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = train(folder, **settings)
        bodies = {
            "ours": json.dumps({"inputs": {"image": [base64.b64encode(png(trained.image)).decode()]}}),
            "peer": as_json(trained.floats),
        }
        models = {"ours": trained.ours, "peer": trained.usual}
        measured: dict[str, list[Measured]] = {"ours": [], "peer": []}
        for _ in range(rounds):
            for side, model_uri in models.items():
                body = folder / f"{side}.json"
                body.write_text(bodies[side])
                measured[side].append(under_load(model_uri, Sending(body), connections, seconds))
                progress(f"  {side}: {measured[side][-1]}")
        metrics = mlflow.MlflowClient().get_run(trained.run_id).data.metrics
    return [
        *(
            row
            for count in connections
            for row in load_rows(count, measured, f"{trained.model}, {trained.precision}")
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


def under_load(model_uri: str, sending: Sending, connections: tuple[int, ...], seconds: int) -> Measured:
    begin = time.perf_counter()
    with mlflow_server(model_uri) as server:
        post(f"{server.address}/invocations", sending)
        start = time.perf_counter() - begin
        loads = {count: warm_wrk(server, "/invocations", sending, count, seconds) for count in connections}
        return Measured(start, memory(server), loads)


def load_rows(count: int, measured: dict[str, list[Measured]], model: str) -> list[Row]:
    ours, peer = (median(each.loads[count] for each in measured[side]) for side in ("ours", "peer"))
    target = count == 16
    return [
        Row(
            f"{model}, one image per request, {count} connections",
            f"{ours.rate:.0f} requests/s, p50 {ours.p50:.0f} ms (PNG)",
            f"{peer.rate:.0f} requests/s, p50 {peer.p50:.0f} ms (mlflow.pytorch, floats)",
            ours.rate / peer.rate,
            "x",
            at_least=6 if target else None,
        ),
        Row(
            f"the same, p99 latency, {count} connections",
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
        begin = time.perf_counter()
        # Exit at once: the shutdown of the interpreter is not part of a start.
        subprocess.run([sys.executable, "-c", f"import os, {module}; os._exit(0)"], check=True)
        durations.append(time.perf_counter() - begin)
    return statistics.median(durations)


def photo_row(size: tuple[int, int] = (4000, 3000), repeats: int = 25) -> Row:
    """Measure the time from a JPEG file with sensor noise to the input of the network.

    This needs a fresh process: after a training, a process holds free memory that full decoding could reuse,
    which a server does not have.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        megabytes, fast, slow = pool.submit(photo_times, size, repeats).result()
    return Row(
        f"JPEG of 12 megapixels, {megabytes:.1f} MB, to 32x32",
        f"{1000 * fast:.0f} ms (checked, decoded at reduced scale)",
        f"{1000 * slow:.0f} ms (Pillow, full decode)",
        fast / slow,
        "of its time",
        at_most=0.2,
    )


def photo_times(size: tuple[int, int], repeats: int) -> tuple[float, float, float]:
    """Return megabytes of the file, and seconds to decode it at reduced scale and in full."""
    photo = np.asarray(
        Image.fromarray(load_sample_image("flower.jpg")).resize(size, Image.Resampling.LANCZOS)
    )
    noise = np.random.default_rng(0).normal(0, 3, photo.shape)
    file = io.BytesIO()
    Image.fromarray((photo + noise).clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
    data = file.getvalue()
    ours, full = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        decode_image(data, 32, "crop")
        between = time.perf_counter()
        Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        ours.append(between - begin)
        full.append(time.perf_counter() - between)
    return len(data) / 1e6, statistics.median(ours), statistics.median(full)

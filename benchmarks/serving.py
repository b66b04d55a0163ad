"""Compare our model with the same network as an `mlflow.pytorch` model, both behind `mlflow models serve`.

Each side has one server process; servers and load (wrk, one thread, keep-alive) share the machine. A request
holds one image of 32x32 pixels: for ours a PNG in each form that docs/serving.md lists (base64 in JSON and
CSV, bytes in Parquet), for `mlflow.pytorch` 3,072 floats. The two sides take turns, and the figures are
medians over the rounds. Each server is warmed up with the number of connections measured next, and measured
when it is idle again. Any status other than 200 aborts the benchmark.

The start is the time from the command to the first prediction: the whole process, MLflow's imports included.
"""

import base64
import io
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from benchmarks.harness import Row, progress
from benchmarks.load import Load, Sending, as_json, median, memory, png, post, train, warm_wrk
from cifar_mlflow.evaluation.paired_test import ALLOWED_LOSS, PairedTest
from cifar_mlflow.export.images import load_images
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.scorer.preprocess import decode_image
from serving.registry.candidates import build_candidates
from serving.registry.mlflow_server import mlflow_server

COMMON, TARGET_CONNECTIONS = "inputs", 16
PARQUET = "application/vnd.apache.parquet"


class Measured(NamedTuple):
    """One run of a server.

    Attributes:
        start: seconds to the first answer.
        memory: megabytes after the load.
        loads: by form of the request and number of connections.
    """

    start: float
    memory: float
    loads: dict[tuple[str, int], Load]


def measure(
    connections: tuple[int, ...] = (1, 16, 64), rounds: int = 3, seconds: int = 10, **settings: Any
) -> list[Row]:
    """Measure rate, latency, start, memory, int8 and large JPEGs; `settings` are those of the training."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = train(folder, **settings)
        requests = {"ours": forms(folder, png(trained.image)), "peer": floats(folder, trained.floats)}
        models = {"ours": trained.ours, "peer": trained.usual}
        measured: dict[str, list[Measured]] = {"ours": [], "peer": []}
        for _ in range(rounds):
            for side, model_uri in models.items():
                measured[side].append(under_load(model_uri, requests[side], connections, seconds))
                progress(f"  {side}: {measured[side][-1]}")
        int8 = int8_row(trained.run_id)
    return [
        *(
            row
            for count in connections
            for row in load_rows(COMMON, count, measured, f"{trained.model}, {trained.precision}")
        ),
        *(
            row
            for form in requests["ours"]
            if form != COMMON
            for row in load_rows(form, TARGET_CONNECTIONS, measured, f"{trained.model}, {trained.precision}")
        ),
        *server_rows(measured),
        int8,
        *photo_rows(),
    ]


def forms(folder: Path, image: bytes) -> dict[str, Sending]:
    """Write a request in each documented form; return it by the name of the form."""
    text = base64.b64encode(image).decode()
    (folder / "image.csv").write_text(f"image\n{text}\n")
    pd.DataFrame({"image": [image]}).to_parquet(folder / "image.parquet")
    bodies: dict[str, Any] = {
        COMMON: {"inputs": {"image": [text]}},
        "dataframe_split": {"dataframe_split": {"columns": ["image"], "data": [[text]]}},
        "dataframe_records": {"dataframe_records": [{"image": text}]},
    }
    for name, body in bodies.items():
        (folder / f"{name}.json").write_text(json.dumps(body))
    return {
        **{name: Sending(folder / f"{name}.json") for name in bodies},
        "CSV": Sending(folder / "image.csv", "text/csv"),
        "Parquet": Sending(folder / "image.parquet", PARQUET),
    }


def floats(folder: Path, image: np.ndarray) -> dict[str, Sending]:
    (folder / "floats.json").write_text(as_json(image))
    return {COMMON: Sending(folder / "floats.json")}


def under_load(
    model_uri: str, requests: dict[str, Sending], connections: tuple[int, ...], seconds: int
) -> Measured:
    begin = time.perf_counter()
    with mlflow_server(model_uri) as server:
        post(f"{server.address}/invocations", requests[COMMON])
        start = time.perf_counter() - begin
        loads = {
            (form, count): warm_wrk(server, "/invocations", sending, count, seconds)
            for form, sending in requests.items()
            for count in (connections if form == COMMON else (TARGET_CONNECTIONS,))
        }
        return Measured(start, memory(server), loads)


def load_rows(form: str, count: int, measured: dict[str, list[Measured]], model: str) -> list[Row]:
    ours = median(each.loads[form, count] for each in measured["ours"])
    peer = median(each.loads[COMMON, count] for each in measured["peer"])
    target = count == TARGET_CONNECTIONS
    return [
        Row(
            f"{model}, {form}, one image per request, {count} connections",
            f"{ours.rate:.0f} requests/s, p50 {ours.p50:.0f} ms (PNG)",
            f"{peer.rate:.0f} requests/s, p50 {peer.p50:.0f} ms (mlflow.pytorch, floats)",
            ours.rate / peer.rate,
            "x",
            at_least=6 if target else None,
        ),
        Row(
            f"the same, p99 latency, {form}, {count} connections",
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
    return [
        Row(
            "start to first answer, the whole process",
            f"{start:.1f} s",
            f"{peer_start:.1f} s",
            start,
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


def int8_row(run_id: str) -> Row:
    """Compare fp32 and int8 as `register` does: a loss that may be chance does not count.

    The figure is the lower end of the 95 % interval of the loss (see `PairedTest`).
    """
    classifier, card = load_classifier(run_id)
    training, eval_set = load_images(card, mlflow.MlflowClient().get_run(run_id).data.params, {})
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = build_candidates(classifier, card, training.images, eval_set, "int8", Path(folder))
    comparison = PairedTest.of(fp32.correct, int8.correct)
    return Row(
        f"check: lower end of the validation accuracy lost by int8 ({comparison})",
        f"{int8.accuracy:.2%} (int8)",
        f"{fp32.accuracy:.2%} (fp32)",
        100 * comparison.interval[0],
        "points",
        at_most=100 * ALLOWED_LOSS,
    )


def photo_rows(size: tuple[int, int] = (4000, 3000), repeats: int = 25) -> list[Row]:
    """Measure the time from a JPEG file with sensor noise to the input of the network.

    This needs a fresh process: after a training, a process holds free memory that full decoding could reuse,
    which a server does not have.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        megabytes, ours, thumbnail, full = pool.submit(photo_times, size, repeats).result()
    what = f"JPEG of 12 megapixels, {megabytes:.1f} MB, to 32x32"
    fast = f"{1000 * ours:.0f} ms (checked, decoded at reduced scale)"
    return [
        Row(
            what,
            fast,
            f"{1000 * thumbnail:.0f} ms (Image.thumbnail, which also decodes at reduced scale)",
            ours / thumbnail,
            "of its time",
        ),
        Row(
            "the same",
            fast,
            f"{1000 * full:.0f} ms (Pillow, full decode)",
            ours / full,
            "of its time",
            at_most=0.2,
        ),
    ]


def photo_times(size: tuple[int, int], repeats: int) -> tuple[float, float, float, float]:
    """Return the file's megabytes, and seconds of our decoding, of `Image.thumbnail` and of a full decode."""
    photo = np.asarray(
        Image.fromarray(load_sample_image("flower.jpg")).resize(size, Image.Resampling.LANCZOS)
    )
    noise = np.random.default_rng(0).normal(0, 3, photo.shape)
    file = io.BytesIO()
    Image.fromarray((photo + noise).clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
    data = file.getvalue()
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: decode_image(data, 32, "crop"),
        "thumbnail": lambda: thumbnail(Image.open(io.BytesIO(data))),
        "full": lambda: (
            Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, decode in sides.items():
            begin = time.perf_counter()
            decode()
            seconds[name].append(time.perf_counter() - begin)
    ours, small, full = (statistics.median(seconds[name]) for name in sides)
    return len(data) / 1e6, ours, small, full


def thumbnail(image: Image.Image) -> Image.Image:
    """Return the centre square at 32x32, reduced by `Image.thumbnail` as in Pillow's documentation."""
    longer = -(-32 * max(image.size) // min(image.size))
    image.thumbnail((longer, longer))
    return ImageOps.fit(image.convert("RGB"), (32, 32))

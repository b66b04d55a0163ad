"""Compare `classify` and its engines with the network alone: images per second on all cores of this machine.

The limit of the engine is a bare ONNX Runtime session with its default settings, which gets arrays that are
already decoded. The scorer decodes as well: one thread per core decodes PNG files in memory and scores them
in batches of 64 of its own. `classify` also finds and reads the files, and writes rows; its model is loaded
beforehand, as loading takes the same time for any number of images. These sides take turns in one process,
and the figures are medians over the rounds. The table also shows the processor time per image, which depends
less on other load on the machine.

Ray and Spark have one worker per core. Their figure counts from the moment when each worker has finished its
first part, since a cluster usually runs already.
"""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.harness import Row, progress
from cifar_mlflow import pipeline
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data import load_dataset
from cifar_mlflow.scorer.predictor import MODEL_FILE, Scorer
from cifar_mlflow.verb_config import RegisterConfig
from serving.batch import classify, classify_on_engine, threads_per_batch
from serving.batch.answer import BATCH_SIZE
from serving.registry.loader import load_scorer
from serving.registry.register import register

# The accuracy does not matter here, and the rate does not depend on the weights.
TRAINING = {"dataset": "sample", "model": "fast", "epochs": 1, "val_size": 0.25}
CORES = len(os.sched_getaffinity(0))


class Rate(NamedTuple):
    """Images per second, and microseconds of processor time per image."""

    images: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.images:,.0f} images/s, {self.cpu:,.0f} µs of CPU per image"


def measure(
    model_uri: str | None = None,
    images: int = 20_000,
    rounds: int = 3,
    engines: tuple[str, ...] = ("ray", "spark"),
    **settings: Any,
) -> list[Row]:
    """Measure the model at `model_uri`, or a new one; `settings` are those of its training."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model_uri = model_uri or new_model(folder, **settings)
        scorer = load_scorer(model_uri, threads_per_batch())
        photos = write_photos(folder / "photos", images)
        sides = sides_in_process(folder, scorer, model_uri, photos)
        measured: dict[str, list[Rate]] = {name: [] for name in sides}
        for number in range(rounds):
            for name, side in sides.items():
                measured[name].append(timed(partial(side, number), images))
                progress(f"  {name}: {measured[name][-1]}")
        clusters = {name: on_cluster(name, model_uri, photos, folder / name) for name in engines}
    rates = {
        name: Rate(*(statistics.median(values) for values in zip(*of_side, strict=True)))
        for name, of_side in measured.items()
    }
    name = f"{scorer.card['precision']}, {images:,} images of 32 pixels"
    return [
        row(f"classify, {name}: share of the scorer", rates["file"], "scorer alone", rates["scorer"], 90),
        row("the same: share of the engine", rates["file"], "bare session, decoded arrays", rates["bare"]),
        row("into a folder: share of the engine", rates["folder"], "bare session", rates["bare"]),
        *(
            row(f"--engine {engine}: share of the engine", rate, "bare session", rates["bare"])
            for engine, rate in clusters.items()
        ),
    ]


def row(what: str, ours: Rate | float, peer: str, beside: Rate, at_least: float | None = None) -> Row:
    images = ours.images if isinstance(ours, Rate) else ours
    text = str(ours) if isinstance(ours, Rate) else f"{ours:,.0f} images/s"
    return Row(what, text, f"{beside} ({peer})", 100 * images / beside.images, "%", at_least=at_least)


def new_model(folder: Path, **settings: Any) -> str:
    """Train and register a network in a store of its own."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("batch", artifact_location=f"{folder}/artifacts")
    given = {**TRAINING, **settings, "experiment": "batch", "cache_dir": folder / "cache", "test": False}
    config = resolve_train_config(given)
    version = register(pipeline.train(config).run_id, RegisterConfig(cache_dir=config.cache_dir))
    return f"models:/{version.name}/{version.number}"


def write_photos(folder: Path, count: int) -> Path:
    """Write `count` PNG files with the images of the embedded sample; links repeat them."""
    with tempfile.TemporaryDirectory() as cache:
        config = resolve_train_config({"dataset": "sample", "cache_dir": cache})
        pixels = load_dataset(config).split("train").images
        folder.mkdir()
        for i in range(min(count, len(pixels))):
            Image.fromarray(np.asarray(pixels[i])).save(folder / f"{i:06}.png")
    for i in range(len(pixels), count):
        (folder / f"{i:06}.png").hardlink_to(folder / f"{i % len(pixels):06}.png")
    return folder


def sides_in_process(
    folder: Path, scorer: Scorer, model_uri: str, photos: Path
) -> dict[str, Callable[[int], object]]:
    """Return the sides that run in this process; each takes the number of the round."""
    files = [path.read_bytes() for path in sorted(photos.iterdir())]
    starts = range(0, len(files), BATCH_SIZE)
    arrays = np.stack([scorer.decode(content) for content in files])
    session = bare_session(model_uri)
    name = session.get_inputs()[0].name
    session.run(None, {name: arrays[:BATCH_SIZE]})

    def score(start: int) -> None:
        batch = [scorer.decode(content) for content in files[start : start + BATCH_SIZE]]
        scorer.scores(scorer.engine.compute(np.stack(batch)))

    def scorer_alone(number: int) -> None:
        with ThreadPoolExecutor(CORES) as threads:
            list(threads.map(score, starts))

    return {
        "bare": lambda number: [
            session.run(None, {name: arrays[start : start + BATCH_SIZE]}) for start in starts
        ],
        "scorer": scorer_alone,
        "file": lambda number: classify([str(photos)], scorer, output=folder / f"{number}.parquet"),
        "folder": lambda number: classify_on_engine([str(photos)], model_uri, str(folder / f"{number}")),
    }


def bare_session(model_uri: str) -> onnxruntime.InferenceSession:
    with tempfile.TemporaryDirectory() as folder:
        model = mlflow.artifacts.download_artifacts(f"{model_uri}/artifacts/scorer", dst_path=folder)
        content = (Path(model) / MODEL_FILE).read_bytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def timed(run: Callable[[], object], images: int) -> Rate:
    cpu, start = _cpu_seconds(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return Rate(images / seconds, 1e6 * (_cpu_seconds() - cpu) / images)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def on_cluster(engine: str, model_uri: str, photos: Path, output: Path) -> float:
    """Return the rate of a local cluster after each worker's first part."""
    start = time.time()
    classify_on_engine([str(photos)], model_uri, str(output), engine=engine)
    written = sorted(path.stat().st_mtime for path in output.glob("part-*"))
    rows = sum(1 for _ in photos.iterdir()) / len(written)
    rate = rows * (len(written) - CORES) / (written[-1] - written[CORES - 1])
    progress(f"  {engine}: {rate:,.0f} images/s, first part after {written[0] - start:.0f} s")
    return rate

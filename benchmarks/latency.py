"""`python -m benchmarks latency [MODELS...]`: time one image through the served form of each network.

Each network is exported as `register` does it, with distance and maps, in fp32 and int8, and run by the
engine of the service with all cores. The networks are untrained and the images are noise: the time depends on
the architecture alone. Decoding and HTTP are not included. Both precisions take turns. The figure is the
fastest of all rounds, as in `register`: other work on the machine changes it least.

The rows go to benchmarks/latency.csv, from which `make docs` makes the table of models in docs/training.md.
"""

import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click
import numpy as np
import torch

from benchmarks.csv_file import read_rows, write_rows
from benchmarks.harness import progress
from benchmarks.results import commit_of
from cifar_mlflow.config import ModelName
from cifar_mlflow.data import CIFAR10_CLASSES
from cifar_mlflow.environment import git_state
from cifar_mlflow.evaluation.feature_distance import fit_distance
from cifar_mlflow.export.on_demand import compute_on_demand
from cifar_mlflow.export.onnx import save_onnx
from cifar_mlflow.export.quantize import quantize
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.scorer.engine import Engine
from cifar_mlflow.training.device import Hardware

TIMES = Path(__file__).with_name("latency.csv")
SIZE = 32
IMAGES = 100
MODELS: tuple[ModelName, ...] = get_args(ModelName)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a batch of one image."""

    model: str
    fp32_ms: float
    int8_ms: float
    hardware: str
    date: str
    commit: str


@click.command()
@click.argument("models", nargs=-1, type=click.Choice(MODELS))
@click.option("--rounds", default=200, show_default=True, help="Images per network and precision.")
def latency(models: tuple[ModelName, ...], rounds: int) -> None:
    """Time one image through the named networks, or all, and write the rows of benchmarks/latency.csv."""
    rows = {row.model: row for row in read_rows(TIMES, Latency)}
    for model in models or MODELS:
        rows[model] = measure(model, rounds)
        progress(f"  {model}: fp32 {rows[model].fp32_ms:.2f} ms, int8 {rows[model].int8_ms:.2f} ms")
        write_rows(TIMES, Latency, [rows[name] for name in MODELS if name in rows])


def measure(model: str, rounds: int) -> Latency:
    """Return the shortest time of one image through a newly initialized network."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    classifier = ImageClassifier(build_network(model, len(CIFAR10_CLASSES)), (0.5,) * 3, (0.25,) * 3).eval()
    card = ModelCard(model=model, classes=CIFAR10_CLASSES, image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        save_onnx(fp32, classifier, card, fit_distance(classifier, images, images, 1.0), class_map=True)
        quantize(fp32, int8, images)
        for file in (fp32, int8):
            compute_on_demand(file)
        engines = [Engine(fp32), Engine(int8)]
        times: list[list[float]] = [[], []]
        for number in range(rounds + 1):
            image = images[number % IMAGES][None]
            for engine, durations in zip(engines, times, strict=True):
                begun = time.perf_counter()
                engine.run(image)
                if number:  # the first call warms up
                    durations.append(1000 * (time.perf_counter() - begun))
        for engine in engines:
            engine.close()
    fp32_ms, int8_ms = (round(min(durations), 3) for durations in times)
    hardware = Hardware(torch.device("cpu"), "fp32").name
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Latency(model, fp32_ms, int8_ms, hardware, now, commit_of(git_state()))

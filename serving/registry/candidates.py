"""The candidates for serving a trained network, fp32 and int8, and the choice between them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_mlflow.data import SelectedImages
from cifar_mlflow.errors import CifarError
from cifar_mlflow.evaluation.class_map import class_map_info
from cifar_mlflow.evaluation.feature_distance import fit_distance
from cifar_mlflow.evaluation.paired_test import PairedTest
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.images import EvalSet
from cifar_mlflow.export.on_demand import compute_on_demand
from cifar_mlflow.export.onnx import save_onnx
from cifar_mlflow.export.quantize import quantize
from cifar_mlflow.export.verify import disagreement
from cifar_mlflow.models.card import ClassMapInfo, ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.scorer.engine import Engine
from cifar_mlflow.verb_config import Precision, ServedPrecision

logger = logging.getLogger("cifar_mlflow.register")

BATCH_SIZES = (1, 16)
TIMING_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Candidate:
    """An exported network and its answers to the evaluation images.

    Attributes:
        model: the ONNX file.
        logits: float32 (N, classes).
        distance: float32 (N,), of the features, see `FeatureDistance`.
        correct: bool (N,), whether each image was classified correctly.
        agreement: share of images with the label that the trained network gives.
        milliseconds: time per batch on this machine, by batch size.
        class_map: size of the maps that the file gives on demand; None if it gives none.
    """

    precision: ServedPrecision
    model: Path
    logits: NDArray[np.float32]
    distance: NDArray[np.float32]
    correct: NDArray[np.bool_]
    agreement: float
    milliseconds: dict[int, float]
    class_map: ClassMapInfo | None

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def metrics(self, split: str) -> dict[str, float]:
        """Return the candidate's figures by the names that they have in the MLflow run."""
        prefix = f"serve/{self.precision}"
        return {
            f"{prefix}/{split}_accuracy": self.accuracy,
            f"{prefix}/agreement": self.agreement,
            f"{prefix}/megabytes": self.model.stat().st_size / 1e6,
            **{f"{prefix}/ms_batch_{size}": duration for size, duration in self.milliseconds.items()},
        }


def build_candidates(
    classifier: ImageClassifier,
    card: ModelCard,
    training_images: NDArray[np.uint8] | SelectedImages,
    eval_set: EvalSet,
    precision: Precision,
    folder: Path,
) -> list[Candidate]:
    """Export and measure the candidates: fp32 always, and int8 unless `precision` rules it out.

    With `auto`, int8 is built only if there are validation images: on training images a network is too good
    to show what int8 costs.

    Args:
        training_images: uint8 (N, S, S, 3), to calibrate the ranges of int8.
        folder: where the ONNX files are written.

    Raises:
        CifarError: the exported network does not give the labels of the trained one.
    """
    images, truth = eval_set.images.images, eval_set.images.labels
    expected = predict_logits(classifier, images).argmax(axis=1)
    models: dict[ServedPrecision, Path] = {"fp32": folder / "fp32.onnx"}
    distance = fit_distance(classifier, training_images, images, card.temperature)
    save_onnx(models["fp32"], classifier, card, distance, class_map=True)
    if precision == "int8" or (precision == "auto" and eval_set.held_out):
        models["int8"] = folder / "int8.onnx"
        logger.info("Quantizing it to int8")
        quantize(models["fp32"], models["int8"], training_images)
    for model in models.values():
        compute_on_demand(model)
    engines = {name: Engine(model) for name, model in models.items()}
    logger.info("Measuring %s", " and ".join(models))
    milliseconds = _time_batches(engines, images)
    class_map = class_map_info(classifier, card.image_size)
    candidates = []
    for name, engine in engines.items():
        logits, distances = split_outputs(engine.run(images))
        engine.close()
        labels = logits.argmax(axis=1)
        candidates.append(
            Candidate(
                precision=name,
                model=models[name],
                logits=logits,
                distance=distances,
                correct=labels == truth,
                agreement=float((labels == expected).mean()),
                milliseconds=milliseconds[name],
                class_map=class_map,
            )
        )
    if reason := disagreement(candidates[0].agreement, eval_set):
        raise CifarError(reason)
    return candidates


def split_outputs(outputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Split the outputs of an engine, (N, classes + 1), into logits, (N, classes), and distances, (N,)."""
    return outputs[:, :-1], outputs[:, -1]


@dataclass(frozen=True)
class Decision:
    """Why a network is served as fp32 or int8: the reason, and the figures behind it, in words."""

    reason: str
    figures: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.figures})" if self.figures else self.reason


def choose(candidates: list[Candidate], precision: Precision) -> tuple[Candidate, Decision]:
    """Return the candidate to serve and the reason.

    Args:
        candidates: as `build_candidates` returns them.
        precision: `auto` takes int8 if it costs no accuracy that the images can show (see
            `PairedTest.objection`) and is not slower.

    Raises:
        CifarError: int8 was requested and costs too much accuracy.
    """
    fp32, *others = candidates
    if precision == "fp32":
        return fp32, Decision("fp32, as requested")
    if not others:
        return fp32, Decision("fp32: no images were held out to compare int8 with it")
    (int8,) = others
    comparison = PairedTest.of(fp32.correct, int8.correct)
    accuracy = f"accuracy {int8.accuracy:.4f} as int8, {fp32.accuracy:.4f} as fp32; {comparison}"
    speed = f"{int8.milliseconds[16]:.1f} ms for 16 images as int8, {fp32.milliseconds[16]:.1f} ms as fp32"
    if objection := comparison.objection:
        if precision == "int8":
            raise CifarError(f"{objection}: {accuracy}; register it as fp32")
        return fp32, Decision(f"fp32: {objection}", accuracy)
    if precision == "int8":
        return int8, Decision("int8, as requested", f"{accuracy}; {speed}")
    if int8.milliseconds[16] > fp32.milliseconds[16]:
        return fp32, Decision("fp32: int8 is slower", f"{speed}; {accuracy}")
    return int8, Decision("int8", f"{accuracy}; {speed}")


def _time_batches(
    engines: Mapping[ServedPrecision, Engine], images: NDArray[np.uint8]
) -> dict[ServedPrecision, dict[int, float]]:
    """Return milliseconds per batch, by engine and batch size: the fastest of several rounds.

    The engines take turns, so that a busy moment of the machine slows all of them.
    """
    fastest: dict[ServedPrecision, dict[int, float]] = {name: {} for name in engines}
    for size in BATCH_SIZES:
        batch = np.resize(images, (size, *images.shape[1:]))
        for _ in range(TIMING_ROUNDS):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine.run(batch)
                duration = 1000 * (time.perf_counter() - start)
                fastest[name][size] = min(duration, fastest[name].get(size, duration))
    return fastest

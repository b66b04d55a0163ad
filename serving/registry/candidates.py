"""The forms in which a trained network can be served, fp32 and int8, and the choice between them."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cifar_mlflow.config import Precision
from cifar_mlflow.data import Split
from cifar_mlflow.errors import CifarError
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.onnx import save_onnx
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.scorer.engine import Engine
from serving.registry.quantize import quantize

logger = logging.getLogger("cifar_mlflow.register")


# An exported network computes the same in another order. What gives more than one other label in a thousand
# is another network.
MIN_AGREEMENT = 0.999
MAX_LOSS = 0.003
BATCHES = (1, 16)
ROUNDS = 10


@dataclass(frozen=True, eq=False)
class EvalSet:
    """The images by which forms are judged: of validation, unless none were held out."""

    split: Literal["val", "train"]
    images: Split

    @property
    def held_out(self) -> bool:
        return self.split == "val"

    def __str__(self) -> str:
        count = f"{len(self.images):,}"
        if self.held_out:
            return f"{count} validation images"
        return f"{count} of the images that it was trained on, as none were held out"


@dataclass(frozen=True, eq=False)
class Candidate:
    """One form of the network, and what it makes of the images that it is judged by.

    Attributes:
        logits: float32 (N, classes).
        agreement: share of them with the label that the trained network gives.
        milliseconds: by the size of a batch, on this machine.
    """

    precision: Literal["fp32", "int8"]
    model: Path
    logits: NDArray[np.float32]
    accuracy: float
    agreement: float
    milliseconds: dict[int, float]

    def metrics(self, split: str) -> dict[str, float]:
        return {
            f"serve/{self.precision}/{split}_accuracy": self.accuracy,
            f"serve/{self.precision}/agreement": self.agreement,
            f"serve/{self.precision}/megabytes": self.model.stat().st_size / 1e6,
            **{
                f"serve/{self.precision}/ms_batch_{size}": duration
                for size, duration in self.milliseconds.items()
            },
        }


def make_forms(
    classifier: ImageClassifier,
    card: ModelCard,
    training_images: NDArray[np.uint8],
    judges: EvalSet,
    precision: Precision,
    folder: Path,
) -> list[Candidate]:
    """The forms to choose from, written to `folder`: fp32 always, and int8 where it may be chosen.

    `auto` needs images that were held out for that: of those it was trained on a network is too sure.

    Args:
        training_images: uint8 (N, S, S, 3), on which the ranges of int8 are measured.

    Raises:
        CifarError: the exported network is not the trained one.
    """
    images, truth = judges.images.images, judges.images.labels
    labels = predict_logits(classifier, images).argmax(axis=1)
    models = {"fp32": folder / "fp32.onnx"}
    save_onnx(models["fp32"], classifier, card)
    if precision == "int8" or (precision == "auto" and judges.held_out):
        models["int8"] = folder / "int8.onnx"
        quantize(models["fp32"], models["int8"], training_images)
    engines = {name: Engine(model) for name, model in models.items()}
    durations = _milliseconds(engines, images)
    forms = []
    for name, engine in engines.items():
        logits = engine.run(images)
        engine.close()
        forms.append(
            Candidate(
                precision="fp32" if name == "fp32" else "int8",
                model=models[name],
                logits=logits,
                accuracy=float((logits.argmax(axis=1) == truth).mean()),
                agreement=float((logits.argmax(axis=1) == labels).mean()),
                milliseconds=durations[name],
            )
        )
    if forms[0].agreement < MIN_AGREEMENT:
        raise CifarError(
            f"the exported network gives another label than the trained one for {1 - forms[0].agreement:.2%} "
            f"of {judges}; at most {1 - MIN_AGREEMENT:.2%} are allowed"
        )
    return forms


def choose(forms: list[Candidate], precision: Precision) -> tuple[Candidate, str]:
    """The form to serve, and why it is that one.

    Args:
        precision: `auto` takes int8 if it loses at most 0.3 points of accuracy and is not slower.

    Raises:
        CifarError: int8 was asked for, and loses more than that.
    """
    fp32, *others = forms
    if precision == "fp32":
        return fp32, "fp32, as asked for"
    if not others:
        return fp32, "fp32: no images were held out by which int8 could be judged"
    (int8,) = others
    figures = f"accuracy {int8.accuracy:.4f} as int8, {fp32.accuracy:.4f} as fp32"
    speed = f"{int8.milliseconds[16]:.1f} ms for 16 images as int8, {fp32.milliseconds[16]:.1f} ms as fp32"
    # A thousandth of a point for the rounding of the shares.
    if fp32.accuracy - int8.accuracy > MAX_LOSS + 1e-9:
        if precision == "int8":
            raise CifarError(
                f"int8 loses more than {100 * MAX_LOSS:g} points: {figures}; register it as fp32"
            )
        return fp32, f"fp32: int8 loses more than {100 * MAX_LOSS:g} points ({figures})"
    if precision == "int8":
        return int8, f"int8, as asked for ({figures}; {speed})"
    if int8.milliseconds[16] > fp32.milliseconds[16]:
        return fp32, f"fp32: int8 is slower ({speed})"
    return int8, f"int8 ({figures}; {speed})"


def _milliseconds(engines: dict[str, Engine], images: NDArray[np.uint8]) -> dict[str, dict[int, float]]:
    """The shortest of some runs, which take turns, so that a busy moment of the machine is one for each."""
    durations: dict[str, dict[int, float]] = {name: {} for name in engines}
    for size in BATCHES:
        batch = np.resize(images, (size, *images.shape[1:]))
        for _ in range(ROUNDS):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine.run(batch)
                duration = 1000 * (time.perf_counter() - start)
                durations[name][size] = min(duration, durations[name].get(size, duration))
    return durations

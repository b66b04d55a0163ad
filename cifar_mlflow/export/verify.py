"""Run an exported file on the evaluation images and compare it with the trained network."""

import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cifar_mlflow.evaluation.paired_test import PairedTest
from cifar_mlflow.export.format import Predict
from cifar_mlflow.export.images import EvalSet
from cifar_mlflow.verb_config import ServedPrecision

# An export changes the order of floating-point operations, which flips a label in rare cases. More than one
# in a thousand means that the export is wrong.
MIN_AGREEMENT = 0.999
BATCH = 64
TIMING_ROUNDS = 20


@dataclass(frozen=True)
class Measured:
    """One row of the table of exports.

    Attributes:
        agreement: share of the images with the label that the trained network gives.
        accuracy: share of right labels.
        ms_per_image: time for a batch of one image on this machine, the median of 20.
        runtime: name and version of what ran the file.
    """

    format: str
    precision: ServedPrecision
    file: str
    megabytes: float
    agreement: float
    accuracy: float
    ms_per_image: float
    runtime: str

    def metrics(self) -> dict[str, float]:
        """Return the figures by the names that they have in the MLflow run."""
        prefix = f"export/{self.format}-{self.precision}"
        names = ("megabytes", "agreement", "accuracy", "ms_per_image")
        return {f"{prefix}/{name}": getattr(self, name) for name in names}


def predict_labels(predict: Predict, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the most probable class of each image, int64 (N,)."""
    batches = [predict(np.ascontiguousarray(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
    return np.concatenate(batches).argmax(axis=1)


def time_one_image(predict: Predict, images: NDArray[np.uint8]) -> float:
    """Return milliseconds for a batch of one image: the median of 20 calls, after one that is not counted."""
    durations = []
    for round_ in range(TIMING_ROUNDS + 1):
        index = round_ % len(images)
        image = np.ascontiguousarray(images[index : index + 1])
        start = time.perf_counter()
        predict(image)
        durations.append(1000 * (time.perf_counter() - start))
    return statistics.median(durations[1:])


def objection(
    precision: ServedPrecision,
    labels: NDArray[np.int64],
    expected: NDArray[np.int64],
    eval_set: EvalSet,
) -> str | None:
    """Return why a file may not be handed over; None if it is as good as the trained network.

    fp32 must give the trained network's label for 99.9 % of the images; int8 may cost as much accuracy as
    `register` allows (see `PairedTest.objection`).

    Args:
        labels, expected: the labels that the file and the trained network give, int64 (N,).
    """
    if precision == "fp32":
        return disagreement(float((labels == expected).mean()), eval_set)
    truth = eval_set.images.labels
    comparison = PairedTest.of(expected == truth, labels == truth)
    return f"{comparison.objection}: {comparison}" if comparison.objection else None


def disagreement(agreement: float, eval_set: EvalSet) -> str | None:
    """Return why an fp32 file is refused: its labels differ too often from the trained network's; or None."""
    if agreement >= MIN_AGREEMENT:
        return None
    return (
        f"the exported network and the trained one give different labels for {1 - agreement:.2%} of "
        f"{eval_set}; at most {1 - MIN_AGREEMENT:.2%} are allowed"
    )

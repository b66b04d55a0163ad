"""The Python interface: `cifar_mlflow.train` and `cifar_mlflow.load`."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_mlflow import pipeline
from cifar_mlflow.config import TtaName, resolve_train_config
from cifar_mlflow.errors import UsageError
from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.reference import load_classifier, with_model_of_weights
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.scorer.phone_formats import in_common_format
from cifar_mlflow.scorer.preprocess import BadImage, decode_image
from cifar_mlflow.tracking.result import Result

AnImage = str | Path | bytes | NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: the class with the highest probability.
        confidence: its probability, calibrated if the model was trained with a validation split.
        probabilities: probability of each class, by class name; they sum to 1.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Classifier:
    """A trained network.

    Attributes:
        network: the torch module, in eval mode and on the CPU: float32 (N, 3, S, S) in 0..1 to logits.
        card: architecture, classes, data, calibration and metrics.
    """

    network: ImageClassifier
    card: ModelCard

    def predict(self, images: Iterable[AnImage], *, tta: TtaName = "none") -> list[Prediction]:
        """Classify images with the preprocessing of the service and the weights as they were trained.

        Args:
            images: paths, contents of files, or uint8 arrays (H, W, 3) in RGB, of any size.
            tta: `flip` or `crops` averages mirrored or shifted copies, which takes 2 or 6 times as long.

        Returns:
            One prediction per image, in order.

        Raises:
            UsageError: an image cannot be read or decoded; the message gives its index in `images`. Also if
                `images` is a single one.
        """
        if isinstance(images, str | Path | bytes) or (isinstance(images, np.ndarray) and images.ndim == 3):
            raise UsageError("predict takes several images: put a single one into a list, as in [image]")
        pixels = [self._pixels(place, image) for place, image in enumerate(images)]
        if not pixels:
            return []
        logits = predict_logits(self.network, np.stack(pixels), tta=tta)
        classes = self.card.classes
        return [
            Prediction(
                classes[row.argmax()], float(row.max()), dict(zip(classes, map(float, row), strict=True))
            )
            for row in softmax(logits, self.card.temperature)
        ]

    def _pixels(self, place: int, image: AnImage) -> NDArray[np.uint8]:
        try:
            if isinstance(image, np.ndarray):
                image = _png(image)
            elif not isinstance(image, bytes):
                image = Path(image).read_bytes()
            return decode_image(in_common_format(image), self.card.image_size)
        except (BadImage, OSError, ValueError) as error:
            raise UsageError(f"image {place}: {error}") from error


def train(**settings: Any) -> Result:
    """Train a model and track it as an MLflow run, as `cifar-mlflow train` does.

    Args:
        settings: the settings of `cifar-mlflow train` (`TrainConfig`), with underscores.

    Returns:
        The id and name of the run, and its metrics by name.

    Raises:
        UsageError: a setting is unknown or out of bounds.
        CifarError: something failed; the run is FAILED and has the error as a tag.
    """
    config = resolve_train_config(with_model_of_weights(settings))
    return pipeline.train(config, adapt_batch_size="batch_size" not in settings)


def load(reference: str) -> Classifier:
    """Load the weights of a run (its id or runs:/), of a registered version (models:/), or of a file.

    To load the served form of a version, with its abstention thresholds and possibly in int8, use
    `mlflow.pyfunc.load_model`.

    Raises:
        UsageError: there is no such run, version or file.
        CifarError: MLflow does not answer, or the file is damaged.
    """
    return Classifier(*load_classifier(reference))


def _png(array: NDArray[np.uint8]) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an array must be uint8 (H, W, 3): got {array.dtype} {array.shape}")
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=0)
    return file.getvalue()

"""The interface of an export format: one module implements it for each."""

import importlib.metadata
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cifar_mlflow.data import SelectedImages
from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.export.files import FORMAT_VERSION
from cifar_mlflow.export.images import EvalSet
from cifar_mlflow.extras import install_command
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.verb_config import ExportConfig, ServedPrecision

Images = NDArray[np.uint8]
Predict = Callable[[Images], NDArray[np.float32]]

PREPROCESSING = (
    "RGB, uint8 0..255, central square, resized to {size} x {size} (Pillow's bicubic, antialiased)"
)


@dataclass(frozen=True, eq=False)
class ModelToExport:
    """A trained network, and how to export it.

    Attributes:
        classifier: in eval mode and on the CPU; not to be changed.
        reference: the model as the user named it, such as models:/cifar10@champion.
        training_images: uint8 (N, S, S, 3), to calibrate the ranges of int8.
        eval_set: the images that the file is verified on.
        precision: one that the format supports.
        config: the options of the command.
    """

    classifier: ImageClassifier
    card: ModelCard
    reference: str
    training_images: Images | SelectedImages
    eval_set: EvalSet
    precision: ServedPrecision
    config: ExportConfig

    @property
    def stem(self) -> str:
        """Name of the file without its suffix, such as `resnet18-int8`."""
        stem = self.card.file_stem
        return stem if self.precision == "fp32" else f"{stem}-{self.precision}"

    def metadata(self) -> dict[str, str]:
        """Return the description that every file carries, as text by name; `card` is JSON.

        `preprocessing` says how an image becomes the input of the network, whether or not the file does that.
        """
        return {
            "cifar_mlflow_format": str(FORMAT_VERSION),
            "card": json.dumps(self.card.model_dump(mode="json")),
            "classes": json.dumps(self.card.classes, ensure_ascii=False),
            "preprocessing": PREPROCESSING.format(size=self.card.image_size),
            "precision": self.precision,
            "version": f"cifar-mlflow {importlib.metadata.version('cifar-mlflow')}, {self.reference}",
            "license": self.config.license,
        }


class ExportFormat(ABC):
    """Write a model in one format, and run the file with the format's own runtime.

    Attributes:
        name: as in `--format`.
        extra: the extra of this package that installs what the format needs; None if it needs nothing.
        modules: the modules that the extra installs; if one cannot be found, the extra is missing.
        precisions: those that the format supports.
        preprocessing: whether `--with-preprocessing` is supported.
    """

    name: ClassVar[str]
    extra: ClassVar[str | None] = None
    modules: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[ServedPrecision, ...]] = ("fp32",)
    preprocessing: ClassVar[bool] = False

    def missing(self, config: ExportConfig) -> str | None:
        """Return the command that installs missing packages; None if there are none.

        This must be quick: `--format all` calls it for every format.
        """
        if all(importlib.util.find_spec(module) for module in self.modules):
            return None
        return install_command(self.extra) if self.extra else None

    @abstractmethod
    def write(self, model: ModelToExport, folder: Path) -> Path:
        """Write a file (or folder) into `folder`, an existing, empty one, and return its path.

        Raises:
            CifarError: the model cannot be expressed in this format, or the conversion failed.
            OSError: the disk is full, or similar.
        """

    @abstractmethod
    def load(self, path: Path) -> Predict:
        """Open what `write` wrote with the format's own runtime.

        Returns:
            A function from uint8 (N, S, S, 3) RGB to float32 probabilities (N, classes). It raises ValueError
            for images of another dtype or shape.
        """

    @abstractmethod
    def metadata(self, path: Path) -> dict[str, str]:
        """Read `ModelToExport.metadata` from what `write` wrote."""

    @abstractmethod
    def runtime(self) -> str:
        """Return name and version of the runtime, such as `onnxruntime 1.32.0`."""


def check_images(images: NDArray[Any], size: int) -> None:
    """Raise ValueError unless the images are uint8 (N, size, size, 3)."""
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise ValueError(f"images must be uint8 (N, {size}, {size}, 3): got {images.dtype} {images.shape}")


def probabilities(logits: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float32]:
    """Return float32 (N, classes) of logits that are not yet divided by the temperature."""
    return softmax(logits, temperature).astype(np.float32)

"""The export formats `safetensors` and `hdf5-weights`: weights only, which torch runs in our network."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors import safe_open

from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export import load_model_file
from cifar_mlflow.export.format import (
    ExportFormat,
    Images,
    ModelToExport,
    Predict,
    check_images,
    probabilities,
)
from cifar_mlflow.export.hdf5 import save_hdf5
from cifar_mlflow.export.weights import save_weights


class _Weights(ExportFormat):
    suffix: str
    save: Callable[..., None]

    def write(self, model: ModelToExport, folder: Path) -> Path:
        path = folder / f"{model.stem}{self.suffix}"
        type(self).save(path, model.classifier, model.card, model.metadata())
        return path

    def load(self, path: Path) -> Predict:
        classifier, card = load_model_file(path)

        def predict(images: Images) -> np.ndarray:
            check_images(images, card.image_size)
            return probabilities(predict_logits(classifier, images), card.temperature)

        return predict

    def runtime(self) -> str:
        return f"torch {torch.__version__}"


class _Safetensors(_Weights):
    name = "safetensors"
    suffix = ".safetensors"
    save = save_weights

    def metadata(self, path: Path) -> dict[str, str]:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata()
        return metadata


class _Hdf5Weights(_Weights):
    name = "hdf5-weights"
    suffix = "-weights.h5"  # beside the file of `--format h5`
    save = save_hdf5

    def metadata(self, path: Path) -> dict[str, str]:
        with h5py.File(path) as file:
            return dict(file["export"].attrs)


SAFETENSORS = _Safetensors()
HDF5_WEIGHTS = _Hdf5Weights()

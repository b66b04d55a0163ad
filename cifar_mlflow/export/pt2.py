"""The export format `pt2`: a program of torch.export, as `train` logs it, which runs without our code.

Input: float32 (N, 3, S, S), RGB in 0..1. Output: logits, float32 (N, classes), to be divided by the
temperature before the softmax.
"""

import json
from pathlib import Path

import numpy as np
import torch

from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.format import (
    ExportFormat,
    Images,
    ModelToExport,
    Predict,
    check_images,
    probabilities,
)
from cifar_mlflow.export.metadata import ENTRY, read_metadata
from cifar_mlflow.export.program import load_program
from cifar_mlflow.models.card import ModelCard


class _Pt2(ExportFormat):
    name = "pt2"

    def write(self, model: ModelToExport, folder: Path) -> Path:
        size = model.card.image_size
        program = torch.export.export(
            model.classifier, (torch.zeros(2, 3, size, size),), dynamic_shapes=({0: torch.export.Dim("N")},)
        )
        path = folder / f"{model.stem}.pt2"
        torch.export.save(program, path, extra_files={ENTRY: json.dumps(model.metadata(), indent=2)})
        return path

    def load(self, path: Path) -> Predict:
        program = load_program(path)
        card = ModelCard.model_validate_json(self.metadata(path)["card"])

        def predict(images: Images) -> np.ndarray:
            check_images(images, card.image_size)
            return probabilities(predict_logits(program, images), card.temperature)

        return predict

    def metadata(self, path: Path) -> dict[str, str]:
        return read_metadata(path)

    def runtime(self) -> str:
        return f"torch {torch.__version__}"


PT2 = _Pt2()

"""The export format `litert`: a .tflite model for LiteRT on phones and microcontrollers, fp32 or int8.

Signature `serving_default`. Input `images`: uint8 (1, S, S, 3), RGB; every delegate supports a fixed shape.
Outputs `probabilities` and `logits`: float32 (1, classes). In int8, the convolutions and the operators
between them are quantized, the head is not, as in `quantize`. The metadata is in a zip archive at the end of
the file, like the associated files of TensorFlow Lite. https://ai.google.dev/edge/litert
"""

import importlib.metadata
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from cifar_mlflow.export.conversion import conversion
from cifar_mlflow.export.format import ExportFormat, Images, ModelToExport, Predict, check_images
from cifar_mlflow.export.metadata import append_metadata, read_metadata
from cifar_mlflow.export.pixels import AnswersOfPixels
from cifar_mlflow.export.quantize import calibration_images
from cifar_mlflow.models.card import ModelCard

SIGNATURE = "serving_default"


class _Litert(ExportFormat):
    name = "litert"
    extra = "litert"
    modules = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")
    precisions = ("fp32", "int8")

    def write(self, model: ModelToExport, folder: Path) -> Path:
        size = model.card.image_size
        network = AnswersOfPixels(deepcopy(model.classifier), model.card.temperature).eval()
        path = folder / f"{model.stem}.tflite"
        example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        with conversion("litert-torch"):
            import litert_torch

            litert_torch.convert(network, sample_kwargs={"images": example}).export(str(path))
            if model.precision == "int8":
                _quantize(path, calibration_images(model.training_images))
        append_metadata(path, model.metadata())
        return path

    def load(self, path: Path) -> Predict:
        size = ModelCard.model_validate_json(self.metadata(path)["card"]).image_size
        with conversion("ai-edge-litert"):
            from ai_edge_litert.interpreter import Interpreter

            run = Interpreter(str(path)).get_signature_runner(SIGNATURE)
            run(images=np.zeros((1, size, size, 3), np.uint8))  # the first call reports the delegate

        def predict(images: Images) -> np.ndarray:
            check_images(images, size)
            return np.concatenate([run(images=image[None])["probabilities"] for image in images])

        return predict

    def metadata(self, path: Path) -> dict[str, str]:
        return read_metadata(path)

    def runtime(self) -> str:
        return f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"


LITERT = _Litert()


def _quantize(path: Path, images: Images) -> None:
    """Replace a model by its int8 version, calibrated on the images."""
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(str(path))
    for operator in (TFLOperationName.CONV_2D, TFLOperationName.ADD, TFLOperationName.MAX_POOL_2D):
        quantizer.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
    ranges = quantizer.calibrate({SIGNATURE: [{"images": image[None]} for image in images]})
    quantizer.quantize(ranges).export_model(str(path), overwrite=True)

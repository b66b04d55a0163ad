"""The export format `executorch`: a .pte program for ExecuTorch on phones, lowered to XNNPACK.

Method `forward`. Input: uint8 (1, S, S, 3), RGB; one image, because the memory for a batch is planned ahead.
Outputs: probabilities and logits, float32 (1, classes) each. Each entry of the metadata is a method without
inputs that returns text. https://docs.pytorch.org/executorch
"""

import importlib.metadata
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from cifar_mlflow.export.conversion import conversion
from cifar_mlflow.export.format import ExportFormat, Images, ModelToExport, Predict, check_images
from cifar_mlflow.export.pixels import AnswersOfPixels
from cifar_mlflow.models.card import ModelCard


class _Executorch(ExportFormat):
    name = "executorch"
    extra = "executorch"
    modules = ("executorch",)

    def write(self, model: ModelToExport, folder: Path) -> Path:
        size = model.card.image_size
        network = AnswersOfPixels(deepcopy(model.classifier), model.card.temperature).eval()
        with conversion("executorch"):
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            program = torch.export.export(network, (torch.zeros(1, size, size, 3, dtype=torch.uint8),))
            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods=model.metadata()
            )
            content = lowered.to_executorch().buffer
        path = folder / f"{model.stem}.pte"
        path.write_bytes(content)
        return path

    def load(self, path: Path) -> Predict:
        size = ModelCard.model_validate_json(self.metadata(path)["card"]).image_size
        with conversion("executorch"):
            from executorch.runtime import Runtime

            forward = Runtime.get().load_program(path).load_method("forward")
            assert forward is not None

        def predict(images: Images) -> np.ndarray:
            check_images(images, size)
            answers = [forward.execute([torch.from_numpy(image[None])])[0].numpy().copy() for image in images]
            return np.concatenate(answers)

        return predict

    def metadata(self, path: Path) -> dict[str, str]:
        texts = {}
        with conversion("executorch"):
            from executorch.runtime import Runtime

            program = Runtime.get().load_program(path)
            for name in program.method_names - {"forward"}:
                method = program.load_method(name)
                assert method is not None
                (texts[name],) = method.execute([])
        return texts

    def runtime(self) -> str:
        return f"executorch {importlib.metadata.version('executorch')}"


EXECUTORCH = _Executorch()

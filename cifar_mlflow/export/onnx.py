"""Save models as .onnx: one file that any ONNX runtime can run, from pixels to logits.

Input `images`: uint8 (N, S, S, 3), RGB. Output `logits`: float32 (N, classes), to be divided by the card's
temperature before the softmax. N is free, S is the card's image size; the graph normalizes the images. The
file's metadata has `cifar_mlflow_format` (version) and `card` (the model card as JSON).
"""

import json
from copy import deepcopy
from pathlib import Path

import torch
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from cifar_mlflow.export.files import FORMAT_VERSION
from cifar_mlflow.files import atomic_write
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier

# The first with the activation of `fast` as one operator; ONNX Runtime has it since 1.17.
OPSET = 20


def save_onnx(path: Path, classifier: ImageClassifier, card: ModelCard) -> None:
    """Write a model to `path` atomically.

    Batch norms are folded into the convolutions before them. The classifier is not changed and may be in any
    mode and on any device.

    Raises:
        CifarError: the file cannot be written.
    """
    example = torch.zeros(2, card.image_size, card.image_size, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        _FromPixels(deepcopy(classifier).cpu()).eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    assert program is not None  # only the old exporter returns None
    # The exporter adds to each node the lines of code it comes from, with the paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(
        {"cifar_mlflow_format": str(FORMAT_VERSION), "card": json.dumps(card.model_dump(mode="json"))}
    )
    with atomic_write(path) as temporary:
        program.save(temporary)


class _FromPixels(nn.Module):
    """Take uint8 (N, H, W, 3) in 0..255 and normalize them in one step instead of two."""

    offset: Tensor
    scale: Tensor

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.network = classifier.network.to(memory_format=torch.contiguous_format)
        self.register_buffer("offset", 255 * classifier.mean)
        self.register_buffer("scale", 1 / (255 * classifier.std))

    def forward(self, images: Tensor) -> Tensor:
        # contiguous: otherwise the memory order of the channels adds index computations to the graph.
        pixels = images.permute(0, 3, 1, 2).contiguous().float()
        logits: Tensor = self.network((pixels - self.offset) * self.scale)
        return logits

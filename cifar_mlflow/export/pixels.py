"""A network as other runtimes get it: from uint8 pixels to logits and probabilities."""

import torch
from torch import Tensor, nn

from cifar_mlflow.models.classifier import ImageClassifier


class LogitsOfPixels(nn.Module):
    """Return the network's outputs for uint8 (N, H, W, 3) in 0..255, normalized in one step, not in two."""

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


class AnswersOfPixels(nn.Module):
    """Take uint8 (N, H, W, 3) in 0..255 and return probabilities and logits, float32 (N, classes) each."""

    def __init__(self, classifier: ImageClassifier, temperature: float) -> None:
        super().__init__()
        self.logits = LogitsOfPixels(classifier)
        self.temperature = temperature

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.logits(images)
        return {"probabilities": (logits / self.temperature).softmax(1), "logits": logits}

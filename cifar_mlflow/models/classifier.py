"""A network together with its input normalization."""

import torch
from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """A network that takes images in 0..1 and normalizes them itself.

    Input: float32 (N, 3, H, W), RGB. Output: float32 logits (N, classes), not divided by the temperature.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits.float()

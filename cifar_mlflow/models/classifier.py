"""A network together with its input normalization."""

from typing import Self

import torch
from torch import Tensor, nn

from cifar_mlflow.models.pretrained import head_of


class ImageClassifier(nn.Module):
    """A network that takes images in 0..1 and normalizes them itself.

    Input: float32 (N, 3, H, W), RGB. Output: float32 logits (N, classes), not divided by the temperature.

    Attributes:
        frozen: only the last layer is trained.
    """

    frozen = False

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def freeze(self) -> None:
        """Keep everything but the last layer as it is; batch norms stay in eval mode, dropout is off."""
        self.requires_grad_(False)
        head_of(self)[1].requires_grad_()
        self.frozen = True

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits.float()

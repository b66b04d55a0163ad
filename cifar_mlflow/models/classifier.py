"""The network together with what it needs to be used: normalization, class names, and how it was made."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelCard:
    """What a saved model says about itself; every export format carries it as JSON.

    `mean` and `std` are by channel (R, G, B) for pixels in 0..1; `temperature` divides the logits before the
    softmax; `val_size` and `split_seed` tell which training images were held out; `metrics` are named as in
    the MLflow run (`test/accuracy`, a share in 0..1).
    """

    model: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    width: float = 1.0
    dropout: float = 0.0
    temperature: float = 1.0
    data: str = ""
    data_digest: str = ""
    val_size: float = 0.0
    split_seed: int = 0
    run_id: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        tuples = {name: tuple(values[name]) for name in ("classes", "mean", "std")}
        return cls(**{**values, **tuples})


class ImageClassifier(nn.Module):
    """A network that takes images as they are: it normalizes them itself.

    Input: float32 (N, 3, H, W), RGB in 0..1. Output: float32 logits (N, classes), unscaled.
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

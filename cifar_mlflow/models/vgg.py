"""VGG with batch norm (arXiv 1409.1556): torchvision's convolutions with a small head.

The original's three wide linear layers hold 120 of its 138 million weights and expect 224-pixel images; on
small images, pooled features and one linear layer perform as well.
"""

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers


class Vgg(nn.Module):
    """Return logits (N, num_classes) of images of at least 32 pixels per side: five stages halve them."""

    def __init__(self, stages: list[int | str], num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = make_layers(stages, batch_norm=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(512, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.features(images)).flatten(1)
        logits: Tensor = self.head(self.dropout(features))
        return logits


def vgg11(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build a VGG-11."""
    return Vgg(cfgs["A"], num_classes, dropout)


def vgg13(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build a VGG-13."""
    return Vgg(cfgs["B"], num_classes, dropout)


def vgg16(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build a VGG-16."""
    return Vgg(cfgs["D"], num_classes, dropout)


def vgg19(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build a VGG-19."""
    return Vgg(cfgs["E"], num_classes, dropout)

"""VGG with batch norm (arXiv 1409.1556): torchvision's convolutions under a small head.

The three wide linear layers of the original hold 120 of its 138 million weights and are made for 224-pixel
images; pooled features and one linear layer do as well on small ones.
"""

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers


class Vgg(nn.Module):
    """Five stages that each halve the image: sides of 32 pixels and more. Logits (N, num_classes)."""

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
    return Vgg(cfgs["A"], num_classes, dropout)


def vgg13(num_classes: int, dropout: float = 0.0) -> nn.Module:
    return Vgg(cfgs["B"], num_classes, dropout)


def vgg16(num_classes: int, dropout: float = 0.0) -> nn.Module:
    return Vgg(cfgs["D"], num_classes, dropout)


def vgg19(num_classes: int, dropout: float = 0.0) -> nn.Module:
    return Vgg(cfgs["E"], num_classes, dropout)

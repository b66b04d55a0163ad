"""VGG with batch norm (K. Simonyan and A. Zisserman, arXiv 1409.1556) with a small head.

The original's three wide linear layers hold 120 of its 138 million weights and expect 224-pixel images; on
small images, pooled features and one linear layer perform as well. The convolutions, their parameters' names
and their initialization are those of torchvision, whose import takes two to three seconds.
"""

from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512, 512)  # of the five stages; a max-pool follows each of them


class Vgg(nn.Module):
    """Return logits (N, num_classes) of images of any size: five stages halve them, rounded up.

    Args:
        depths: number of convolutions per stage.
    """

    def __init__(self, depths: tuple[int, int, int, int, int], num_classes: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for channels, depth in zip(CHANNELS, depths, strict=True):
            for _ in range(depth):
                # torchvision keeps the bias, although the batch norm after it has one.
                conv = nn.Conv2d(c_in, channels, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                c_in = channels
            # Rounded up, so that the smaller images of `small_images` keep as many positions as images of 32
            # pixels have in the last two stages.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
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
    return Vgg((1, 1, 2, 2, 2), num_classes, dropout)


def vgg13(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build a VGG-13."""
    return Vgg((2, 2, 2, 2, 2), num_classes, dropout)


def vgg16(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build a VGG-16."""
    return Vgg((2, 2, 3, 3, 3), num_classes, dropout)


def vgg19(num_classes: int, dropout: float = 0.0) -> nn.Module:
    """Build a VGG-19."""
    return Vgg((2, 2, 4, 4, 4), num_classes, dropout)

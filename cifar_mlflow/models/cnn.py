"""A plain convolutional network: read it first; it trains in minutes on a CPU."""

from collections import OrderedDict

from torch import nn


def cnn(num_classes: int, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build three stages of two 3x3 convolutions. Each stage halves the image.

    The stages have 32, 64 and 128 channels, times `width`.
    """
    channels = [round(c * width) for c in (32, 64, 128)]
    layers: list[nn.Module] = []
    for c_in, c_out in zip([3, *channels], channels, strict=False):
        layers += [*_conv(c_in, c_out), *_conv(c_out, c_out), nn.MaxPool2d(2)]
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(dropout),
            head=nn.Linear(channels[-1], num_classes),
        )
    )


def _conv(c_in: int, c_out: int) -> list[nn.Module]:
    # No bias: the batch norm after it has one.
    return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]

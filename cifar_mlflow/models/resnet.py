"""Residual networks (arXiv 1512.03385): torchvision's, with the stem of small images.

torchvision's stem (7x7, stride 2, max-pool) leaves 8x8 of a 32x32 image before the first block. The paper's
CIFAR networks start with one 3x3 convolution at full size, and so do these.
"""

from torch import nn
from torchvision import models as torchvision_models


def resnet18(num_classes: int) -> nn.Module:
    return _for_small_images(torchvision_models.resnet18(num_classes=num_classes))


def resnet34(num_classes: int) -> nn.Module:
    return _for_small_images(torchvision_models.resnet34(num_classes=num_classes))


def resnet50(num_classes: int) -> nn.Module:
    return _for_small_images(torchvision_models.resnet50(num_classes=num_classes))


def _for_small_images(network: nn.Module) -> nn.Module:
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network

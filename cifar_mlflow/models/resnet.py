"""torchvision's residual networks (arXiv 1512.03385) with a stem for small images.

torchvision's stem (7x7, stride 2, max-pool) reduces a 32x32 image to 8x8 before the first block. Like the
paper's CIFAR networks, these start with one 3x3 convolution at full size.
"""

from torch import nn
from torchvision import models as torchvision_models


def resnet18(num_classes: int) -> nn.Module:
    """Build a ResNet-18."""
    return _for_small_images(torchvision_models.resnet18(num_classes=num_classes))


def resnet34(num_classes: int) -> nn.Module:
    """Build a ResNet-34."""
    return _for_small_images(torchvision_models.resnet34(num_classes=num_classes))


def resnet50(num_classes: int) -> nn.Module:
    """Build a ResNet-50."""
    return _for_small_images(torchvision_models.resnet50(num_classes=num_classes))


def _for_small_images(network: nn.Module) -> nn.Module:
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network

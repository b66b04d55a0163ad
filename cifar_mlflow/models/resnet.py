"""Residual networks (K. He et al., arXiv 1512.03385) with a stem for small images.

The names of the parameters, the initialization and the bottleneck block are those of torchvision, so that
weights can be exchanged, and a seed gives the weights that torchvision gives. They are defined here because
importing torchvision's models takes two to three seconds.

The original stem (7x7, stride 2, max-pool) reduces a 32x32 image to 8x8 before the first block. Like the
paper's CIFAR networks, these start with one 3x3 convolution at full size.
"""

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Add `residual(x)` to the input x, or to its projection where the shape changes.

    Attributes:
        expansion: output channels per channel of the stage.
    """

    expansion: int
    relu: nn.ReLU
    downsample: nn.Module | None

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = self.residual(x)
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class _BasicBlock(_Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, c_in: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(c_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.bn2(self.conv2(out))
        return result


class _Bottleneck(_Block):
    """A 3x3 convolution, which has the stride, between two 1x1 convolutions."""

    expansion = 4

    def __init__(self, c_in: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv1x1(c_in, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv1x1(channels, channels * self.expansion)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        result: Tensor = self.bn3(self.conv3(out))
        return result


class ResNet(nn.Module):
    """Return logits (N, num_classes) of normalized images (N, 3, H, W).

    Args:
        block: the kind of residual block.
        depths: number of blocks per stage.
    """

    def __init__(
        self, block: type[_BasicBlock | _Bottleneck], depths: tuple[int, int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        # The original stem, which is replaced below. Without it, the generator of the random numbers would
        # have another state, and a seed would give other weights than torchvision and earlier releases.
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1])
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2])
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialize(module)
        self.conv1 = _conv3x3(3, 64)
        _initialize(self.conv1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _stage(
    block: type[_BasicBlock | _Bottleneck], c_in: int, channels: int, depth: int, stride: int = 2
) -> nn.Sequential:
    c_out = channels * block.expansion
    downsample = None
    if stride != 1 or c_in != c_out:
        downsample = nn.Sequential(_conv1x1(c_in, c_out, stride), nn.BatchNorm2d(c_out))
    first = block(c_in, channels, stride, downsample)
    return nn.Sequential(first, *(block(c_out, channels, 1, None) for _ in range(depth - 1)))


def _conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)


def _conv1x1(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)


def _initialize(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def resnet18(num_classes: int) -> nn.Module:
    """Build a ResNet-18."""
    return ResNet(_BasicBlock, (2, 2, 2, 2), num_classes)


def resnet34(num_classes: int) -> nn.Module:
    """Build a ResNet-34."""
    return ResNet(_BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes: int) -> nn.Module:
    """Build a ResNet-50."""
    return ResNet(_Bottleneck, (3, 4, 6, 3), num_classes)

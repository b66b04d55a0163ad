"""The network of the speed records: little arithmetic, and useful features from the first step.

Follows K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498): a first layer that
whitens 2x2 patches, three groups of two convolutions initialised near the identity, and a scaled linear head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 2
PATCH_SIZE = 3 * PATCH * PATCH
# Small initial logits keep the first, largest steps stable: their scale is that of the record, 1/256.
HEAD_SCALE = 0.4
HEAD_STD = 1 / 256 / HEAD_SCALE


class Fast(nn.Module):
    """Return logits (N, num_classes) of normalized images (N, 3, H, W) of at least 16 pixels per side."""

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        narrow, wide = round(64 * width), round(256 * width)
        self.whiten = nn.Conv2d(3, 2 * PATCH_SIZE, PATCH)
        self.whiten.weight.requires_grad = False
        self.groups = nn.Sequential(_Group(2 * PATCH_SIZE, narrow), _Group(narrow, wide), _Group(wide, wide))
        self.head = nn.Linear(wide, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=HEAD_STD)

    def forward(self, images: Tensor) -> Tensor:
        features = self.groups(F.gelu(self.whiten(images)))
        # The values are the same. Exporters know amax, but in training it would divide the gradient among
        # equal maxima.
        pooled = F.adaptive_max_pool2d(features, 1) if self.training else features.amax((2, 3), keepdim=True)
        logits: Tensor = self.head(pooled.flatten(1)) * HEAD_SCALE
        return logits

    @torch.no_grad()
    def initialize_from(self, images: Tensor) -> None:
        """Set the first layer, which stays frozen, from the patches of normalized images, float (N, 3, H, W).

        Its filters are the eigenvectors of the patches' covariance, scaled to unit variance, and their
        negatives, so that the activation after it loses no information.
        """
        patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5)
        patches = patches.reshape(-1, PATCH_SIZE).double()
        patches -= patches.mean(0)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = directions.T / (variances + 5e-4).sqrt()[:, None]
        both = torch.cat([filters, -filters]).view(2 * PATCH_SIZE, 3, PATCH, PATCH)
        self.whiten.weight.copy_(both)
        assert self.whiten.bias is not None
        self.whiten.bias.zero_()


class _Group(nn.Module):
    """Two convolutions, each with batch norm and activation; a max-pool follows the first."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = _near_identity(c_in, c_out)
        self.norm1 = _shift_norm(c_out)
        self.conv2 = _near_identity(c_out, c_out)
        self.norm2 = _shift_norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        # Pooling first leaves a quarter of the values for norm and activation.
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def _near_identity(c_in: int, c_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[: min(c_in, c_out)])
    return conv


def _shift_norm(channels: int) -> nn.BatchNorm2d:
    # The momentum of the record: statistics of the last few batches suit a run of a few hundred steps.
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad = False
    return norm


def fast(num_classes: int, width: float = 1.0) -> nn.Module:
    """Build the network; `width` multiplies the 64, 256 and 256 channels of its groups."""
    return Fast(num_classes, width)

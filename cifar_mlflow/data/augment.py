"""Augment a whole batch with a few tensor operations, on the device that holds the images.

All randomness comes from the generator argument: the same generator state gives the same batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def take_windows(images: Tensor, index: Tensor, shift: Tensor, mirrored: Tensor) -> Tensor:
    """Select images, shift each with reflection at the border, and mirror some, in a single gather.

    Nothing is padded: a source coordinate beyond the edge is reflected. The channels of a pixel are adjacent
    in memory, so one index fetches three bytes.

    Args:
        images: uint8 (N, H, W, 3).
        index: int64 (B,), the images to select.
        shift: int64 (B, 2), rows and columns by which the window moves; absolute values below H and W.
        mirrored: bool (B,), whether to mirror left to right.

    Returns:
        uint8 (B, H, W, 3).
    """
    height, width = images.shape[1:3]
    rows = _reflect(torch.arange(height, device=index.device) + shift[:, :1], height)
    columns = torch.arange(width, device=index.device).expand(len(index), width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = _reflect(columns + shift[:, 1:], width)
    pixel = (index[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    return images.reshape(-1, 3)[pixel]


def _reflect(coordinate: Tensor, size: int) -> Tensor:
    """Reflect coordinates into 0..size-1 without repeating the edge."""
    coordinate = coordinate.abs()
    return torch.where(coordinate >= size, 2 * (size - 1) - coordinate, coordinate)


def random_shift(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """Return int64 (count, 2) in -padding..padding, the offsets of a random crop after padding."""
    return torch.randint(-padding, padding + 1, (count, 2), generator=generator, device=generator.device)


def coin_flips(count: int, generator: torch.Generator) -> Tensor:
    """Return bool (count,), each true with probability 1/2."""
    return torch.randint(2, (count,), generator=generator, device=generator.device).bool()


def cutout(images: Tensor, size: int, colour: Tensor, generator: torch.Generator) -> Tensor:
    """Blank one random square in each image (T. DeVries and G. Taylor, arXiv 1708.04552).

    Unlike in the paper, the square lies inside the image, so that every image loses the same area.

    Args:
        images: float (B, 3, H, W).
        size: side of the square in pixels, at most the image's smaller side.
        colour: float (3,), usually the mean of the data, which carries no information.

    Returns:
        float (B, 3, H, W).
    """
    height, width = images.shape[2:]
    device = images.device
    top = torch.randint(height - size + 1, (len(images), 1), generator=generator, device=device)
    left = torch.randint(width - size + 1, (len(images), 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) - top
    columns = torch.arange(width, device=device) - left
    in_rows, in_columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    square = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(square, colour.view(1, 3, 1, 1), images)


def jitter(images: Tensor, brightness: float, contrast: float, generator: torch.Generator) -> Tensor:
    """Jitter brightness and contrast of each image.

    Multiply the image by a factor in 1 +- `brightness` and its deviation from its mean by one in 1 +-
    `contrast`; clip the result to 0..1. Images are float (B, 3, H, W) in 0..1.
    """
    shape = (2, len(images), 1, 1, 1)
    uniform = 2 * torch.rand(shape, generator=generator, device=images.device) - 1
    brighter, harder = 1 + brightness * uniform[0], 1 + contrast * uniform[1]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    # Both are affine, so one pass over the pixels applies them together.
    return torch.addcmul(brighter * mean * (1 - harder), images, brighter * harder).clamp_(0, 1)


def shrink(images: Tensor, share: float) -> Tensor:
    """Resize (B, 3, H, W) in 0..255 to `share` of its side lengths, with antialiasing.

    On the CPU, floats take three times as long as bytes; on a GPU, torch has no kernel for bytes.
    """
    size = [round(share * side) for side in images.shape[2:]]
    if images.device.type != "cpu":
        images = images.float()
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Return the one-hot rows, float32 (B, num_classes), of labels, int64 (B,)."""
    return F.one_hot(labels, num_classes).float()


def mixup(images: Tensor, targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each image, and its targets, with another one of the batch (H. Zhang et al., arXiv 1710.09412).

    Args:
        images: float (B, 3, H, W).
        targets: float (B, num_classes), rows that sum to 1.
        share: weight of the image itself, 0..1, the same for the whole batch.
    """
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    return images.lerp(images[partner], 1 - share), targets.lerp(targets[partner], 1 - share)


def cutmix(
    images: Tensor, targets: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image by that of another one and mix the targets by area.

    S. Yun et al., arXiv 1905.04899. The rectangle is the same for the whole batch; it has the image's aspect
    ratio and, before it is clipped at the edge, an area of 1 - `share`. Arguments as for `mixup`.
    """
    height, width = images.shape[2:]
    middle = torch.rand(2, generator=generator, device=images.device).tolist()
    side = (1 - share) ** 0.5
    top, bottom = _span(middle[0], side, height)
    left, right = _span(middle[1], side, width)
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    taken = (bottom - top) * (right - left) / (height * width)
    return mixed, targets.lerp(targets[partner], taken)


def _span(middle: float, share: float, size: int) -> tuple[int, int]:
    """Return start and end pixel (exclusive) of a span around `middle` (0..1), clipped at the edges."""
    half = share * size / 2
    return max(0, round(middle * size - half)), min(size, round(middle * size + half))

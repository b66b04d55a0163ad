"""Augment a whole batch with a few tensor operations, on the device that holds the images.

Functions with a generator draw random values for a whole batch: the same generator state gives the same
values. The others apply such values to all images of the batch, or to some of them.
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


def square_corners(
    count: int, height: int, width: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return two int64 (count, 1): the first row and column of a random square of `size` in each image."""
    device = generator.device
    top = torch.randint(height - size + 1, (count, 1), generator=generator, device=device)
    left = torch.randint(width - size + 1, (count, 1), generator=generator, device=device)
    return top, left


def cutout(images: Tensor, top: Tensor, left: Tensor, size: int, colour: Tensor) -> Tensor:
    """Blank one square in each image (T. DeVries and G. Taylor, arXiv 1708.04552).

    Unlike in the paper, the square lies inside the image, so that every image loses the same area.

    Args:
        images: float (B, 3, H, W).
        top, left: int64 (B, 1), from `square_corners`.
        size: side of the square in pixels, at most the image's smaller side.
        colour: float (3,), usually the mean of the data, which carries no information.

    Returns:
        float (B, 3, H, W).
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - top
    columns = torch.arange(width, device=images.device) - left
    in_rows, in_columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    square = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(square, colour.view(1, 3, 1, 1), images)


def jitter_factors(
    count: int, brightness: float, contrast: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return two float32 (count, 1, 1, 1): factors in 1 +- `brightness` and in 1 +- `contrast`."""
    uniform = 2 * torch.rand((2, count, 1, 1, 1), generator=generator, device=generator.device) - 1
    return 1 + brightness * uniform[0], 1 + contrast * uniform[1]


def jitter(images: Tensor, brighter: Tensor, harder: Tensor) -> Tensor:
    """Multiply each image by `brighter` and its deviation from its mean by `harder`; clip to 0..1.

    Args:
        images: float (B, 3, H, W) in 0..1.
        brighter, harder: float (B, 1, 1, 1), from `jitter_factors`.
    """
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


def random_partners(count: int, generator: torch.Generator) -> Tensor:
    """Return int64 (count,), a permutation: for each image, the index of the image it is mixed with."""
    return torch.randperm(count, generator=generator, device=generator.device)


def mixup(
    images: Tensor, partners: Tensor, targets: Tensor, partner_targets: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Blend each image, and its targets, with another one of the batch (H. Zhang et al., arXiv 1710.09412).

    Args:
        images, partners: float (B, 3, H, W).
        targets, partner_targets: float (B, num_classes), rows that sum to 1.
        share: weight of the image itself, 0..1, the same for the whole batch.
    """
    return images.lerp(partners, 1 - share), targets.lerp(partner_targets, 1 - share)


Rectangle = tuple[slice, slice]


def random_rectangle(height: int, width: int, share: float, generator: torch.Generator) -> Rectangle:
    """Return rows and columns with the aspect ratio of the image and an area of 1 - `share` of it.

    It lies around a random pixel and is clipped at the edges.
    """
    middle = torch.rand(2, generator=generator, device=generator.device).tolist()
    side = (1 - share) ** 0.5
    return _span(middle[0], side, height), _span(middle[1], side, width)


def cutmix(
    images: Tensor, partners: Tensor, targets: Tensor, partner_targets: Tensor, rectangle: Rectangle
) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image with that of another one and mix the targets by area.

    S. Yun et al., arXiv 1905.04899. The rectangle, from `random_rectangle`, is the same for the whole batch.
    Other arguments as for `mixup`.
    """
    rows, columns = rectangle
    height, width = images.shape[2:]
    mixed = images.clone()
    mixed[:, :, rows, columns] = partners[:, :, rows, columns]
    taken = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, targets.lerp(partner_targets, taken)


def _span(middle: float, share: float, size: int) -> slice:
    """Return the pixels of a span around `middle` (0..1), clipped at the edges."""
    half = share * size / 2
    return slice(max(0, round(middle * size - half)), min(size, round(middle * size + half)))

"""Augmentation as a few tensor operations on a whole batch, on the device where the images are.

Everything random comes from the generator that is passed in, so the same generator state gives the same
batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def take_windows(images: Tensor, index: Tensor, shift: Tensor, mirrored: Tensor) -> Tensor:
    """Pick images, move each by some pixels (what comes in is its reflection), and mirror some: in one
    gather.

    Nothing is padded: a source coordinate beyond the edge is folded back. And as the channels of a pixel lie
    together, one index fetches three bytes.

    Args:
        images: uint8 (N, H, W, 3).
        index: int64 (B,), which images.
        shift: int64 (B, 2), rows and columns by which the window moves; less than a side in size.
        mirrored: bool (B,), left-right.

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
    """Fold coordinates back into 0..size-1; the edge itself is not repeated."""
    coordinate = coordinate.abs()
    return torch.where(coordinate >= size, 2 * (size - 1) - coordinate, coordinate)


def random_shift(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """int64 (count, 2) in -padding..padding: the crop that padding on all sides would allow."""
    return torch.randint(-padding, padding + 1, (count, 2), generator=generator, device=generator.device)


def coin_flips(count: int, generator: torch.Generator) -> Tensor:
    """bool (count,), each true half of the time."""
    return torch.randint(2, (count,), generator=generator, device=generator.device).bool()


def cutout(images: Tensor, size: int, colour: Tensor, generator: torch.Generator) -> Tensor:
    """Blank one square of `size` pixels a side in each image (T. DeVries and G. Taylor, arXiv 1708.04552).

    The square lies within the image, so that each one loses the same area.

    Args:
        images: float (B, 3, H, W).
        size: at most the image's smaller side.
        colour: float (3,), usually the data's mean, which tells the network nothing.
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
    """Multiply each image by a factor in 1 +- `brightness`, and its distance from its mean by 1 +-
    `contrast`.

    Images float (B, 3, H, W) in 0..1; the result is clipped to that range.
    """
    shape = (2, len(images), 1, 1, 1)
    uniform = 2 * torch.rand(shape, generator=generator, device=images.device) - 1
    brighter, harder = 1 + brightness * uniform[0], 1 + contrast * uniform[1]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    # Both are affine, so that one pass over the pixels does for the two.
    return torch.addcmul(brighter * mean * (1 - harder), images, brighter * harder).clamp_(0, 1)


def shrink(images: Tensor, share: float) -> Tensor:
    """Resize (B, 3, H, W) in 0..255 to `share` of its sides, antialiased.

    On the CPU floats take three times as long as bytes; a GPU has no kernel for bytes.
    """
    size = [round(share * side) for side in images.shape[2:]]
    if images.device.type != "cpu":
        images = images.float()
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """int64 (B,) -> float32 (B, num_classes)."""
    return F.one_hot(labels, num_classes).float()


def mixup(images: Tensor, targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image keeps `share` of itself and takes the rest of another one of the batch; so do the targets.

    H. Zhang et al., arXiv 1710.09412, with one `share` in 0..1 a batch. Images float (B, 3, H, W), targets
    float (B, num_classes) whose rows sum to 1.
    """
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    return images.lerp(images[partner], 1 - share), targets.lerp(targets[partner], 1 - share)


def cutmix(
    images: Tensor, targets: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace one rectangle, the same in the whole batch, by that of another image; targets mix by area.

    S. Yun et al., arXiv 1905.04899: the rectangle has the image's proportions and about 1 - `share` of its
    area before it is cut off at the edge. Shapes as in `mixup`.
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
    """First and past-the-last pixel of a span around `middle` (0..1), cut off at the edges."""
    half = share * size / 2
    return max(0, round(middle * size - half)), min(size, round(middle * size + half))

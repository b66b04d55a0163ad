"""Find images that show the same picture: neighbours in the network's features, compared pixel by pixel."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cifar_mlflow.review.images import ReviewedImages

NEIGHBOURS = 5  # of each image, whose pixels are compared
SMALLEST_COSINE = 0.8
# From here on, more than nine in ten pairs of CIFAR-10 show the same photo or drawing; just above 0.8, half
# of them are different ships on the same sea (docs/experiments.md).
SMALLEST_SIMILARITY = 0.88
SMALLEST_COARSE = 0.6  # correlation at 4x4; most pairs need no closer look
COARSE_SIDE, SIDE = 4, 32  # pixels to which images are shrunk
LARGEST_SHIFT = 3  # pixels of 32
FLATTEST = 1.5  # grey levels, the contrast below which details are noise
ROWS_AT_A_TIME = 1_000
PAIRS_AT_A_TIME = 2_000


@dataclass(frozen=True)
class Pair:
    """Two images that show the same picture.

    Attributes:
        first, second: positions of the images, the smaller one first.
        similarity: of the pixels, up to 1; see `pixel_similarity`.
    """

    first: int
    second: int
    similarity: float


def find_duplicates(embeddings: NDArray[np.float32], reviewed: ReviewedImages) -> list[Pair]:
    """Return pairs of near-duplicates, the most similar first.

    Args:
        embeddings: float32 (N, D) of unit length. Only the 5 nearest neighbours of an image by cosine
            similarity, and the 5 nearest ones in other splits, are compared with it.
    """
    _, split_of = np.unique(reviewed.splits, return_inverse=True)
    candidates = _neighbours(torch.from_numpy(embeddings), torch.from_numpy(split_of))
    pairs = []
    for start in range(0, len(candidates), PAIRS_AT_A_TIME):
        some = candidates[start : start + PAIRS_AT_A_TIME]
        similarities = pixel_similarity(reviewed.images(some[:, 0]), reviewed.images(some[:, 1]))
        for (first, second), similarity in zip(some.tolist(), similarities.tolist(), strict=True):
            if similarity >= SMALLEST_SIMILARITY:
                pairs.append(Pair(first, second, similarity))
    return sorted(pairs, key=lambda pair: -pair.similarity)


def pixel_similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how similar the images of each pair are, float32 (N,).

    It is the correlation of the details at 32x32 pixels, which does not depend on brightness and contrast:
    the highest one among shifts of up to 3 pixels, with and without mirroring. Large areas of colour, which
    many photos of sea, sky and grass share, do not count. The similarity is 0 if even the coarse structure
    differs or if an image has no details, and 1 for equal images.

    Args:
        first, second: uint8 (N, S, S, 3).
    """
    ours, theirs = (torch.from_numpy(of).permute(0, 3, 1, 2).float() for of in (first, second))
    similarity = torch.from_numpy((first == second).all(axis=(1, 2, 3))).float()
    for mirrored in (False, True):
        other = theirs.flip(3) if mirrored else theirs
        coarse = [F.adaptive_avg_pool2d(pixels, COARSE_SIDE) for pixels in (ours, other)]
        alike = (_correlation(*coarse) >= SMALLEST_COARSE).nonzero().flatten()
        if len(alike):
            closest = _closest(_details(ours[alike]), _details(other[alike]))
            similarity[alike] = similarity[alike].maximum(closest)
    found: NDArray[np.float32] = similarity.numpy()
    return found


def _details(pixels: Tensor) -> Tensor:
    """Return the structures between about 3 and 9 pixels of images, float32 (N, 3, 32, 32)."""
    smooth = _blur(F.adaptive_avg_pool2d(pixels, SIDE), 1)  # compression changes the finest details
    details = smooth - _blur(smooth, 4)
    flat = details.square().mean((1, 2, 3), keepdim=True).sqrt() < FLATTEST
    return details.masked_fill(flat, 0)


def _blur(pixels: Tensor, radius: int) -> Tensor:
    padded = F.pad(pixels, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)


def _closest(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the highest correlation of the overlapping parts among all small shifts, float32 (N,)."""
    best = torch.zeros(len(ours))
    for down, right in product(range(-LARGEST_SHIFT, LARGEST_SHIFT + 1), repeat=2):
        (rows, other_rows), (columns, other_columns) = _overlap(down), _overlap(right)
        moved = _correlation(ours[:, :, rows, columns], theirs[:, :, other_rows, other_columns])
        best = best.maximum(moved)
    return best


def _overlap(shift: int) -> tuple[slice, slice]:
    return slice(max(0, shift), SIDE + min(0, shift)), slice(max(0, -shift), SIDE + min(0, -shift))


def _correlation(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the correlation of the pixels of each pair around their mean colours, float32 (N,)."""
    ours, theirs = (pixels - pixels.mean((2, 3), keepdim=True) for pixels in (ours, theirs))
    products = (ours * theirs).flatten(1).sum(1)
    norms = ours.flatten(1).norm(dim=1) * theirs.flatten(1).norm(dim=1)
    return products / norms.clamp(min=1e-6)


def _neighbours(embeddings: Tensor, split_of: Tensor) -> NDArray[np.int64]:
    """Return the pairs of an image and a near neighbour, int64 (P, 2), each once.

    Args:
        split_of: int64 (N,), a number for the split of each image.
    """
    count = min(NEIGHBOURS, len(embeddings) - 1)
    found = []
    for start in range(0, len(embeddings), ROWS_AT_A_TIME):
        rows = torch.arange(start, min(start + ROWS_AT_A_TIME, len(embeddings)))
        cosines = embeddings[rows] @ embeddings.T
        cosines[rows - start, rows] = -1
        # An image with many copies in its split would otherwise be compared with these alone.
        elsewhere = cosines.masked_fill(split_of[rows, None] == split_of, -1)
        for nearest in (cosines.topk(count), elsewhere.topk(count)):
            alike = nearest.values >= SMALLEST_COSINE
            found.append(torch.stack([rows[:, None].expand_as(alike)[alike], nearest.indices[alike]], dim=1))
    pairs = torch.cat(found).sort(dim=1).values
    unique: NDArray[np.int64] = pairs.unique(dim=0).numpy()
    return unique

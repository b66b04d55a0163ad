"""Find images that show the same picture: alike for the network, and then pixel by pixel."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cifar_mlflow.review.images import ReviewedImages

NEIGHBOURS = 5  # of each image, whose pixels are compared
SMALLEST_COSINE = 0.8  # below it, copies were not seen
SMALLEST_SIMILARITY = 0.95
SIDE = 16  # pixels to which images are shrunk: recompressed and resized copies differ in finer details
FLATTEST = 4.0  # gray levels, the contrast below which an image shows nothing to compare
ROWS_AT_A_TIME = 1_000
PAIRS_AT_A_TIME = 5_000


@dataclass(frozen=True)
class Pair:
    """Two images that show the same picture.

    Attributes:
        first, second: positions of the images, the smaller one first.
        similarity: of the pixels, up to 1: equal but for brightness and contrast.
    """

    first: int
    second: int
    similarity: float


def find_duplicates(embeddings: NDArray[np.float32], reviewed: ReviewedImages) -> list[Pair]:
    """Return pairs of near-duplicates, the most similar first.

    Args:
        embeddings: float32 (N, D) of unit length. Only the 5 nearest neighbours of an image by cosine
            similarity are compared with it.
    """
    candidates = _neighbours(torch.from_numpy(embeddings))
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

    It is the correlation of the pixels at 16x16, or that with the mirror image if it is higher; images
    without contrast are similar to none but their exact copies.

    Args:
        first, second: uint8 (N, S, S, 3).
    """
    ours, theirs = _standardized(first), _standardized(second)
    straight = (ours * theirs).flatten(1).sum(1)
    mirrored = (ours * theirs.flip(3)).flatten(1).sum(1)
    equal = torch.from_numpy((first == second).all(axis=(1, 2, 3)))
    similarity: NDArray[np.float32] = torch.maximum(straight, mirrored).masked_fill(equal, 1.0).numpy()
    return similarity


def _standardized(images: NDArray[np.uint8]) -> Tensor:
    """Return small images with mean 0 per channel and norm 1, float32 (N, 3, 16, 16); zeros if flat."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    small = F.adaptive_avg_pool2d(pixels, SIDE)
    small -= small.mean((2, 3), keepdim=True)
    norm = small.flatten(1).norm(dim=1)
    flat = norm < FLATTEST * small[0].numel() ** 0.5
    return small / norm.masked_fill(flat, torch.inf)[:, None, None, None]


def _neighbours(embeddings: Tensor) -> NDArray[np.int64]:
    """Return the pairs of an image and a near neighbour, int64 (P, 2), each once."""
    count = min(NEIGHBOURS, len(embeddings) - 1)
    found = []
    for start in range(0, len(embeddings), ROWS_AT_A_TIME):
        rows = torch.arange(start, min(start + ROWS_AT_A_TIME, len(embeddings)))
        cosines = embeddings[rows] @ embeddings.T
        cosines[rows - start, rows] = -1
        nearest = cosines.topk(count)
        alike = nearest.values >= SMALLEST_COSINE
        found.append(torch.stack([rows[:, None].expand_as(alike)[alike], nearest.indices[alike]], dim=1))
    pairs = torch.cat(found).sort(dim=1).values
    unique: NDArray[np.int64] = pairs.unique(dim=0).numpy()
    return unique

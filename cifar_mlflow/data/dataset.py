"""What every source of images is turned into."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

SourceSplit = Literal["train", "test"]

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    images: uint8 (N, H, W, 3) RGB; a read-only memory map where it comes from the cache.
    labels: int64 (N,), each an index into the data set's classes.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """Images before they are cached: what they are called, and how to decode them piece by piece.

    digest: hex sha256; two sources with the same digest decode to the same arrays.
    read: yields the split in pieces small enough for memory, always in the same order.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    digest: str
    read: Callable[[SourceSplit], Iterator[Split]]


@dataclass(frozen=True)
class ImageDataset:
    """A data set whose splits are loaded when asked for, and not before.

    digest: hex sha256 that identifies the content of all its splits.
    load: what `split` calls; raises CifarError where the images cannot be had.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    digest: str
    load: Callable[[SourceSplit], Split]

    def split(self, name: SourceSplit) -> Split:
        """The images and labels of one split; cheap to call again once the cache holds it."""
        return self.load(name)

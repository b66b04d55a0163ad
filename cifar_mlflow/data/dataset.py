"""The types that every source of images is converted to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cifar_mlflow.config import SplitName

# Most sources have no validation split of their own.
SOURCE_SPLITS: tuple[SplitName, ...] = get_args(SplitName)

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

    Attributes:
        images: uint8 (N, H, W, 3) RGB; a read-only memory map if it comes from the cache.
        labels: int64 (N,), indices into the classes of the data set.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class SelectedImages:
    """Images of an array at some positions, read when they are used: the array may be larger than memory.

    Args:
        source: uint8 (M, H, W, 3), usually a memory map.
        positions: int64 (N,), into `source`.
    """

    def __init__(self, source: np.ndarray, positions: np.ndarray) -> None:
        self.source = source
        self.positions = positions
        self.shape = (len(positions), *source.shape[1:])

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Index by a slice, an integer or an array of them, and further dimensions as in an array."""
        rows, *rest = key if isinstance(key, tuple) else (key,)
        images: np.ndarray = self.source[(self.positions[rows], *rest)]
        return images


@dataclass(frozen=True, eq=False)
class Selection:
    """Like `Split`, with images that are read when they are used."""

    images: SelectedImages
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class UnreadableFile:
    """A file that is left out, with the name of its class and the reason."""

    name: str
    split: SplitName
    label: str
    reason: str


@dataclass(frozen=True)
class Source:
    """Images that are not decoded yet.

    Attributes:
        digest: hex sha256 of the content; two sources with the same digest decode to the same arrays.
        read: yields a split in pieces that fit into memory, always in the same order.
        set_aside: per class, the number of images that the source moved from its training images to the test
            split; empty if the source has a test split of its own.
        own_val: whether the source has a validation split of its own.
        names: returns the name of each image of a split, in order; None if the images have no names.
        notes: messages for the user about the files, such as which ones were left out.
        paths: returns the file of each image of a split, in order; None if the images are not files.
        unreadable: files that were left out because they cannot be read.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    digest: str
    read: Callable[[SplitName], Iterator[Split]]
    set_aside: tuple[int, ...] = ()
    own_val: bool = False
    names: Callable[[SplitName], list[str]] | None = None
    notes: tuple[str, ...] = ()
    paths: Callable[[SplitName], list[Path]] | None = None
    unreadable: tuple[UnreadableFile, ...] = ()


@dataclass(frozen=True)
class ImageDataset:
    """A data set whose splits are loaded on request.

    Attributes:
        digest: hex sha256 that identifies the content of all splits.
        split: returns the images and labels of a split, cheap once the cache holds it; raises CifarError if
            they cannot be read.
        set_aside, own_val, names, notes, paths, unreadable: see `Source`.
        extra_images: number of training images, the last ones, that are never held out for validation; the
            digest does not cover them, and they have no names.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    digest: str
    split: Callable[[SplitName], Split]
    set_aside: tuple[int, ...] = ()
    own_val: bool = False
    names: Callable[[SplitName], list[str]] | None = None
    notes: tuple[str, ...] = ()
    extra_images: int = 0
    paths: Callable[[SplitName], list[Path]] | None = None
    unreadable: tuple[UnreadableFile, ...] = ()

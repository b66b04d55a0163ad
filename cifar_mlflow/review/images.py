"""All images of a data set in one order, each with a name."""

import numpy as np
from numpy.typing import NDArray

from cifar_mlflow.config import SplitName
from cifar_mlflow.data import ImageDataset
from cifar_mlflow.data.dataset import SOURCE_SPLITS


class ReviewedImages:
    """The images of all splits: training, then validation, if the data set has such a split, then test.

    Attributes:
        parts: the splits, in this order.
        names: of the files; `train/00123` for the image at position 123 of a split without file names.
        splits: name of the split of each image.
        labels: int64 (N,), class indices.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        splits: list[SplitName] = [split for split in SOURCE_SPLITS if split != "val" or dataset.own_val]
        self.parts = {split: dataset.split(split) for split in splits}
        self.labels = np.concatenate([part.labels for part in self.parts.values()])
        self.names: list[str] = []
        self.splits: list[SplitName] = []
        for split, part in self.parts.items():
            numbered = [f"{split}/{number:05}" for number in range(len(part))]
            self.names += dataset.names(split) if dataset.names else numbered
            self.splits += [split] * len(part)
        self._starts = np.cumsum([0, *(len(part) for part in self.parts.values())])

    def __len__(self) -> int:
        return len(self.labels)

    def position(self, index: int) -> int:
        """Return the position of an image within its split."""
        return index - int(max(start for start in self._starts[:-1] if start <= index))

    def images(self, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return the images at some positions, uint8 (M, S, S, 3)."""
        first = next(iter(self.parts.values())).images
        images = np.empty((len(indices), *first.shape[1:]), np.uint8)
        for part, start in zip(self.parts.values(), self._starts, strict=False):
            inside = (indices >= start) & (indices < start + len(part))
            images[inside] = part.images[indices[inside] - start]
        return images

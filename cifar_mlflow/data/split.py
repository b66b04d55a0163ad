"""Hold out a share of the training images for validation: same seed, same split, on every machine."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cifar_mlflow.config import DataConfig, SplitName
from cifar_mlflow.data.dataset import ImageDataset, SelectedImages, Selection, Split
from cifar_mlflow.errors import UsageError

if TYPE_CHECKING:  # slow to import, and most uses of this module need no table
    import pandas as pd

FEW_IMAGES = 100  # an accuracy on fewer images is uncertain by ten points or more
logger = logging.getLogger(__name__)


def train_val_indices(dataset: ImageDataset, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Divide the training images as `config.val_size` and `config.split_seed` say.

    This is for a data set without a validation split of its own.

    Returns:
        Two sorted int64 arrays that together are 0..N-1: training, with all extra images, and validation.

    Raises:
        UsageError: a class has only one image, which cannot be in both parts.
    """
    every = dataset.split("train").labels
    if config.val_size == 0:
        return np.arange(len(every)), np.arange(0)
    labels = every[: len(every) - dataset.extra_images]
    counts = np.bincount(labels, minlength=len(dataset.classes))
    if single := np.flatnonzero(counts == 1).tolist():
        small = [_count_in_words(dataset, label) for label in single]
        needed = 3 if dataset.set_aside else 2
        raise UsageError(
            f"--val-size: too few images to hold out a share of {config.val_size:g} for validation: "
            f"{', '.join(small)}. Each class needs at least {needed}: add images, or train on all of them "
            "with --val-size 0"
        )
    kept, held_out = stratified_split(labels, config.val_size, config.split_seed)
    return np.concatenate([kept, np.arange(len(labels), len(every))]), held_out


def divide(dataset: ImageDataset, config: DataConfig) -> tuple[Split, Split]:
    """Return the training split, without the held-out images, and the validation split."""
    if dataset.own_val:
        return dataset.split("train"), dataset.split("val")
    images = dataset.split("train")
    train_index, val_index = train_val_indices(dataset, config)
    return (
        Split(images.images[train_index], images.labels[train_index]),
        Split(images.images[val_index], images.labels[val_index]),
    )


def divide_lazily(dataset: ImageDataset, config: DataConfig) -> tuple[Selection, Split]:
    """Divide like `divide`, but leave the training images on disk, so that no process copies them."""
    images = dataset.split("train")
    if dataset.own_val:
        everything = np.arange(len(images))
        return Selection(SelectedImages(images.images, everything), images.labels), dataset.split("val")
    train_index, val_index = train_val_indices(dataset, config)
    return (
        Selection(SelectedImages(images.images, train_index), images.labels[train_index]),
        Split(images.images[val_index], images.labels[val_index]),
    )


def image_ids(dataset: ImageDataset, config: DataConfig, split: SplitName) -> "pd.Series":
    """Return what identifies each image of a split, as `divide` orders them.

    The series has the name `path` or, if the images have no names, `index`: the place among the training,
    validation or test images of the data set.
    """
    import pandas as pd

    divided = split != "test" and not dataset.own_val
    if divided:
        train_index, val_index = train_val_indices(dataset, config)
        places = train_index if split == "train" else val_index
    else:
        places = np.arange(len(dataset.split(split)))
    if dataset.names is None or (split == "train" and dataset.extra_images):
        return pd.Series(places, name="index")
    names = dataset.names("train" if divided else split)
    return pd.Series([names[place] for place in places.tolist()], name="path")


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out round(n * share) of the n images of each class, at least one, at random by `seed`.

    scikit-learn's stratified split rounds over all classes together and may leave out a small class.

    Args:
        labels: int (N,), at least two per class that occurs.
        share: above 0, below 1.

    Returns:
        Two sorted int64 arrays that together are 0..N-1: kept and held out.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        parts.append(rng.permutation(members)[:count])
    held_out = np.sort(np.concatenate(parts))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def warn_of_small_splits(sizes: Mapping[str, int]) -> None:
    """Log a warning for each split, given by name and number of images, that is too small to be trusted."""
    for name, size in sizes.items():
        if 0 < size < FEW_IMAGES:
            points = 98 / size**0.5  # half of the 95 % interval of a share of 1/2, in percent
            logger.warning(
                "The %s split has only %d images, so an accuracy on it is uncertain by up to %.0f points: "
                "add images before you trust it",
                name,
                size,
                points,
            )


def _count_in_words(dataset: ImageDataset, label: int) -> str:
    """Return how many images a class with one training image has, counting those set aside for the test."""
    in_test = dataset.set_aside[label] if dataset.set_aside else 0
    if not in_test:
        return f"class {dataset.classes[label]} has 1 image"
    return f"class {dataset.classes[label]} has {1 + in_test} images ({in_test} of them in the test split)"

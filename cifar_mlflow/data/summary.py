"""Summarize a data set: images per class and split, and statistics of the colour channels."""

import logging

import numpy as np
import pandas as pd

from cifar_mlflow.config import DataConfig, TrainConfig
from cifar_mlflow.data.dataset import ImageDataset, SelectedImages
from cifar_mlflow.data.split import train_val_indices
from cifar_mlflow.names import counted

CHANNELS = ("red", "green", "blue")
IMAGES_AT_A_TIME = 500
LISTED_CLASSES = 12
IMBALANCED = 5  # times as many images in the largest class as in the smallest
logger = logging.getLogger(__name__)


def summarize(dataset: ImageDataset, config: DataConfig, with_test: bool = True) -> pd.DataFrame:
    """Return the number of images: one row per class (the index); columns train, val and, optionally, test.

    Raises:
        UsageError: see `train_val_indices`.
    """
    labels = dataset.split("train").labels
    if dataset.own_val:
        parts = {"train": labels, "val": dataset.split("val").labels}
    else:
        train, val = train_val_indices(dataset, config)
        parts = {"train": labels[train], "val": labels[val]}
    if with_test:
        parts["test"] = dataset.split("test").labels
    counts = {name: np.bincount(part, minlength=len(dataset.classes)) for name, part in parts.items()}
    return pd.DataFrame(counts, index=pd.Index(dataset.classes, name="class"))


def log_notes(dataset: ImageDataset) -> None:
    """Log the notes of the source, such as which files were left out."""
    for note in dataset.notes:
        logger.warning("%s", note)


def describe_training(
    dataset: ImageDataset, config: TrainConfig, train: np.ndarray, val: np.ndarray
) -> list[str]:
    """Return log lines on the training data: sizes, classes, the trivial accuracy, and class imbalance.

    Args:
        train, val: labels of the training and the validation images.
    """
    counts = np.bincount(train, minlength=len(dataset.classes))
    order = np.argsort(-counts, kind="stable")
    if len(order) > LISTED_CLASSES:
        order = order[[0, 1, 2, -3, -2, -1]]
    listed = [f"{dataset.classes[label]} {counts[label]:,}" for label in order.tolist()]
    if len(dataset.classes) > len(listed):
        listed.insert(len(listed) // 2, "...")
    steps = -(-len(train) // config.batch_size)
    largest = int(counts.argmax())
    judged, split = (val, "validation") if len(val) else (train, "training")
    lines = [
        f"{dataset.name}: {len(train):,} training and {len(val):,} validation images of "
        f"{len(dataset.classes):,} classes. Training images per class: {', '.join(listed)}",
        f"{counted(steps, 'step')} per epoch. Always answering {dataset.classes[largest]}, "
        f"the largest class, would be right on {(judged == largest).mean():.1%} of the {split} images",
    ]
    ratio = counts.max() / counts.min()
    if ratio >= IMBALANCED and config.class_weights == "none" and config.sampling == "shuffle":
        lines.append(
            f"The largest class has {ratio:.0f} times as many images as the smallest: --class-weights "
            "balanced or --sampling balanced makes rare classes count as much as common ones"
        )
    return lines


def mean_std(images: np.ndarray | SelectedImages) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel over all pixels.

    Args:
        images: uint8 (N, H, W, 3), N > 0.

    Returns:
        Two float64 (3,), in units where 255 is 1.
    """
    stats = channel_stats(images)
    return stats["mean"].to_numpy(), stats["std"].to_numpy()


def channel_stats(images: np.ndarray | SelectedImages) -> pd.DataFrame:
    """Return rows red, green and blue; columns mean, std, min and max, in units where 255 is 1.

    Args:
        images: uint8 (N, H, W, 3), N > 0.
    """
    # A histogram gives all four exactly, with only a few images in memory at a time.
    counts_CV = np.zeros((3, 256), dtype=np.int64)  # noqa: N806  channel, value
    for start in range(0, len(images), IMAGES_AT_A_TIME):
        piece = images[start : start + IMAGES_AT_A_TIME]
        for channel in range(3):
            counts_CV[channel] += np.bincount(piece[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts_CV / counts_CV.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    used = [values[np.flatnonzero(counts)] for counts in counts_CV]
    return pd.DataFrame(
        {"mean": mean, "std": std, "min": [v[0] for v in used], "max": [v[-1] for v in used]},
        index=pd.Index(CHANNELS, name="channel"),
    )

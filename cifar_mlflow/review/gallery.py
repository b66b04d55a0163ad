"""Draw what a review has found: images with label and suggestion, and pairs of near-duplicates."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cifar_mlflow.data import ImageDataset
from cifar_mlflow.evaluation.figures import image_grid, side_by_side
from cifar_mlflow.evaluation.labels import label
from cifar_mlflow.names import counted
from cifar_mlflow.review.duplicates import Pair
from cifar_mlflow.review.images import ReviewedImages
from cifar_mlflow.review.label_errors import LabelError

SHOWN_ERRORS = 50
SHOWN_PAIRS = 30
COLUMNS = 24  # characters above an image
PAIR_COLUMNS = 40  # characters above a pair


def label_error_gallery(
    errors: Sequence[LabelError], dataset: ImageDataset, reviewed: ReviewedImages
) -> Figure:
    """Show the first label errors: name, label and suggestion of each."""
    shown = errors[:SHOWN_ERRORS]
    captions = [
        _caption(
            reviewed.names[error.index],
            f"label: {dataset.classes[reviewed.labels[error.index]]}",
            f"{dataset.classes[error.suggestion]}? {error.confidence:.0%}",
            columns=COLUMNS,
        )
        for error in shown
    ]
    images = reviewed.images(np.array([error.index for error in shown], np.int64))
    title = f"{dataset.name}: labels that are probably wrong, {len(shown)} of {len(errors):,}"
    return image_grid(list(images), captions, title)


def duplicate_gallery(pairs: Sequence[Pair], dataset: ImageDataset, reviewed: ReviewedImages) -> Figure:
    """Show the most similar pairs, those of different splits first."""
    splits = reviewed.splits
    shown = sorted(pairs, key=lambda pair: splits[pair.first] == splits[pair.second])[:SHOWN_PAIRS]
    captions = [
        _caption(
            *(
                f"{splits[index]} {dataset.classes[reviewed.labels[index]]} {reviewed.names[index]}"
                for index in (pair.first, pair.second)
            ),
            f"similarity {pair.similarity:.3f}",
            columns=PAIR_COLUMNS,
        )
        for pair in shown
    ]
    first, second = (
        reviewed.images(np.array(side, np.int64))
        for side in ([pair.first for pair in shown], [pair.second for pair in shown])
    )
    images = [side_by_side(*pair) for pair in zip(first, second, strict=True)]
    title = f"{dataset.name}: near-duplicates, {len(shown)} of {counted(len(pairs), 'pair')}"
    return image_grid(images, captions, title, columns=3)


def _caption(*lines: str, columns: int) -> str:
    return "\n".join(textwrap.fill(label(line, 2 * columns), columns) for line in lines)

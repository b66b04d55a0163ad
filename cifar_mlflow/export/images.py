"""The images that an exported network is calibrated with, and those that it is verified on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cifar_mlflow.config import DataConfig, validate
from cifar_mlflow.data import Selection, Split, load_dataset
from cifar_mlflow.data.split import divide_lazily
from cifar_mlflow.errors import UsageError
from cifar_mlflow.models.card import ModelCard

# Training images in the evaluation set of a run without validation images.
TRAINING_IMAGES = 2_000


@dataclass(frozen=True, eq=False)
class EvalSet:
    """The images by which networks are compared: validation images, or training images without any."""

    split: Literal["val", "train"]
    images: Split

    @property
    def held_out(self) -> bool:
        return self.split == "val"

    def __str__(self) -> str:
        count = f"{len(self.images):,}"
        if self.held_out:
            return f"{count} validation images"
        return f"{count} training images, as no images were held out"


def load_images(
    card: ModelCard, params: Mapping[str, str], places: Mapping[str, Any]
) -> tuple[Selection, EvalSet]:
    """Return the training images of a run and the images to evaluate it on.

    Args:
        params: those of the run; they say where its images were.
        places: settings of `PlacesConfig` that replace those of the run.

    Raises:
        UsageError: the images differ from those the run was trained on.
        CifarError: they cannot be read or downloaded.
    """
    of_run = {
        key: params[key]
        for key in ("dataset", "data_dir", "mirrors", "skip_unreadable")
        if params.get(key) not in (None, "None")
    }
    # Extra training images are not needed, and their folder may be gone.
    of_run["dataset"] = of_run.get("dataset", "cifar10").partition("+")[0]
    split = {"image_size": card.image_size, "val_size": card.val_size, "split_seed": card.split_seed}
    config = validate(DataConfig, {**of_run, **split, **places})
    dataset = load_dataset(config)
    if dataset.digest != card.data_digest:
        raise UsageError(
            f"run {card.run_id} was trained on other images than those of {config.data_dir or dataset.name} "
            f"(digest {card.data_digest[:12]}, found {dataset.digest[:12]}); name the place of its "
            "own images with --data-dir"
        )
    training, validation = divide_lazily(dataset, config)
    if len(validation):
        return training, EvalSet("val", validation)
    drawn = np.sort(np.random.default_rng(0).permutation(len(training))[:TRAINING_IMAGES])
    return training, EvalSet("train", Split(training.images[drawn], training.labels[drawn]))

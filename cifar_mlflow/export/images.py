"""The images that an exported network is calibrated with, and those that it is verified on."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import Selection, Split, load_dataset
from cifar_mlflow.data.split import divide_lazily
from cifar_mlflow.errors import UsageError
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.settings import validate
from cifar_mlflow.tracking.retry import call_mlflow

# The value of the setting `dataset` by the name in a model card; any other name is that of a folder.
DATASETS = {"cifar10": "cifar10", "cifar10-sample": "sample"}
# Training images in the evaluation set of a run without validation images.
TRAINING_IMAGES = 2_000


@dataclass(frozen=True, eq=False)
class EvalSet:
    """The images on which networks are compared.

    They are validation images, or training images if there are none; for the released network, test images.
    """

    split: Literal["val", "train", "test"]
    images: Split

    @property
    def held_out(self) -> bool:
        return self.split != "train"

    def __str__(self) -> str:
        count = f"{len(self.images):,}"
        if self.split == "test":
            return f"{count} test images"
        if self.held_out:
            return f"{count} validation images"
        return f"{count} training images, as no images were held out"


def params_of_training(card: ModelCard) -> dict[str, str]:
    """Return the params of the run that trained a model; without it, only the name of its data set."""
    params = {"dataset": DATASETS.get(card.data, "folder")}
    if card.run_id:
        with suppress(UsageError):  # a file, exported elsewhere
            run = call_mlflow(lambda: mlflow.MlflowClient().get_run(card.run_id), "not in this store")
            params |= run.data.params
    return params


def data_of_run(params: Mapping[str, str], *names: str) -> dict[str, str]:
    """Return those of the named settings that a run has; they locate its images."""
    found = {name: params[name] for name in names if params.get(name) not in (None, "None")}
    if "dataset" in found:  # cifar10+DIR: the extra images are for training only, and may be gone
        found["dataset"] = found["dataset"].partition("+")[0]
    return found


def images_of_the_package(cache_dir: Path) -> tuple[Selection, EvalSet]:
    """Return the training and test images of the sample that is included in the package.

    The released network can be exported with them where the images of its training, a JPEG copy of CIFAR-10,
    are missing. It was not trained on test images.
    """
    sample = DataConfig(dataset="sample", cache_dir=cache_dir)
    dataset = load_dataset(sample)
    training, _ = divide_lazily(dataset, sample)
    return training, EvalSet("test", dataset.split("test"))


def load_images(
    card: ModelCard, params: Mapping[str, str], places: Mapping[str, Any]
) -> tuple[Selection, EvalSet]:
    """Return the training images of a run and the images to evaluate it on.

    Args:
        params: params of the run, which say where its images were.
        places: settings of `PlacesConfig` that replace those of the run.

    Raises:
        UsageError: the images differ from those the run was trained on.
        CifarError: they cannot be read or downloaded.
    """
    of_run = data_of_run(params, "dataset", "data_dir", "mirrors", "skip_unreadable")
    split = {"image_size": card.image_size, "val_size": card.val_size, "split_seed": card.split_seed}
    config = validate(DataConfig, {**of_run, **split, **places})
    dataset = load_dataset(config)
    if dataset.digest != card.data_digest:
        raise UsageError(
            f"run {card.run_id} was trained on other images than those of {config.data_dir or dataset.name} "
            f"(digest {card.data_digest[:12]}, found {dataset.digest[:12]}); give the location of its "
            "own images with --data-dir"
        )
    training, validation = divide_lazily(dataset, config)
    if len(validation):
        return training, EvalSet("val", validation)
    drawn = np.sort(np.random.default_rng(0).permutation(len(training))[:TRAINING_IMAGES])
    return training, EvalSet("train", Split(training.images[drawn], training.labels[drawn]))

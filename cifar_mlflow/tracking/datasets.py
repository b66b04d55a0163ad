"""The data set of a run as MLflow shows it: where it comes from, its columns, and the number of images."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from mlflow.entities import Dataset

from cifar_mlflow.config import CIFAR10_MIRRORS, DataConfig, SplitName
from cifar_mlflow.data import ImageDataset
from cifar_mlflow.names import printable

LONGEST_DIGEST = 36  # that MLflow stores
MANY_CLASSES = 100
# In the form of `mlflow.types.Schema`, whose import takes a while.
COLUMNS = [
    {"name": "image", "type": "binary", "required": True},
    {"name": "label", "type": "string", "required": True},
]


def dataset_entities(
    dataset: ImageDataset, config: DataConfig, contexts: Iterable[str]
) -> dict[str, Dataset]:
    """Return the data set for each context (`train`, `validation`, `test`), to be logged as an input.

    MLflow keeps the first description of a name and digest, so it holds for every run: where validation
    images are held out of the training images, both contexts have the profile of the two together.
    """
    return {context: _entity(dataset, config, context) for context in contexts}


def _entity(dataset: ImageDataset, config: DataConfig, context: str) -> Dataset:
    source_type, source = _source(config)
    return Dataset(
        name=f"{dataset.name}-{context}",  # MLflow merges inputs with the same name and digest
        digest=dataset.digest[:LONGEST_DIGEST],
        source_type=source_type,
        source=json.dumps(source),
        schema=json.dumps({"mlflow_colspec": COLUMNS}),
        profile=json.dumps(_profile(dataset, context)),
    )


def _source(config: DataConfig) -> tuple[str, dict[str, Any]]:
    """Return the type and the content of the source, in the form of MLflow's data sources."""
    if config.dataset == "sample":
        return "code", {"tags": {"package": "cifar-mlflow", "folder": "cifar_mlflow/data/sample"}}
    if config.data_dir is not None:
        return "local", {"uri": printable(str(config.data_dir))}
    return "http", {"url": CIFAR10_MIRRORS[-1]}  # every mirror has this very file


def _profile(dataset: ImageDataset, context: str) -> dict[str, Any]:
    own_val = dataset.own_val and context in ("validation", "val")
    part: SplitName = "val" if own_val else "test" if context == "test" else "train"
    counts = np.bincount(dataset.split(part).labels, minlength=len(dataset.classes)).tolist()
    by_class = dict(zip(dataset.classes, counts, strict=True))
    smallest, largest = min(by_class, key=by_class.__getitem__), max(by_class, key=by_class.__getitem__)
    divided = part == "train" and not dataset.own_val
    held_out = {"note": "training and validation images together"} if divided else {}
    size = f"{dataset.image_size}x{dataset.image_size}"
    return {
        "images": sum(counts),
        "size": size,
        "classes": len(counts),
        "smallest_class": f"{smallest} ({by_class[smallest]:,})",
        "largest_class": f"{largest} ({by_class[largest]:,})",
        **({"images_per_class": by_class} if len(counts) <= MANY_CLASSES else {}),
        **held_out,
    }

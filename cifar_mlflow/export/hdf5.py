"""Save models as HDF5, which any HDF5 reader, such as h5py, can read without our code.

Layout:
    /             attributes: `cifar_mlflow_format` (version), `model`, `width`, `dropout`, `num_classes`,
                  `classes` (names, in the order of the logits), `image_size`, `mean` and `std` (R, G, B, for
                  pixels in 0..1), `temperature` (divides the logits before the softmax), `data`,
                  `data_digest`, `run_id`
    /metrics      one attribute per metric of the run, such as `test/accuracy`
    /libraries    one attribute per library: the version that wrote the file
    /export       further attributes from `cifar-mlflow export`, such as preprocessing and license
    /weights/...  one dataset per tensor of `state_dict()`, one group per module: the tensor
                  `network.head.weight` is the dataset /weights/network/head/weight
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from cifar_mlflow.export.files import (
    FORMAT_VERSION,
    check_version,
    damaged,
    not_ours,
    rebuild,
    tensors_of,
)
from cifar_mlflow.files import atomic_write
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier


def save_hdf5(
    path: Path, classifier: ImageClassifier, card: ModelCard, about: Mapping[str, str] | None = None
) -> None:
    """Write a model to `path` atomically.

    Args:
        about: attributes of /export.

    Raises:
        CifarError: the file cannot be written.
    """
    attributes = card.model_dump(mode="json")
    metrics = attributes.pop("metrics")
    content = io.BytesIO()  # on a full disk, HDF5 fails again when it closes the file, and says so at length
    with h5py.File(content, "w") as file:
        file.attrs["cifar_mlflow_format"] = FORMAT_VERSION
        file.attrs["num_classes"] = len(card.classes)
        file.attrs.update(attributes)
        file.create_group("metrics").attrs.update(metrics)
        file.create_group("libraries").attrs.update(
            {"torch": str(torch.__version__), "numpy": np.__version__, "h5py": h5py.__version__}
        )
        if about:
            file.create_group("export").attrs.update(about)
        for name, tensor in tensors_of(classifier).items():
            file[f"weights/{name.replace('.', '/')}"] = tensor.numpy()
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())


def load_hdf5(path: Path) -> tuple[ImageClassifier, ModelCard]:
    """Read a file of `save_hdf5`; the classifier is in eval mode and on the CPU.

    Raises:
        UsageError: the file is not a model of cifar_mlflow, or of a newer format.
        CifarError: the file is damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            if "cifar_mlflow_format" not in file.attrs:
                raise not_ours(path)
            check_version(path, int(file.attrs["cifar_mlflow_format"]))
            card = _read_card(file)
            tensors = _read_tensors(file["weights"])
        return rebuild(path, card, tensors), card
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise damaged(path, error) from error


def _read_card(file: h5py.File) -> ModelCard:
    about = {name: _plain(value) for name, value in file.attrs.items()}
    del about["cifar_mlflow_format"], about["num_classes"]
    metrics = {name: float(value) for name, value in file["metrics"].attrs.items()}
    return ModelCard.model_validate({**about, "metrics": metrics})


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _read_tensors(group: h5py.Group) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}

    # visititems follows no links. HDF5 can also point into other files, or declare terabytes of zeros, so
    # data that is not stored in this file is refused.
    def read(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group):
            return
        if item.external or item.id.get_storage_size() != item.nbytes:
            raise ValueError(f"{name} is not stored in the file")
        tensors[name.replace("/", ".")] = torch.from_numpy(np.asarray(item[()]))

    group.visititems(read)
    return tensors

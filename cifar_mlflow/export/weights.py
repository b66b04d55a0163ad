"""Save models as .safetensors: the tensors of `state_dict()`, and the model card in the header.

The header's metadata (the format allows only text) has `format` = "pt", `cifar_mlflow_format` (version)
and `card` (the model card as JSON). Format: https://github.com/huggingface/safetensors
"""

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cifar_mlflow.errors import UsageError
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

TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def save_weights(
    path: Path, classifier: ImageClassifier, card: ModelCard, about: Mapping[str, str] | None = None
) -> None:
    """Write a model to `path` atomically.

    Args:
        about: further metadata.

    Raises:
        CifarError: the file cannot be written.
    """
    metadata = {
        **(about or {}),
        "format": "pt",
        "cifar_mlflow_format": str(FORMAT_VERSION),
        "card": json.dumps(card.model_dump(mode="json")),
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors_of(classifier), metadata))


def is_model_file(path: Path) -> bool:
    """Return whether a file of weights has a card, so that `load_model_file` reads it."""
    if path.suffix.lower() != ".safetensors":
        return path.suffix.lower() not in TORCH_SUFFIXES
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return b'"cifar_mlflow_format"' in file.read(min(size, path.stat().st_size))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a `state_dict` that another program saved: .safetensors, or a file of torch.save.

    Raises:
        UsageError: the file is something else.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return load(path.read_bytes())
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError("it has values that are not tensors")
    except (
        OSError,
        SafetensorError,
        ValueError,
        RuntimeError,
        EOFError,
        AttributeError,
        UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{path}: not a file with the weights (state_dict) of a network: {reason}"
        ) from error
    return dict(state)


def load_weights_file(path: Path) -> tuple[ImageClassifier, ModelCard]:
    """Read a file of `save_weights`; the classifier is in eval mode and on the CPU.

    Raises:
        UsageError: the file is not a model of cifar_mlflow, or of a newer format.
        CifarError: the file is damaged.
    """
    try:
        # Not safe_open: it needs a path in UTF-8, and its tensors change with the mapped file.
        data = path.read_bytes()
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        if "cifar_mlflow_format" not in metadata:
            raise not_ours(path)
        check_version(path, int(metadata["cifar_mlflow_format"]))
        card = ModelCard.model_validate(json.loads(metadata["card"]))
        return rebuild(path, card, tensors), card
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error

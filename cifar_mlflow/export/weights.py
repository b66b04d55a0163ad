"""Save models as .safetensors: the tensors of `state_dict()`, and the model card in the header.

The header's metadata (the format allows only text) has `format` = "pt", `cifar_mlflow_format` (version)
and `card` (the model card as JSON). Format: https://github.com/huggingface/safetensors
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

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


def save_weights(path: Path, classifier: ImageClassifier, card: ModelCard) -> None:
    """Write a model to `path` atomically.

    Raises:
        CifarError: the file cannot be written.
    """
    metadata = {
        "format": "pt",
        "cifar_mlflow_format": str(FORMAT_VERSION),
        "card": json.dumps(card.model_dump(mode="json")),
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors_of(classifier), metadata))


def load_weights_file(path: Path) -> tuple[ImageClassifier, ModelCard]:
    """Read a file of `save_weights`; the classifier is in eval mode and on the CPU.

    Raises:
        UsageError: the file is not a model of cifar_mlflow, or of a newer format.
        CifarError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "cifar_mlflow_format" not in metadata:
                raise not_ours(path)
            check_version(path, int(metadata["cifar_mlflow_format"]))
            card = ModelCard.model_validate(json.loads(metadata["card"]))
            # Cloned, because the tensors are mapped: a write into the file would change them.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        return rebuild(path, card, tensors), card
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error

"""What the file formats share: a version, writing without half-written files, and a checked way back."""

from pathlib import Path

import torch
from torch import Tensor

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import BUILDERS, build_network

# Raised when a reader of the version before would misread what is written now.
FORMAT_VERSION = 1


def tensors_of(classifier: ImageClassifier) -> dict[str, Tensor]:
    """The state of a classifier by name, on the CPU and in the order of rows."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}


def check_version(path: Path, version: int) -> None:
    if version > FORMAT_VERSION:
        raise UsageError(
            f"{path}: written by a newer cifar_mlflow (format {version}, this one reads up to "
            f"{FORMAT_VERSION}): update it, or export the model again from here"
        )


def not_ours(path: Path) -> UsageError:
    return UsageError(f"{path}: not a model of cifar_mlflow; make one with: cifar-mlflow export")


def damaged(path: Path, why: object) -> CifarError:
    reason = " ".join(str(why).split())
    return CifarError(f"{path}: the file is damaged, copy or export it again ({reason[:200]})")


def rebuild(path: Path, card: ModelCard, tensors: dict[str, Tensor]) -> ImageClassifier:
    """The classifier that a card from `path` describes, with these weights; in eval mode, on the CPU.

    Raises:
        UsageError: there is no model of that name.
        RuntimeError: the weights are not those of such a network.
    """
    if card.model not in BUILDERS:
        raise UsageError(f"{path}: holds a {card.model}, which this cifar_mlflow does not have; update it")
    # On the meta device nothing is allocated or drawn: loading a model leaves the random state alone, and a
    # card that lies about its size costs nothing before the shapes are compared.
    with torch.device("meta"):
        network = build_network(card.model, len(card.classes), width=card.width, dropout=card.dropout)
    classifier = ImageClassifier(network, card.mean, card.std)
    classifier.load_state_dict(tensors, assign=True)
    return classifier.eval()

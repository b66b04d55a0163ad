"""Functions that the file formats share: state, version check, errors, and rebuilding a model."""

import os
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from cifar_mlflow.config import BackboneName, is_backbone
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import BUILDERS, build_network

# Increase it when the previous release would misread the new files.
FORMAT_VERSION = 1


def tensors_of(classifier: ImageClassifier) -> dict[str, Tensor]:
    """Return the state of a classifier by name, on the CPU and contiguous."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}


def check_version(path: Path, version: int) -> None:
    """Raise UsageError if a newer release wrote the file."""
    if version > FORMAT_VERSION:
        raise UsageError(
            f"{path}: written by a newer cifar_mlflow (format {version}, this one reads up to "
            f"{FORMAT_VERSION}): update it, or export the model again with this one"
        )


def not_ours(path: Path) -> UsageError:
    """Return the error for a file that another program wrote."""
    return UsageError(f"{path}: not a model of cifar_mlflow; create one with: cifar-mlflow export")


def damaged(path: Path, error: Exception) -> CifarError:
    """Return a one-line error for a damaged file, or one that the operating system does not let us read."""
    if isinstance(error, OSError) and error.errno:
        return CifarError(f"{path}: cannot be read ({os.strerror(error.errno)})")
    reason = " ".join(str(error).split())
    return CifarError(f"{path}: the file is damaged; copy or export it again ({reason[:200]})")


def rebuild(path: Path, card: ModelCard, tensors: dict[str, Tensor]) -> ImageClassifier:
    """Build the classifier that a card from `path` describes, in eval mode and on the CPU.

    Raises:
        UsageError: there is no model with that name, or it needs an extra.
        RuntimeError: the tensors do not match the network.
    """
    if card.model not in (*BUILDERS, *get_args(BackboneName)) and not card.model.startswith("timm/"):
        raise UsageError(f"{path}: contains a {card.model}, which this cifar_mlflow does not have; update it")
    # The meta device allocates nothing and draws no random numbers: loading keeps the random state, and a
    # card with a false size costs nothing before the shapes are compared. It is not for the networks of other
    # libraries, which may compute tensors that their state does not contain.
    device = "cpu" if is_backbone(card.model) else "meta"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        network = build_network(card.model, len(card.classes), width=card.width, dropout=card.dropout)
    classifier = ImageClassifier(network, card.mean, card.std)
    classifier.load_state_dict(tensors, assign=True)
    return classifier.float().eval()  # released weights are fp16

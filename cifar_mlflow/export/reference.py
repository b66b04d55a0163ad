"""From what a user types for a model (a file, a run, a registry address) to the model."""

import os
import re
import tempfile
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from torch import nn

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.export import load_model_file
from cifar_mlflow.models.classifier import ImageClassifier, ModelCard
from cifar_mlflow.outbox import ask, first_line, is_outage

WEIGHTS_FILE = "weights/model.safetensors"
PT2_FILE = "data/model.pt2"
# The key of the card in the metadata of an MLflow model.
CARD_KEY = "card"


def load_classifier(reference: str) -> tuple[ImageClassifier, ModelCard]:
    """Weights that can be trained on and exported: of a file, or of a run (by its id).

    Raises:
        UsageError: neither a model file nor a run that has weights.
        CifarError: MLflow does not answer, or the file is damaged.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", reference):
        return load_model_file(Path(os.path.expanduser(reference)))  # noqa: PTH111 - no error for ~nobody
    missing = f"run {reference} at {mlflow.get_tracking_uri()} has no weights to load"
    run = ask(lambda: mlflow.MlflowClient().get_run(reference), missing)
    there = ask(lambda: mlflow.artifacts.list_artifacts(run_id=reference, artifact_path="weights"))
    if WEIGHTS_FILE not in {file.path for file in there}:
        raise UsageError(missing)
    # By the id of the run, MLflow would take any failure for a path that is wrong.
    uri = f"{run.info.artifact_uri}/{WEIGHTS_FILE}"
    with tempfile.TemporaryDirectory() as folder:
        return load_model_file(Path(ask(lambda: mlflow.artifacts.download_artifacts(uri, dst_path=folder))))


def _cannot_be_had(error: Exception, problem: str) -> CifarError:
    if is_outage(error):
        return CifarError(f"MLflow at {mlflow.get_tracking_uri()} does not answer: {first_line(error)}")
    return UsageError(f"{problem}: {first_line(error)}")


def load_model(reference: str) -> tuple[nn.Module, ModelCard]:
    """Any saved model, to predict with: what `load_classifier` takes, and runs:/ or models:/ addresses.

    Returns:
        A module that takes float32 (N, 3, H, W) in 0..1 on the CPU and returns logits, and its card.

    Raises:
        UsageError: there is no such model, or it is none of ours.
        CifarError: MLflow does not answer, or the file is damaged.
    """
    if not reference.startswith(("runs:/", "models:/")):
        return load_classifier(reference)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = mlflow.artifacts.download_artifacts(reference, dst_path=scratch)
            metadata = mlflow.models.Model.load(folder).metadata or {}
            # Only the form that we write: MLflow would unpickle others, and with them run what they say.
            if CARD_KEY not in metadata or not Path(folder, PT2_FILE).is_file():
                raise UsageError(f"{reference} is not a model that cifar_mlflow logged")
            return mlflow.pytorch.load_model(folder), ModelCard.from_dict(metadata[CARD_KEY])
    except (MlflowException, OSError) as error:
        raise _cannot_be_had(
            error, f"{reference} cannot be loaded from {mlflow.get_tracking_uri()}"
        ) from error

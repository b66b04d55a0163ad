"""From what a user types for a model (a file, a run, a registry address) to the model."""

import logging
import os
import re
import tempfile
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import get_model_name_and_version
from torch import nn

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.export import load_model_file
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.tracking.retry import call_mlflow, first_line, is_outage

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights/model.safetensors"
PT2_FILE = "data/model.pt2"
# The key of the card in the metadata of an MLflow model.
CARD_KEY = "card"
# The tag by which a version that `register` made names its run.
RUN_TAG = "run_id"
RUN_ID = re.compile(r"[0-9a-f]{32}")


def load_classifier(reference: str) -> tuple[ImageClassifier, ModelCard]:
    """Weights that can be trained on and exported: of a file, a run (by its id), or a registered version.

    Raises:
        UsageError: neither a model file nor a run that has weights.
        CifarError: MLflow does not answer, or the file is damaged.
    """
    if reference.startswith("models:/"):
        run_id = _run_of_version(reference)
        if run_id is None:
            raise UsageError(f"{reference} was not made by cifar-mlflow register: give the id of its run")
        return _load_weights(run_id)
    if reference.startswith("runs:/"):
        raise UsageError(f"{reference} names a program, not weights: give the id of its run")
    if RUN_ID.fullmatch(reference):
        return _load_weights(reference)
    path = os.path.expanduser(reference)  # noqa: PTH111 - no error for ~nobody
    if not os.path.exists(path):  # noqa: PTH110 - no error for a name that is too long
        raise UsageError(
            f"{reference}: there is no such file, and it is no id of a run (32 digits 0-9a-f) and no runs:/ "
            "or models:/ address"
        )
    return load_model_file(Path(path))


def _run_of_version(address: str) -> str | None:
    """The id of the run whose network is served in a registered version; None if `register` did not make it.

    The version itself holds the form that is served, which is not the one to measure or to train on.
    """
    missing = f"there is no {address} in {mlflow.get_registry_uri()}"
    client = call_mlflow(mlflow.MlflowClient)
    name, *number = call_mlflow(lambda: get_model_name_and_version(client, address), missing)
    if not number:  # models:/<id of a logged model>
        return None
    version = call_mlflow(lambda: client.get_model_version(name, *number), missing)
    run_id: str = version.tags.get(RUN_TAG, "")
    if not RUN_ID.fullmatch(run_id):
        return None
    logger.info("%s is version %s, of run %s: its weights are taken", address, version.version, run_id)
    return run_id


def _load_weights(run_id: str) -> tuple[ImageClassifier, ModelCard]:
    missing = f"run {run_id} at {mlflow.get_tracking_uri()} has no weights to load"
    run = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id), missing)
    there = call_mlflow(lambda: mlflow.artifacts.list_artifacts(run_id=run_id, artifact_path="weights"))
    if WEIGHTS_FILE not in {file.path for file in there}:
        raise UsageError(missing)
    # By the id of the run, MLflow would take any failure for a path that is wrong.
    uri = f"{run.info.artifact_uri}/{WEIGHTS_FILE}"
    with tempfile.TemporaryDirectory() as folder:
        return load_model_file(
            Path(call_mlflow(lambda: mlflow.artifacts.download_artifacts(uri, dst_path=folder)))
        )


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
    if reference.startswith("models:/") and (run_id := _run_of_version(reference)):
        return _load_weights(run_id)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = mlflow.artifacts.download_artifacts(reference, dst_path=scratch)
            metadata = mlflow.models.Model.load(folder).metadata or {}
            # Only the form that we write: MLflow would unpickle others, and with them run what they say.
            if CARD_KEY not in metadata or not Path(folder, PT2_FILE).is_file():
                raise UsageError(f"{reference} is not a model that cifar_mlflow logged")
            return mlflow.pytorch.load_model(folder), ModelCard.model_validate(metadata[CARD_KEY])
    except (MlflowException, OSError) as error:
        raise _cannot_be_had(
            error, f"{reference} cannot be loaded from {mlflow.get_tracking_uri()}"
        ) from error

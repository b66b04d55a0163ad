"""Load the model that a user names by file, run or registry address."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from torch import nn

from cifar_mlflow.config import IMAGENET, ModelConfig
from cifar_mlflow.environment import world_size
from cifar_mlflow.errors import CifarError, UsageError, first_line
from cifar_mlflow.export import load_model_file
from cifar_mlflow.export.program import load_program
from cifar_mlflow.export.weights import is_model_file
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.pretrained import RELEASED_WEIGHTS
from cifar_mlflow.names import PRETRAINED, RUN_ID
from cifar_mlflow.settings import validate
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.locations import check_artifact_folder, check_training, find_model_version
from cifar_mlflow.tracking.retry import call_mlflow, is_outage, no_answer

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights/model.safetensors"
PT2_FILE = "data/model.pt2"
# The key of the card in the metadata of an MLflow model.
CARD_KEY = "card"
# The tag with the run of a version that `register` created.
RUN_TAG = "run_id"


def load_classifier(reference: str) -> tuple[ImageClassifier, ModelCard]:
    """Load weights, to train or export them.

    Args:
        reference: a file, a run (its id or runs:/), a registered version, or `pretrained`.

    Returns:
        The classifier, in eval mode and on the CPU, and its card.

    Raises:
        UsageError: the reference is neither a model file nor a run that has weights.
        CifarError: MLflow does not answer, or the file is damaged.
    """
    if reference == PRETRAINED:
        return load_model_file(RELEASED_WEIGHTS)
    if reference.startswith("models:/"):
        run_id = _run_of_version(reference)
        if run_id is None:
            raise UsageError(f"{reference} was not created by cifar-mlflow register: use the id of its run")
        return _load_weights(run_id)
    if reference.startswith("runs:/"):
        run_id = reference.removeprefix("runs:/").partition("/")[0]
        if not RUN_ID.fullmatch(run_id):
            raise UsageError(f"{reference} is not the address of a run, such as runs:/<run id>/model")
        return _load_weights(run_id)
    if RUN_ID.fullmatch(reference):
        return _load_weights(reference)
    path = os.path.expanduser(reference)  # noqa: PTH111 - no error for ~nobody
    if not os.path.exists(path):  # noqa: PTH110 - no error for a name that is too long
        raise UsageError(
            f"{reference}: there is no such file, and it is neither {PRETRAINED} nor a run id (32 digits "
            "0-9a-f) nor a runs:/ or models:/ address"
        )
    return load_model_file(Path(path))


def with_model_of_weights(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a training, with the architecture of `weights` unless a model or recipe is given.

    Raises:
        UsageError: the weights do not exist, or their file does not name its network.
        CifarError: MLflow does not answer, or the file is damaged.
    """
    # Only the first process of torchrun reads the weights, and all must have the same settings.
    weights = validate(ModelConfig, {"weights": settings.get("weights")}).weights
    if not weights or weights == IMAGENET or {"model", "recipe"} & settings.keys() or world_size() > 1:
        return settings
    if (path := Path(weights)).is_file() and not is_model_file(path):
        raise UsageError(
            f"{weights}: not a model of cifar_mlflow: if it holds the weights of a network of "
            "torchvision or timm, name it, for example with --model torchvision/resnet18"
        )
    _, card = load_classifier(weights)
    return {"model": card.model, "width": card.width, **settings}


def is_released(card: ModelCard) -> bool:
    """Return whether a card is that of the released network; each registration gives it another run."""
    _, released = load_classifier(PRETRAINED)
    return card.model_copy(update={"run_id": released.run_id}) == released


def _run_of_version(address: str) -> str | None:
    """Return the id of the run that a registered version was created from; None if not by `register`.

    The version itself holds the network as it is served, possibly in int8; evaluation and training need the
    network as it was trained.
    """
    missing = f"there is no {address} in {mlflow.get_registry_uri()}; see: cifar-mlflow models"
    version = call_mlflow(lambda: find_model_version(address), missing)
    if version is None:  # models:/<id of a logged model>
        return None
    run_id: str = version.tags.get(RUN_TAG, "")
    if not RUN_ID.fullmatch(run_id):
        return None
    logger.info("%s is version %s; loading the weights of its run %s", address, version.version, run_id)
    return run_id


def _load_weights(run_id: str) -> tuple[ImageClassifier, ModelCard]:
    missing = f"run {run_id} at {mlflow.get_tracking_uri()} has no weights to load"
    run = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id), missing)
    artifacts = call_mlflow(lambda: mlflow.artifacts.list_artifacts(run_id=run_id, artifact_path="weights"))
    if WEIGHTS_FILE not in {file.path for file in artifacts}:
        check_training(run)
        check_artifact_folder(run.info.artifact_uri, f"run {run_id}")
        stopped = run.info.status in ("KILLED", "FAILED")
        hint = f"; it ended early, go on with: {RunDirectory.of_run(run).resume_command}" if stopped else ""
        raise UsageError(f"{missing}{hint}")
    # Not by run id and path: MLflow then reports any failure as a wrong path.
    uri = f"{run.info.artifact_uri}/{WEIGHTS_FILE}"
    with tempfile.TemporaryDirectory() as folder:
        path = call_mlflow(lambda: mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        with _named(uri, path):
            return load_model_file(Path(path))


@contextmanager
def _named(address: str, path: str) -> Iterator[None]:
    """Have errors in the block name the address of a downloaded copy, which is gone when people read them."""
    try:
        yield
    except CifarError as error:
        raise type(error)(str(error).replace(path, address)) from error


def load_model(reference: str) -> tuple[nn.Module, ModelCard]:
    """Load any saved model, to predict with it: everything `load_classifier` accepts, and exported programs.

    Args:
        reference: as for `load_classifier`, or a runs:/ or models:/ address of a model of a training run.

    Returns:
        A module that takes float32 (N, 3, H, W) in 0..1 on the CPU and returns logits, and its card.

    Raises:
        UsageError: there is no such model, or cifar_mlflow did not log it.
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
            program = Path(folder, PT2_FILE)
            if CARD_KEY not in metadata or not program.is_file():
                raise UsageError(f"{reference} is not a model that cifar_mlflow logged")
            card = ModelCard.model_validate(metadata[CARD_KEY])
            with _named(reference, folder.rstrip("/")):
                return load_program(program), card
    except (MlflowException, OSError) as error:
        store = mlflow.get_tracking_uri()
        if is_outage(error):
            raise no_answer(store, error) from error
        raise UsageError(f"{reference} cannot be loaded from {store}: {first_line(error)}") from error

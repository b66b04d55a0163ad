"""Load the scorer of a model that a user names. Code that comes with a model is never executed."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from cifar_mlflow.environment import default_cache_dir
from cifar_mlflow.errors import CifarError, UsageError, first_line
from cifar_mlflow.files import write_errors
from cifar_mlflow.names import RUN_ID
from cifar_mlflow.scorer.predictor import CARD_FILE, Scorer
from cifar_mlflow.tracking.locations import check_artifact_folder, find_model_version
from cifar_mlflow.tracking.retry import is_outage, no_answer
from cifar_mlflow.tracking.store import sqlite_file
from serving.registry.mlflow_model import SCORER_PATH
from serving.registry.versions import FILE_TAG, facts

logger = logging.getLogger("cifar_mlflow.classify")

# Tag of a version with the digest of its card, which has the digests of all other files.
CARD_TAG = f"{FILE_TAG}{CARD_FILE}"


def load_scorer(model_uri: str, threads: int | None = None) -> Scorer:
    """Load the scorer of a model, and verify its files against the digests in its card.

    Files from MLflow are cached by the digest of the card, so that a model is downloaded once.

    Args:
        model_uri: models:/<name>@<alias>, models:/<name>/<version>, models:/<model id>,
            runs:/<run id>/<model>, the id of a run (its model `scorer`), or a folder: a scorer folder or an
            MLflow model.
        threads: see `Scorer.load`.

    Raises:
        UsageError: there is no such model, or cifar_mlflow did not make it.
        CifarError: its files are damaged, or cannot be written to the cache, or MLflow does not answer.
    """
    if RUN_ID.fullmatch(model_uri):
        model_uri = f"runs:/{model_uri}/scorer"
    if model_uri.startswith(("models:/", "runs:/")):
        return _load_from_mlflow(model_uri, threads)
    folder = Path(os.path.expanduser(model_uri))  # noqa: PTH111 - Path.expanduser raises for ~nobody
    if (folder / SCORER_PATH).is_dir():
        folder /= SCORER_PATH
    if not (folder / CARD_FILE).is_file():
        raise UsageError(
            f"{model_uri} is neither a model in MLflow (models:/cifar10@champion, runs:/<run id>/scorer) "
            f"nor a folder with {CARD_FILE} and the files of a model"
        )
    return _load(folder, model_uri, threads)


def pin_model(model_uri: str) -> str:
    """Return an address of the same model that is valid in every folder and does not follow an alias.

    Args:
        model_uri: see `load_scorer`.

    Raises:
        UsageError: there is no such model.
        CifarError: MLflow does not answer.
    """
    if RUN_ID.fullmatch(model_uri):
        return f"runs:/{model_uri}/scorer"
    if model_uri.startswith(("models:/", "runs:/")):
        location = _locate(model_uri)[0]
        return location if location.startswith("models:/") else model_uri
    return os.path.abspath(os.path.expanduser(model_uri))  # noqa: PTH100, PTH111 - see load_scorer


def _load_from_mlflow(model_uri: str, threads: int | None) -> Scorer:
    cache = default_cache_dir() / "scorers"
    with write_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        location, expected_digest = _locate(model_uri)
        card = _download(model_uri, f"{location}/{SCORER_PATH}/{CARD_FILE}", scratch)
        digest = hashlib.sha256(card.read_bytes()).hexdigest()
        if expected_digest not in (None, digest):
            raise CifarError(
                f"{model_uri} cannot be used: its {CARD_FILE} differs from the one that was registered"
            )
        cached = cache / digest
        if cached.exists():
            with suppress(ValueError):
                return Scorer.load(cached, threads)
            logger.info("%s is damaged; downloading it again", cached)
            shutil.rmtree(cached)
        folder = _download(model_uri, f"{location}/{SCORER_PATH}", scratch)
        with suppress(OSError):  # another process was faster
            folder.rename(cached)
    return _load(cached, model_uri, threads)


def _locate(model_uri: str) -> tuple[str, str | None]:
    """Return the address of the model's files, and the digest of the card if a version was registered.

    An alias is resolved only here, since it may move between two downloads.
    """
    _check_store_exists()
    with _mlflow_errors(model_uri):
        client = mlflow.MlflowClient()
        if model_uri.startswith("runs:/"):
            run_id = model_uri.removeprefix("runs:/").partition("/")[0]
            experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
            check_artifact_folder(experiment.artifact_location, f"the experiment of run {run_id}")
            return model_uri, None
        version = find_model_version(model_uri)
        if version is None:
            # MLflow downloads single files of a logged model by its location only.
            location = client.get_logged_model(model_uri.removeprefix("models:/")).artifact_location
            check_artifact_folder(location, model_uri)
            return location, None
        location = client.get_model_version_download_uri(version.name, version.version)
        check_artifact_folder(location, model_uri)
        return f"models:/{version.name}/{version.version}", facts(version.tags).get(CARD_TAG)


def _check_store_exists() -> None:
    """Raise UsageError if the SQLite file of the store is missing: MLflow would create an empty one."""
    file = sqlite_file(mlflow.get_registry_uri())
    if file and not file.exists():
        raise UsageError(
            f"there is no MLflow store at {file.absolute()}: change to the folder where the model was "
            "trained, or set MLFLOW_TRACKING_URI, such as sqlite:////a/folder/mlflow.db or http://host:5000"
        )


def _download(model_uri: str, address: str, folder: str) -> Path:
    with _mlflow_errors(model_uri):
        return Path(mlflow.artifacts.download_artifacts(address, dst_path=folder))


@contextmanager
def _mlflow_errors(model_uri: str) -> Iterator[None]:
    """Turn errors of MLflow and of its artifact stores into errors for people."""
    try:
        yield
    except CifarError:
        raise
    # Every artifact store has its own kinds of errors, among them missing packages.
    except Exception as error:
        store = mlflow.get_tracking_uri()
        if is_outage(error):
            raise no_answer(store, error) from error
        missing = isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
        hint = "; see: cifar-mlflow models, or: cifar-mlflow register pretrained --promote" if missing else ""
        raise UsageError(f"{model_uri} cannot be loaded from {store}: {first_line(error)}{hint}") from error


def _load(folder: Path, model_uri: str, threads: int | None) -> Scorer:
    try:
        return Scorer.load(folder, threads)
    except ValueError as error:
        raise CifarError(f"{model_uri} cannot be used: {error}") from error

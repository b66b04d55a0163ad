"""From what a user types for a model to its scorer. No code that comes with a model is executed."""

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow.store.artifact.utils.models import get_model_name_and_version

from cifar_mlflow.config import default_cache_dir
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.files import write_errors
from cifar_mlflow.scorer.predictor import CARD_FILE, Scorer
from cifar_mlflow.tracking.retry import first_line, is_outage
from serving.registry.mlflow_model import SCORER_PATH
from serving.registry.versions import FILE_TAG

logger = logging.getLogger("cifar_mlflow.classify")

# The tag of a version that has the digest of its card, which has those of all other files.
CARD_TAG = f"{FILE_TAG}{CARD_FILE}"
SQLITE = "sqlite:///"


def load_scorer(model_uri: str, threads: int | None = None) -> Scorer:
    """The scorer of a model, its files checked against the digests in its card.

    What comes from MLflow is kept in the cache, by the digest of the card: it is downloaded once.

    Args:
        model_uri: models:/<name>@<alias>, models:/<name>/<version>, models:/<model id>,
            runs:/<run id>/<model>, the id of a run (its model `scorer`), or a folder: a scorer's or an MLflow
            model's.
        threads: see `Scorer.load`.

    Raises:
        UsageError: there is no such model, or it is none of ours.
        CifarError: its files are damaged, or cannot be written to the cache.
    """
    if re.fullmatch(r"[0-9a-f]{32}", model_uri):
        model_uri = f"runs:/{model_uri}/scorer"
    if model_uri.startswith(("models:/", "runs:/")):
        return _of_mlflow(model_uri, threads)
    folder = Path(os.path.expanduser(model_uri))  # noqa: PTH111 - no error for ~nobody
    if (folder / SCORER_PATH).is_dir():
        folder /= SCORER_PATH
    if not (folder / CARD_FILE).is_file():
        raise UsageError(
            f"{model_uri} is neither a model in MLflow (models:/cifar10@champion, runs:/<run id>/scorer) "
            f"nor a folder with {CARD_FILE} and the files of a model"
        )
    return _load(folder, model_uri, threads)


def _of_mlflow(model_uri: str, threads: int | None) -> Scorer:
    cache = default_cache_dir() / "scorers"
    with write_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        address, registered = _find(model_uri)
        card = _download(model_uri, f"{address}/{SCORER_PATH}/{CARD_FILE}", scratch)
        if registered not in (None, _digest(card)):
            raise CifarError(
                f"{model_uri} cannot be used: its {CARD_FILE} is not the one that was registered"
            )
        cached = cache / _digest(card)
        if cached.exists():
            with suppress(ValueError):
                return Scorer.load(cached, threads)
            logger.info("%s is damaged; downloading it again", cached)
            shutil.rmtree(cached)
        folder = _download(model_uri, f"{address}/{SCORER_PATH}", scratch)
        with suppress(OSError):  # another process was faster
            folder.rename(cached)
    return _load(cached, model_uri, threads)


def _find(model_uri: str) -> tuple[str, str | None]:
    """What files are to be found below, and the digest of the card with which a version was registered.

    An alias is resolved here, once: it may move between two downloads.
    """
    _check_store()
    if model_uri.startswith("runs:/"):
        return model_uri, None
    with _mlflow_errors(model_uri):
        client = mlflow.MlflowClient()
        name, *version = get_model_name_and_version(client, model_uri)
        if not version:  # a model's own id, of which MLflow finds the whole only
            return client.get_logged_model(name).artifact_location, None
        found = client.get_model_version(name, *version)
        return f"models:/{name}/{found.version}", found.tags.get(CARD_TAG)


def _check_store() -> None:
    """MLflow would make a new and empty store where there is none."""
    file = mlflow.get_registry_uri().removeprefix(SQLITE)
    if mlflow.get_registry_uri().startswith(SQLITE) and not Path(file).exists():
        raise UsageError(
            f"there is no MLflow store at {file}: go to the folder where the model was trained, or name the "
            "store with MLFLOW_TRACKING_URI, such as sqlite:////a/folder/mlflow.db or http://host:5000"
        )


def _download(model_uri: str, address: str, folder: str) -> Path:
    with _mlflow_errors(model_uri):
        return Path(mlflow.artifacts.download_artifacts(address, dst_path=folder))


@contextmanager
def _mlflow_errors(model_uri: str) -> Iterator[None]:
    try:
        yield
    # Each kind of artifact store has errors of its own, and some need packages that are not there.
    except Exception as error:
        store = mlflow.get_tracking_uri()
        if is_outage(error):
            raise CifarError(f"MLflow at {store} does not answer: {first_line(error)}") from error
        raise UsageError(f"{model_uri} cannot be loaded from {store}: {first_line(error)}") from error


def _load(folder: Path, model_uri: str, threads: int | None) -> Scorer:
    try:
        return Scorer.load(folder, threads)
    except ValueError as error:
        raise CifarError(f"{model_uri} cannot be used: {error}") from error


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

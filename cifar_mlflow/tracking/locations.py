"""Registered models and runs in MLflow: where they are, and checks that they are what a command needs."""

import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cifar_mlflow.errors import UsageError


def versions_of(name: str) -> list[ModelVersion]:
    """Return the versions of a registered model, the newest first.

    Raises:
        MlflowException: MLflow does not answer.
    """
    client = mlflow.MlflowClient()
    if "'" not in name:
        found = client.search_model_versions(f"name = '{name}'")
    else:  # MLflow's filters have no escapes, but a pattern matches any character at _
        pattern = re.sub("['\"]", "_", name)
        found = client.search_model_versions(f"name LIKE '{pattern}'")
    found = [version for version in found if version.name == name]
    return sorted(found, key=lambda version: -int(version.version))


def find_model_version(uri: str) -> ModelVersion | None:
    """Return the registered version that a models:/ address names now.

    Args:
        uri: models:/<name>/<version>, models:/<name>@<alias>, models:/<name>/latest or
            models:/<name>/<stage>.

    Returns:
        The version; None for models:/<model id>, which names a logged model.

    Raises:
        UsageError: the address has another form, or no version has the stage.
        MlflowException: MLflow does not answer, or has no such model, version or alias.
    """
    client = mlflow.MlflowClient()
    reference = uri.removeprefix("models:/")
    name, slash, suffix = reference.partition("/")
    if not name.strip() or "/" in suffix or (slash and not suffix.strip()):
        raise UsageError(f"{uri} is not the address of a model, such as models:/cifar10@champion")
    if not slash:
        name, at, alias = reference.rpartition("@")
        return client.get_model_version_by_alias(name, alias) if at else None
    if suffix.isdecimal():
        return client.get_model_version(name, suffix)
    for version in versions_of(name):
        if suffix.lower() in ("latest", str(version.current_stage).lower()):
            return version
    raise UsageError(f"{uri}: {name} has no such version")


def find_logged_model(run_id: str, name: str) -> str | None:
    """Return the id of the newest model of this name that a run logged; None if this store has none."""
    client = mlflow.MlflowClient()
    found = []
    # A file may come from another store, and a model may have been deleted.
    with suppress(MlflowException):
        run = client.get_run(run_id)
        for output in run.outputs.model_outputs if run.outputs else []:
            with suppress(MlflowException):
                found.append(client.get_logged_model(output.model_id))
    named = [model for model in found if model.name == name]
    newest = max(named, key=lambda model: model.creation_timestamp, default=None)
    return str(newest.model_id) if newest else None


def check_artifact_folder(location: str, owner: str) -> None:
    """Check that a local artifact folder exists; MLflow treats a missing one like an empty one.

    MLflow's store holds absolute paths, which are wrong after its folder was moved.

    Args:
        location: an artifact address as MLflow gives it; one that is not local is not checked.
        owner: the owner of the artifacts, such as "run 0123", for the message.

    Raises:
        UsageError: the folder does not exist.
    """
    address = urlsplit(location)
    folder = Path(url2pathname(address.path)).absolute()
    if address.scheme not in ("", "file") or folder.exists():
        return
    missing = next(path for path in [*folder.parents[::-1], folder] if not path.exists())
    raise UsageError(
        f"the files of {owner} should be in {folder}, but {missing} does not exist; if it was moved, move "
        f"it back or link it (ln -s NEW_PLACE {missing})"
    )


def check_training(run: Run) -> None:
    """Check that a run is of kind `train`, as trials are; a run of another project has no kind.

    Raises:
        UsageError: it is of another kind; for a search, the message names the run of the best trial.
    """
    kind = run.data.tags.get("kind", "train")
    if kind == "train":
        return
    best = run.data.tags.get("best.run_id")
    hint = f"; take its best trial, {best}" if best else ""
    raise UsageError(f"run {run.info.run_id} is not a training, but of kind {kind}{hint}")

"""Locations of registered models in MLflow, and a check that their files still exist."""

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow.entities.model_registry import ModelVersion

from cifar_mlflow.errors import UsageError


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
    versions = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
    for version in versions:
        if suffix.lower() in ("latest", str(version.current_stage).lower()):
            return version
    raise UsageError(f"{uri}: {name} has no such version")


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

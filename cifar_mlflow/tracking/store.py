"""The MLflow store that runs are written to: its address and the experiment in it."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException

from cifar_mlflow.environment import default_cache_dir, patience_seconds
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.redact import redact
from cifar_mlflow.tracking.retry import first_line

SQLITE = "sqlite:///"


def store_uri() -> str:
    """Return the address of MLflow's store, valid in every working directory and without its password."""
    uri = mlflow.get_tracking_uri()
    if file := sqlite_file(uri):
        uri = f"{SQLITE}{file.absolute()}"
    return redact(uri)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for another kind of store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def select_store(uri: str) -> None:
    """Make `uri`, as returned by `store_uri`, the current store.

    Raises:
        UsageError: the store needs a password, or its file is gone.
    """
    current = store_uri()
    if uri == current:
        return
    if (file := sqlite_file(uri)) and not file.exists():
        current_file = sqlite_file(current)
        if current_file and current_file.exists():
            return  # the folder was moved, and this is the store in its new place
        raise UsageError(
            f"the run is in MLflow's store {uri}, but {file} does not exist: "
            "set MLFLOW_TRACKING_URI to its new address"
        )
    if "***" in uri:
        raise UsageError(
            f"the run is in MLflow's store {uri}: set MLFLOW_TRACKING_URI to it, with its password"
        )
    mlflow.set_tracking_uri(uri)


def connect(experiment: str, resume: str | None = None) -> None:
    """Select the experiment for new runs; create it if needed.

    In `mlflow run` it is selected already, and a run to `resume` stays in its own.

    Raises:
        CifarError: the store cannot be reached or written, or its files were moved.
    """
    # A new SQLite store logs each of its many migrations.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        if resume:
            experiment_id = mlflow.MlflowClient().get_run(resume).info.experiment_id
            selected = mlflow.set_experiment(experiment_id=experiment_id)
        elif "MLFLOW_RUN_ID" in os.environ:
            return
        else:
            with _exclusive(mlflow.get_tracking_uri()):
                selected = mlflow.set_experiment(experiment)
        _check_artifact_location(selected.name, selected.experiment_id, selected.artifact_location)
    except CifarError:
        raise
    except Exception as error:  # each kind of store raises errors of its own
        subject = f"run {resume}" if resume else f"experiment {experiment!r}"
        raise CifarError(
            f"{subject} in MLflow's store {mlflow.get_tracking_uri()} cannot be used: {first_line(error)}\n"
            "Set MLFLOW_TRACKING_URI to another store, such as sqlite:////a/folder/mlflow.db or "
            "http://host:5000" + ("" if resume else ", or choose another experiment with --experiment")
        ) from error


def _check_artifact_location(experiment: str, experiment_id: str, location: str) -> None:
    """Refuse an experiment whose folder was moved: MLflow would recreate the old, absolute path."""
    address = urlsplit(location)
    if address.scheme not in ("", "file"):
        return
    folder = Path(url2pathname(address.path)).absolute()
    store = sqlite_file(mlflow.get_tracking_uri())
    moved_to = store.absolute().parent / folder.parent.name / folder.name if store else folder
    # A new experiment has no folder yet, but the folder above `mlruns` exists.
    if folder.exists() or (folder.parents[1].exists() and not moved_to.exists()):
        return
    if not moved_to.exists() and not mlflow.MlflowClient().search_runs([experiment_id], max_results=1):
        return
    missing = next(path for path in [*reversed(folder.parents), folder] if not path.exists())
    raise CifarError(
        f"the files of experiment {experiment!r} should be in {folder}, but {missing} does not exist: move "
        f"it back to that place, link it (ln -s WHERE_IT_IS_NOW {missing}), or start a new experiment "
        "with --experiment"
    )


@contextmanager
def _exclusive(tracking_uri: str) -> Iterator[None]:
    """Let one command at a time open a local database: MLflow creates its tables without a lock."""
    name = hashlib.sha256(redact(tracking_uri).encode()).hexdigest()[:16]
    with ExitStack() as stack:
        if not tracking_uri.startswith("http"):  # a server creates its own database
            # Go on without a lock if the cache cannot be written or another command holds it too long.
            with suppress(OSError, CifarError):
                path = default_cache_dir() / "stores" / f"{name}.lock"
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(path, timeout=patience_seconds()))
        yield


def run_address(run_id: str) -> str | None:
    """Return the address of the page of a run; None without a server, or if it does not answer."""
    if store_uri().startswith("http"):
        with suppress(MlflowException):
            experiment = mlflow.MlflowClient().get_run(run_id).info.experiment_id
            return f"{store_uri().rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    return None

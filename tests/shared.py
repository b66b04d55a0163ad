"""Helpers for tests: folders that all processes share, and the selection of an MLflow store."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cifar_mlflow.files import atomic_write


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """Return the folder of this name and what `make` returned when it filled the folder.

    Tests of all processes share the folder, so they must not change what is in it.

    Args:
        make: fills an empty folder and returns something that JSON can represent.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the folder of a worker lies in that of the session
    folder, returned = root / name, root / f"{name}.json"
    with FileLock(root / f"{name}.lock"):
        if not returned.exists():
            shutil.rmtree(folder, ignore_errors=True)  # another process failed halfway
            folder.mkdir()
            with atomic_write(returned) as unfinished:  # a process that is killed leaves nothing to trust
                unfinished.write_text(json.dumps(make(folder)))
    return folder, json.loads(returned.read_text())


@contextmanager
def use_store(uri: str) -> Iterator[pytest.MonkeyPatch]:
    """Make this MLflow store the current one within the block, whatever was selected before.

    Yields:
        For further changes, which end with the block, too.
    """
    import mlflow  # slow; the process that only starts the workers of pytest-xdist does not need it

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # remembers the former value, which the next line unsets
        mlflow.set_tracking_uri(None)  # an earlier call has precedence over the variable
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)  # MLflow sets it for the processes it starts
        # MLflow has no public way to deselect an experiment.
        patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
        try:
            yield patch
        finally:
            mlflow.set_tracking_uri(None)

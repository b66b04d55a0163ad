"""Folders that take long to fill, made once for all processes of pytest-xdist."""

import json
import os
import shutil
from collections.abc import Callable
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

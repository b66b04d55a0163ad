"""Fixtures for the tests of a search."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, which has a new MLflow store."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""The retrainings at the end of a search."""

import socket
from pathlib import Path

import pytest

from cifar_mlflow.errors import CifarError
from tests.tuning.studies import make_study
from tuning.retrain import retrain
from tuning.storage import Storage


def test_an_outage_ends_a_retraining_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0")
    study = make_study([])
    study.set_user_attr("retrain-000", "a" * 32)
    storage = Storage(f"sqlite:///{tmp_path / 'optuna.db'}", study.study_name, tmp_path, "photos")
    with pytest.raises(CifarError, match="does not answer: Connection refused"):
        retrain(study, {"retrain-000": {"dataset": "sample"}}, {}, storage)

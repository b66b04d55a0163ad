"""What a worker leaves to draw, and what is in the run of the trial after that."""

import logging
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from cifar_mlflow.data import Split
from cifar_mlflow.evaluation.report import Report, log_pictures, report_of
from cifar_mlflow.tracking.artifacts import log_curves
from cifar_mlflow.tracking.run import TrackedRun
from serving.registry.mlflow_server import free_port
from tuning.trial_plots import TrialPictures, leave_to_draw

CLASSES = ("blue", "green", "red")
PICTURES = (
    "learning_curves.png",
    *(f"val/{name}.png" for name in ("confusion_matrix", "f1_by_class", "reliability", "confident_mistakes")),
)


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> mlflow.MlflowClient:
    """A new store, and an experiment whose artifacts are below the test's folder."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    client = mlflow.MlflowClient()
    client.create_experiment("trials", artifact_location=str(tmp_path / "artifacts"))
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def new_run(client: mlflow.MlflowClient) -> str:
    run_id: str = client.create_run(client.get_experiment_by_name("trials").experiment_id).info.run_id
    return run_id


def trained(seed: int) -> tuple[Split, Report, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    val = Split(rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3)
    logits = rng.normal(size=(60, 3)).astype(np.float32)
    columns = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr")
    history = pd.DataFrame(rng.random((3, 5)), columns=columns, index=pd.Index([1, 2, 3], name="epoch"))
    return val, report_of(logits, val.labels, CLASSES, "val", 1.7), history


def picture(client: mlflow.MlflowClient, run_id: str, name: str, to: Path) -> bytes:
    to.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run_id, name, str(to))).read_bytes()


def test_pictures_drawn_later_are_those_that_would_have_been_drawn_at_once(
    store: mlflow.MlflowClient, folder: Path, tmp_path: Path
) -> None:
    val, report, history = trained(0)
    at_once, later = new_run(store), new_run(store)
    run = TrackedRun(at_once, "at once")
    log_pictures(run, report, val)
    log_curves(run, history)
    run.flush()
    leave_to_draw(folder, later, report, val.labels, history)
    with TrialPictures(folder, val, CLASSES):
        pass
    for name in PICTURES:
        expected = picture(store, at_once, name, tmp_path / "expected")
        assert picture(store, later, name, tmp_path / "drawn") == expected, name
    assert not list(folder.glob("*.npz"))


def test_what_a_killed_search_has_left_is_drawn_by_the_next(
    store: mlflow.MlflowClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    val, report, history = trained(1)
    run_id = new_run(store)
    leave_to_draw(folder, run_id, report, val.labels, history)
    with pytest.raises(KeyboardInterrupt), TrialPictures(folder, val, CLASSES):
        raise KeyboardInterrupt
    assert len(list(folder.glob("*.npz"))) == 1
    (folder / f"{'0' * 32}.npz").write_bytes(b"")  # as a power failure leaves it
    (folder / f"{'1' * 32}.unfinished").write_bytes(b"half")
    leave_to_draw(folder, "2" * 32, report, val.labels, history)  # of a store that is gone
    other = new_run(store)
    leave_to_draw(folder, other, report, val.labels[::-1], history)  # of another split
    with caplog.at_level(logging.WARNING), TrialPictures(folder, val, CLASSES):
        pass
    assert {file.path for file in store.list_artifacts(run_id)} == {"learning_curves.png", "val"}
    assert not list(folder.glob("*.npz"))
    assert not store.list_artifacts(other)
    assert {message.partition(" run ")[2].partition(":")[0] for message in caplog.messages} == {
        "0" * 32,
        f"{'2' * 32} cannot be logged",
        other,
    }


@pytest.mark.slow
def test_one_run_that_takes_no_pictures_keeps_them_from_no_other(
    store: mlflow.MlflowClient, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    val, report, history = trained(2)
    (tmp_path / "a file").touch()
    experiment = store.create_experiment("elsewhere", artifact_location=str(tmp_path / "a file"))
    closed = store.create_run(experiment).info.run_id
    open_runs = [new_run(store) for _ in range(4)]
    for run_id in (closed, *open_runs):
        leave_to_draw(folder, run_id, report, val.labels, history)
    with caplog.at_level(logging.WARNING), TrialPictures(folder, val, CLASSES):
        pass
    assert all(store.list_artifacts(run_id) for run_id in open_runs)
    assert [file.stem for file in folder.glob("*.npz")] == [closed]
    assert f"The same command draws the pictures that are missing in {closed}" in caplog.messages


@pytest.mark.slow
def test_what_cannot_be_logged_while_mlflow_is_away_waits_for_the_next_command(
    store: mlflow.MlflowClient,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    val, report, history = trained(3)
    runs = sorted(new_run(store) for _ in range(2))
    for run_id in runs:
        leave_to_draw(folder, run_id, report, val.labels, history)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        patch.setenv("CIFAR_MLFLOW_PATIENCE", "0.1")
        with caplog.at_level(logging.WARNING), TrialPictures(folder, val, CLASSES):
            pass
    said = f"The same command draws the pictures that are missing in {', '.join(runs)}"
    assert said in caplog.messages
    with TrialPictures(folder, val, CLASSES):
        pass
    assert all(store.list_artifacts(run_id) for run_id in runs)
    assert not list(folder.glob("*.npz"))

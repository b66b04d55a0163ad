"""Plots that workers defer and the parent draws."""

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
from tuning.trial_plots import TrialPlotter, save_for_plotting

CLASSES = ("blue", "green", "red")
PLOTS = (
    "learning_curves.png",
    *(f"val/{name}.png" for name in ("confusion_matrix", "f1_by_class", "reliability", "confident_mistakes")),
)


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> mlflow.MlflowClient:
    """Return a client of a new store with an experiment whose artifacts are in the test's folder."""
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
    return val, report_of(logits, val.labels, CLASSES, "val"), history


def plot(client: mlflow.MlflowClient, run_id: str, name: str, to: Path) -> bytes:
    to.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run_id, name, str(to))).read_bytes()


def test_deferred_plots_equal_immediate_ones(
    store: mlflow.MlflowClient, folder: Path, tmp_path: Path
) -> None:
    val, report, history = trained(0)
    at_once, later = new_run(store), new_run(store)
    run = TrackedRun(at_once, "at once")
    log_pictures(run, report, val)
    log_curves(run, history)
    run.flush()
    save_for_plotting(folder, later, report, val.labels, history)
    with TrialPlotter(folder, val, CLASSES):
        pass
    for name in PLOTS:
        expected = plot(store, at_once, name, tmp_path / "expected")
        assert plot(store, later, name, tmp_path / "drawn") == expected, name
    assert not list(folder.glob("*.npz"))


def test_the_plots_of_a_killed_search_are_drawn_by_the_next_command(
    store: mlflow.MlflowClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    val, report, history = trained(1)
    run_id = new_run(store)
    save_for_plotting(folder, run_id, report, val.labels, history)
    with pytest.raises(KeyboardInterrupt), TrialPlotter(folder, val, CLASSES):
        raise KeyboardInterrupt
    assert len(list(folder.glob("*.npz"))) == 1
    (folder / f"{'0' * 32}.npz").write_bytes(b"")  # as after a power failure
    (folder / ".1.tmp").write_bytes(b"half")
    save_for_plotting(folder, "2" * 32, report, val.labels, history)  # not in this store
    other = new_run(store)
    save_for_plotting(folder, other, report, val.labels[::-1], history)  # of another split
    with caplog.at_level(logging.WARNING), TrialPlotter(folder, val, CLASSES):
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
def test_a_run_whose_artifacts_cannot_be_written_does_not_block_the_others(
    store: mlflow.MlflowClient, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    val, report, history = trained(2)
    (tmp_path / "a file").touch()
    experiment = store.create_experiment("elsewhere", artifact_location=str(tmp_path / "a file"))
    unwritable = store.create_run(experiment).info.run_id
    writable = [new_run(store) for _ in range(4)]
    for run_id in (unwritable, *writable):
        save_for_plotting(folder, run_id, report, val.labels, history)
    with caplog.at_level(logging.WARNING), TrialPlotter(folder, val, CLASSES):
        pass
    assert all(store.list_artifacts(run_id) for run_id in writable)
    assert [file.stem for file in folder.glob("*.npz")] == [unwritable]
    assert f"Plots are missing in {unwritable}; run the same command to draw them" in caplog.messages


@pytest.mark.slow
def test_plots_wait_for_the_next_command_while_mlflow_is_away(
    store: mlflow.MlflowClient,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    val, report, history = trained(3)
    runs = sorted(new_run(store) for _ in range(2))
    for run_id in runs:
        save_for_plotting(folder, run_id, report, val.labels, history)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        patch.setenv("CIFAR_MLFLOW_PATIENCE", "0.1")
        with caplog.at_level(logging.WARNING), TrialPlotter(folder, val, CLASSES):
            pass
    message = f"Plots are missing in {', '.join(runs)}; run the same command to draw them"
    assert message in caplog.messages
    with TrialPlotter(folder, val, CLASSES):
        pass
    assert all(store.list_artifacts(run_id) for run_id in runs)
    assert not list(folder.glob("*.npz"))

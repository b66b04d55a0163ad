"""The store of a run: absolute, without its password, and found again or refused after a move."""

import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs

import mlflow
import pytest

from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.settings import validate
from cifar_mlflow.tracking.lifecycle import close_stale_runs, tracked_run
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.store import (
    connect,
    page_address,
    select_store,
    store_uri,
    trainings_page,
    ui_command,
)
from cifar_mlflow.verb_config import EvaluateConfig


@pytest.fixture
def old(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with MLflow's default store and a run that has artifacts."""
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    connect("moved")
    with tracked_run(kind="train", name="a", cache_dir=tmp_path) as (run, _):
        run.log_text("x", "x.txt")
    assert (folder / "mlruns").is_dir()
    return folder


def move(old: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    new = old.with_name("new")
    old.rename(new)
    monkeypatch.chdir(new)
    mlflow.set_tracking_uri(None)
    return new


def test_a_moved_folder_is_refused_and_not_recreated(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move(old, monkeypatch)
    with pytest.raises(CifarError, match=rf"'moved' should be in {old}/mlruns/\d+, but {old} does not exist"):
        connect("moved")
    assert not old.exists()
    connect("another")
    with tracked_run(kind="train", name="a", cache_dir=old.parent) as (run, _):
        run.log_text("x", "x.txt")
    assert not old.exists()


def test_a_moved_folder_is_refused_if_the_old_place_is_used_again(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(old, monkeypatch)
    old.mkdir()
    with pytest.raises(CifarError, match=f"but {old}/mlruns does not exist"):
        connect("moved")
    assert not (old / "mlruns").exists()


def test_the_folder_of_another_store_is_not_taken_for_a_moved_one(
    old: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Path(shutil.copy(empty_store, old / "second.db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{second}")
    mlflow.set_tracking_uri(None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # MLflow puts files into mlruns there, and old/mlruns/1 exists already
    connect("new")
    with tracked_run(kind="train", name="a", cache_dir=tmp_path) as (run, _):
        run.log_text("x", "x.txt")
    assert (elsewhere / "mlruns").is_dir()


def test_a_link_at_the_old_place_is_enough(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = move(old, monkeypatch)
    old.symlink_to(new)
    connect("moved")


def test_a_relative_store_is_recorded_with_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert store_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_runs_of_another_folder_with_the_same_relative_store_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if name == "a":
            directory = RunDirectory.of(tmp_path, "f" * 32)
            directory.acquire()
            directory.write_owner(store_uri())
            directory.release()
    close_stale_runs(tmp_path)
    assert "cannot be looked up" not in caplog.text


def test_a_password_is_not_recorded_and_must_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with_password = "http://alice:secret@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password)
    recorded = store_uri()
    assert recorded == "http://alice:***@127.0.0.1:9"
    select_store(recorded)
    assert mlflow.get_tracking_uri() == with_password
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(UsageError, match=r"set MLFLOW_TRACKING_URI to it, with its password"):
        select_store(recorded)


def test_the_store_of_a_run_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = f"sqlite:///{tmp_path}/gone/mlflow.db"
    with pytest.raises(UsageError, match=f"{tmp_path}/gone/mlflow.db does not exist"):
        select_store(gone)
    assert not (tmp_path / "gone").exists()


def test_an_experiment_is_described_once_and_an_edited_description_is_kept(mlflow_store: Path) -> None:
    assert connect("photos") == "photos"
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("photos")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert f"#/experiments/{experiment.experiment_id}/models?" in experiment.tags["mlflow.note.content"]
    # MLflow's page folds the description to one line, so the links stand in it.
    first, items = experiment.tags["mlflow.note.content"].strip().split("\n\n")
    assert re.findall(r"\(#/experiments/\d+/(\w+)\?", first) == ["runs", "runs", "models"]
    assert "\n" not in first
    assert all(line.startswith("- ") for line in items.split("\n"))  # MLflow shows each line break
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")
    connect("photos")
    assert client.get_experiment_by_name("photos").tags["mlflow.note.content"] == "ours"


def test_in_a_run_of_mlflow_run_its_experiment_is_described_and_default_gets_a_hint(
    mlflow_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = mlflow.MlflowClient()
    for name, hint in (("Default", True), ("ours", False)):
        experiment = "0" if hint else client.create_experiment(name)
        monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(experiment).info.run_id)
        caplog.clear()
        assert connect("my photos") == name
        assert ("mlflow run --experiment-name 'my photos'" in caplog.text) == hint
        assert "mlflow.experimentKind" in client.get_experiment(experiment).tags


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "cifar10"),
        ({"dataset": "sample"}, "cifar10-sample"),
        ({"dataset": "folder", "data_dir": "/photos/cats and dogs/"}, "cats and dogs"),
        ({"dataset": "folder", "data_dir": "/photos/cats", "experiment": "mine"}, "mine"),
    ],
)
def test_an_experiment_is_named_after_the_data_set(settings: dict[str, str], name: str) -> None:
    assert resolve_train_config(settings).experiment == name
    assert validate(EvaluateConfig, {"model_uri": "x", **settings}).experiment == name


def test_the_experiment_of_the_environment_wins_over_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "chosen")
    assert resolve_train_config({"dataset": "sample"}).experiment == "chosen"
    assert resolve_train_config({"dataset": "sample", "experiment": "mine"}).experiment == "mine"


def test_an_address_leads_to_the_mode_for_trained_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:secret@127.0.0.1:9/prefix/")
    assert page_address("experiments/1") == (
        "http://alice:***@127.0.0.1:9/prefix/#/experiments/1?workflowType=machine_learning"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert page_address("experiments/1") is None


def test_the_link_to_the_trainings_leaves_out_the_trials_of_a_search(mlflow_store: Path) -> None:
    connect("photos")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("photos")
    training = client.create_run(experiment.experiment_id, tags={"kind": "train"})
    client.create_run(experiment.experiment_id, tags={"kind": "train", "optuna.trial": "0"})
    client.create_run(experiment.experiment_id, tags={"kind": "search"})
    link = re.search(r"\(#/[^?]*/runs\?(.*?)\)", experiment.tags["mlflow.note.content"])
    assert link
    query = parse_qs(link[1])["searchFilter"][0]
    found = client.search_runs([experiment.experiment_id], query)
    assert [run.info.run_id for run in found] == [training.info.run_id]


def test_the_ui_opens_at_the_experiment_of_the_newest_training(mlflow_store: Path) -> None:
    assert trainings_page() == "experiments"
    client = mlflow.MlflowClient()
    photos, other = client.create_experiment("photos"), client.create_experiment("other")
    client.create_run(other, start_time=1, tags={"kind": "train"})
    client.create_run(photos, start_time=2, tags={"kind": "train"})
    client.create_run(other, start_time=3, tags={"kind": "monitor"})
    assert trainings_page() == f"experiments/{photos}/runs"


@pytest.mark.parametrize(
    ("makefile", "command"),
    [
        (Path(__file__).parents[2].joinpath("Makefile").read_text(), "make ui"),
        ("ui:\n\techo another project\n", "python -m cifar_mlflow.tracking.ui"),
        (None, "python -m cifar_mlflow.tracking.ui"),
    ],
)
def test_the_command_of_the_ui_is_the_target_only_beside_this_makefile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makefile: str | None, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if makefile:
        Path("Makefile").write_text(makefile)
    assert ui_command() == command

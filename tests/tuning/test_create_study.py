"""The conditions for creating, continuing, replacing or refusing a study."""

from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from click.testing import CliRunner

from cifar_mlflow.cli import main
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data import load_dataset
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.tracking.store import connect
from tests.data.test_folder import LATIN1, fill
from tuning.create_study import create_study, is_alive
from tuning.storage import Storage
from tuning.study_spec import read_study_spec

pytestmark = pytest.mark.usefixtures("folder")


def create(**given: Any) -> optuna.Study:
    spec = read_study_spec({"dataset": "sample", **given})
    connect(spec.base.experiment)
    storage = Storage(spec.search.storage, spec.name, spec.base.cache_dir, spec.base.experiment)
    return create_study(spec, storage, load_dataset(spec.base))


def space(text: str) -> str:
    Path("space.yaml").write_text(f"{text}\nreplace: true\n")
    return "space.yaml"


@pytest.mark.parametrize("mistyped", [("--warm-start", "nosuch"), ("--enqueue", "abc")])
def test_a_mistyped_option_creates_no_study(mistyped: tuple[str, str]) -> None:
    result = CliRunner().invoke(main, ["tune", "--dataset", "sample", "--trials", "1", *mistyped])
    assert result.exit_code == 2
    assert optuna.get_all_study_names("sqlite:///optuna.db") == []
    assert create(model="cnn", epochs=2).user_attrs["identity"]["epochs"] == 2


def test_a_study_without_trials_is_replaced() -> None:
    create()
    study = create(model="cnn", epochs=2, second_objective="parameters")
    assert (study.user_attrs["identity"]["model"], study.user_attrs["identity"]["epochs"]) == ("cnn", 2)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.user_attrs["objectives"] == ["val/accuracy", "parameters"]
    assert not any("model" in first["params"] for first in study.user_attrs["first_tries"])
    assert optuna.get_all_study_names("sqlite:///optuna.db") == ["sample"]


def test_a_study_is_continued_with_the_same_settings_and_keeps_its_run() -> None:
    create(model="cnn").set_user_attr("parent_run_id", "a" * 32)
    assert create(model="cnn", trials=40).user_attrs["parent_run_id"] == "a" * 32


def test_the_command_of_a_folder_whose_name_is_not_utf8_is_kept_escaped(folder: Path) -> None:
    fill(folder / LATIN1, "cat", "dog")
    create(dataset="folder", model="cnn", data_dir=folder / LATIN1, cache_dir=folder / "cache")
    (command,) = (folder / "cache/studies").glob("*/command")
    assert f"--data-dir '{folder}/K\\xe4tzchen'" in command.read_text()


def test_a_waiting_trial_fixes_the_settings_and_the_error_names_the_differences_briefly() -> None:
    create(space=space("lr: [0.1, 0.2]\nmomentum: [0.8, 0.9]")).enqueue_trial({"lr": 0.1, "momentum": 0.9})
    other = {"space": space("lr: [0.1, 0.2]\nmomentum: [0.7, 0.9]\nflip: [none, random]")}
    with pytest.raises(UsageError) as refusal:
        create(**other, weights="w" * 100, epochs=2)
    (message,) = str(refusal.value).splitlines()
    assert (
        "(epochs was 9, is now 2; the space differs in momentum, flip; weights was not given, is now 'w"
        in message
    )
    assert "w…)" in message
    assert len(message) < 300


def test_a_running_search_without_trials_fixes_the_settings(folder: Path) -> None:
    study = create(cache_dir=str(folder / "here"))
    experiment = mlflow.MlflowClient().get_experiment_by_name("cifar10-sample").experiment_id
    with mlflow.start_run(experiment_id=experiment) as run:
        study.set_user_attr("parent_run_id", run.info.run_id)
        with pytest.raises(UsageError, match="has other settings"):
            create(epochs=2)
    assert create(epochs=2).user_attrs["identity"]["epochs"] == 2  # the run has ended
    assert "parent_run_id" not in create(epochs=2).user_attrs


def test_a_foreign_study_is_replaced_only_if_it_is_empty() -> None:
    url = "sqlite:///optuna.db"
    optuna.create_study(study_name="sample", storage=url)
    assert create().directions == [optuna.study.StudyDirection.MAXIMIZE]
    optuna.create_study(study_name="theirs", storage=url).enqueue_trial({"x": 1})
    with pytest.raises(UsageError, match="theirs in this storage was not created by cifar_mlflow"):
        create(study="theirs")


def test_the_tracking_server_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:S3cret@127.0.0.1:9")
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0")
    with pytest.raises(CifarError) as refusal:
        is_alive("a" * 32, resolve_train_config({}))
    assert str(refusal.value) == "MLflow at http://alice:***@127.0.0.1:9 does not answer: Connection refused"


def test_a_store_without_the_run_of_the_study_is_named() -> None:
    with pytest.raises(UsageError, match=r"a{32}, was not found in sqlite:.*Set MLFLOW_TRACKING_URI"):
        is_alive("a" * 32, resolve_train_config({}))

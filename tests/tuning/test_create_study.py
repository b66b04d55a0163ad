"""What binds a study to its settings, and the command that goes on with it."""

import shlex
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from click.testing import CliRunner

from cifar_mlflow.cli import main
from cifar_mlflow.data import load_dataset
from cifar_mlflow.errors import UsageError
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.store import connect
from tuning.create_study import prepare
from tuning.storage import Storage
from tuning.study import log_plan
from tuning.study_spec import Plan, read_plan


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(**given: Any) -> optuna.Study:
    plan = read_plan({"dataset": "sample", **given})
    connect(plan.base.experiment)
    storage = Storage(plan.search.storage, plan.name, plan.base.cache_dir)
    return prepare(plan, storage, load_dataset(plan.base))


@pytest.mark.parametrize("mistyped", [("--warm-start", "nosuch"), ("--enqueue", "abc")])
def test_a_mistyped_option_begins_no_study(mistyped: tuple[str, str]) -> None:
    result = CliRunner().invoke(main, ["tune", "--dataset", "sample", "--trials", "1", *mistyped])
    assert result.exit_code == 2
    assert optuna.get_all_study_names("sqlite:///optuna.db") == []
    assert begin(model="cnn", epochs=2).user_attrs["identity"]["epochs"] == 2


def test_a_study_without_trials_is_replaced() -> None:
    begin()
    study = begin(model="cnn", epochs=2, second_objective="parameters")
    assert (study.user_attrs["identity"]["model"], study.user_attrs["identity"]["epochs"]) == ("cnn", 2)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.user_attrs["objectives"] == ["val/accuracy", "parameters"]
    assert not any("model" in first["params"] for first in study.user_attrs["first_tries"])
    assert optuna.get_all_study_names("sqlite:///optuna.db") == ["sample"]


def test_a_study_goes_on_with_the_same_settings_and_keeps_its_run() -> None:
    begin(model="cnn").set_user_attr("parent_run_id", "a" * 32)
    assert begin(model="cnn", trials=40).user_attrs["parent_run_id"] == "a" * 32


def test_a_trial_that_only_waits_binds_and_what_differs_is_named_in_few_words() -> None:
    begin(space=space("lr: [0.1, 0.2]\nmomentum: [0.8, 0.9]")).enqueue_trial({"lr": 0.1, "momentum": 0.9})
    other = {"space": space("lr: [0.1, 0.2]\nmomentum: [0.7, 0.9]\nflip: [none, random]")}
    with pytest.raises(UsageError) as refusal:
        begin(**other, weights="w" * 100, epochs=2)
    (said,) = str(refusal.value).splitlines()
    assert "(epochs was 9, now 2; the space differs in momentum, flip; weights was not given, now 'w" in said
    assert "w…)" in said
    assert len(said) < 300


def test_a_search_that_is_about_to_have_its_first_trial_binds(tmp_path: Path) -> None:
    study = begin(cache_dir=str(tmp_path / "here"))
    experiment = mlflow.MlflowClient().get_experiment_by_name("cifar10").experiment_id
    with mlflow.start_run(experiment_id=experiment) as run:
        study.set_user_attr("parent_run_id", run.info.run_id)
        with pytest.raises(UsageError, match="was begun with other settings"):
            begin(epochs=2)
    assert begin(epochs=2).user_attrs["identity"]["epochs"] == 2  # which is not its run any more
    assert "parent_run_id" not in begin(epochs=2).user_attrs


def test_an_empty_study_of_others_is_replaced_and_one_with_trials_left_alone() -> None:
    url = "sqlite:///optuna.db"
    optuna.create_study(study_name="sample", storage=url)
    assert begin().directions == [optuna.study.StudyDirection.MAXIMIZE]
    optuna.create_study(study_name="theirs", storage=url).enqueue_trial({"x": 1})
    with pytest.raises(UsageError, match="theirs in this storage was not made by cifar_mlflow"):
        begin(study="theirs")


def test_the_command_of_a_search_asks_for_the_same_from_every_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "study": "it's mine", "space": space("lr: [0.1, 0.2]"), "trials": "3", "timeout": "60", "seed": "7",
        "deterministic": "true", "enqueue": "a, b", "mirrors": "a, b", "cache_dir": "cache",
        "run_name": "a b",
    }  # fmt: skip
    begin(**{name: value for name, value in given.items() if name != "enqueue"})
    plan = read_plan({"dataset": "sample", **given})
    command = plan.command
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    again = read_again(command)
    assert again.identity("") == plan.identity("")
    assert (again.fixed, again.search.enqueue) == (plan.fixed, ("a", "b"))
    assert Path(again.search.storage.removeprefix("sqlite:///")) == folder / "optuna.db"
    assert (again.search.trials, again.search.timeout, again.name) == (3, 60, "it's mine")
    assert again.command == command


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("postgresql+psycopg://u:secret@host:5433/db?sslmode=require",
         "postgresql+psycopg://u@host:5433/db?sslmode=require"),
        ("postgresql+psycopg://host/db?user=u&password=secret", "postgresql+psycopg://host/db?user=u"),
    ],
)  # fmt: skip
def test_a_password_is_in_no_command(url: str, printed: str) -> None:
    assert read_again(read_plan({"storage": url}).command).search.storage == printed


def test_a_password_is_in_no_run(tmp_path: Path) -> None:
    url = "postgresql+psycopg://u:secret@host/db?sslpassword=secret"
    plan = read_plan({"dataset": "sample", "storage": url})
    connect("cifar10")
    with tracked_run(kind="search", name="a", cache_dir=tmp_path) as (run, _):
        log_plan(run, plan, load_dataset(plan.base))
    logged = mlflow.MlflowClient().get_run(run.run_id).data.params
    assert logged["storage"] == "postgresql+psycopg://u:***@host/db"


def test_a_run_of_which_nobody_knows_the_command_names_the_study(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "a")
    directory.acquire()
    directory.write_owner("sqlite://", "mine")
    assert directory.resume_hint == "; its study, mine, goes on with the command that began it"


def space(text: str) -> str:
    Path("space.yaml").write_text(f"{text}\nreplace: true\n")
    return "space.yaml"


def read_again(command: str) -> Plan:
    """The plan that the command line makes of a printed command."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("cifar-mlflow", "tune")
    return read_plan(
        {
            name.removeprefix("--").replace("-", "_"): value
            for name, value in zip(words[::2], words[1::2], strict=True)
        }
    )

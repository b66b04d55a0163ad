"""The request for a search, and the command that continues it."""

import shlex
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cifar_mlflow.data import load_dataset
from cifar_mlflow.errors import UsageError
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.store import connect
from tests.tuning.test_create_study import create, space
from tuning.study import log_spec
from tuning.study_spec import StudySpec, WorkerSpec, read_study_spec


def read_command(command: str) -> StudySpec:
    """Return the spec that the command line makes of a printed command."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("cifar-mlflow", "tune")
    given = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    promotion: dict[str, Any] = {
        name: given.pop(name) for name in ("promote", "serve_precision") if name in given
    }
    return read_study_spec(given, promotion)


def test_the_command_requests_the_same_search_from_every_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "study": "it's mine", "space": space("lr: [0.1, 0.2]"), "trials": "3", "timeout": "60", "seed": "7",
        "deterministic": "true", "enqueue": "a, b", "mirrors": "a, b", "cache_dir": "cache",
        "run_name": "a b",
    }  # fmt: skip
    create(**{name: value for name, value in given.items() if name != "enqueue"})
    spec = read_study_spec({"dataset": "sample", **given})
    command = spec.command
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    again = read_command(command)
    assert again.identity("") == spec.identity("")
    assert (again.fixed, again.search.enqueue) == (spec.fixed, ("a", "b"))
    assert Path(again.search.storage.removeprefix("sqlite:///")) == folder / "optuna.db"
    assert (again.search.trials, again.search.timeout, again.name) == (3, 60, "it's mine")
    assert again.command == command


def test_the_command_has_no_settings_that_were_not_given() -> None:
    command = read_study_spec({"dataset": "sample", "storage": "sqlite:////a/b.db", "epochs": "3"}).command
    assert command == "cifar-mlflow tune --storage sqlite:////a/b.db --epochs 3 --dataset sample"


def test_the_command_keeps_that_there_are_no_initial_weights() -> None:
    spec = read_study_spec({"recipe": "finetune", "data_dir": "/photos", "weights": "none"})
    assert read_command(spec.command).fixed == spec.fixed


def test_the_command_promotes_if_the_search_did() -> None:
    spec = read_study_spec({"dataset": "sample"}, {"promote": True, "serve_precision": "fp32"})
    assert read_command(spec.command).promotion == {"promote": "true", "serve_precision": "fp32"}
    assert "promote" not in read_study_spec({"dataset": "sample"}).command


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("postgresql+psycopg://u:secret@host:5433/db?sslmode=require",
         "postgresql+psycopg://u@host:5433/db?sslmode=require"),
        ("postgresql+psycopg://host/db?user=u&password=secret", "postgresql+psycopg://host/db?user=u"),
    ],
)  # fmt: skip
def test_the_command_has_no_password_of_the_storage(url: str, printed: str) -> None:
    assert read_command(read_study_spec({"storage": url}).command).search.storage == printed


def test_the_command_has_no_password_of_a_mirror() -> None:
    mirrors = "https://alice:S3cret@host/cifar.tar.gz,https://bob:Pa@ss:word@host/cifar.tar.gz"
    command = read_study_spec({"mirrors": mirrors}).command
    assert "https://alice:***@host/cifar.tar.gz,https://bob:***@host/cifar.tar.gz" in command


def test_the_run_has_no_password(folder: Path) -> None:
    given = {
        "storage": "postgresql+psycopg://u:secret@host/db?sslpassword=secret",
        "mirrors": "https://alice:secret@host/cifar.tar.gz",
    }
    spec = read_study_spec({"dataset": "sample", **given})
    connect("cifar10")
    with tracked_run(kind="search", name="a", cache_dir=folder) as (run, _):
        log_spec(run, spec, load_dataset(spec.base))
    params = mlflow.MlflowClient().get_run(run.run_id).data.params
    assert params["storage"] == "postgresql+psycopg://u:***@host/db?sslpassword=***"
    assert not [name for name, value in params.items() if "secret" in value]
    assert "trials" not in params  # a continued search has more, and params cannot change


def test_searches_of_two_folders_are_two_studies() -> None:
    photos, drawings = (
        read_study_spec({"dataset": "folder", "data_dir": f"/data/{name}", "model": "cnn"}).name
        for name in ("photos", "drawings")
    )
    assert (photos, drawings) == ("photos", "drawings")
    assert read_study_spec({"dataset": "sample"}).name == "sample"


def test_a_budget_below_one_trial_is_refused() -> None:
    with pytest.raises(UsageError, match="--epochs-budget: 8 is too small for one trial of 9 epochs"):
        read_study_spec({"epochs_budget": "8"})
    assert read_study_spec({"epochs_budget": "9"}).search.epochs_budget == 9


def test_a_worker_reads_its_spec_from_json() -> None:
    spec = WorkerSpec("a", {"trials": 3}, {"seed": 1}, "space.yaml", "b", "cache", "c", index=1, deadline=2.5)
    assert WorkerSpec.from_json(spec.to_json()) == spec


def test_a_stopped_run_whose_command_is_unknown_names_its_study(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "a")
    directory.acquire()
    directory.write_owner("sqlite://", "mine")
    assert "its study, mine," in directory.resume_hint


@pytest.mark.parametrize(("kind", "lines"), [("search", 1), ("train", 0)])
def test_the_command_is_printed_for_the_search_and_not_for_each_trial(
    folder: Path, caplog: pytest.LogCaptureFixture, kind: str, lines: int
) -> None:
    connect("a")
    with pytest.raises(KeyboardInterrupt), tracked_run(kind=kind, name="a", cache_dir=folder, study="mine"):
        raise KeyboardInterrupt
    assert caplog.text.count("Stopped by") == 1
    assert caplog.text.count("continue its study") == lines

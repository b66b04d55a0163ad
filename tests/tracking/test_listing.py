"""The commands `runs` and `models`: ids, accuracies and aliases without the UI."""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner, Result

from cifar_mlflow.cli import main
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.store import store_uri

TIMES = itertools.count(1)


@pytest.fixture(autouse=True)
def client(mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFAR_MLFLOW_CACHE", str(tmp_path / "cache"))
    return mlflow.MlflowClient()


def add_run(
    client: mlflow.MlflowClient,
    accuracy: float | None,
    *,
    name: str = "a run",
    experiment: str = "0",
    status: str = "FINISHED",
    **tags: str,
) -> str:
    tags = {"kind": "train", "dataset": "photos", **{key.replace("_", "."): tags[key] for key in tags}}
    run = client.create_run(experiment, start_time=next(TIMES), tags=tags, run_name=name)
    run_id: str = run.info.run_id
    if accuracy is not None:
        client.log_metric(run_id, "val/accuracy", accuracy)
    client.set_terminated(run_id, status)
    return run_id


def invoke(*arguments: str, code: int = 0) -> str:
    result: Result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.output


def rows(output: str) -> list[str]:
    """Return the first word of each row of the table."""
    table = output.partition("\n\n")[0]
    return [line.split()[0] for line in table.splitlines()[1:]]


def test_runs_are_listed_with_the_newest_first_and_the_next_command(client: mlflow.MlflowClient) -> None:
    first = add_run(client, 0.5)
    second = add_run(client, 0.75, name="second")
    trial = add_run(client, 0.9, optuna_trial="3")
    other = add_run(client, 0.1, experiment=client.create_experiment("other"))
    add_run(client, 0.2, kind="evaluate")
    output = invoke("runs")
    assert rows(output) == [other, second, first]
    (line,) = [line for line in output.splitlines() if second in line and "second" in line]
    assert line.split() == [second, "second", "photos", "75.0", "%"]
    assert f"cifar-mlflow register {second} --promote" in output
    assert rows(invoke("runs", "--limit", "1")) == [other]
    assert rows(invoke("runs", "--experiment", "other")) == [other]
    assert rows(invoke("runs", "--kind", "trial")) == [trial]
    assert "there is no experiment 'nothing'" in invoke("runs", "--experiment", "nothing", code=2)


def test_searches_are_listed_with_the_value_of_their_best_trial(client: mlflow.MlflowClient) -> None:
    assert "cifar-mlflow tune --dataset sample" in invoke("runs", "--kind", "search")
    trial = add_run(client, 0.75, optuna_trial="3")
    search = add_run(client, None, kind="search", name="search-photos")
    client.set_tag(search, "best.run_id", trial)
    client.log_param(search, "epochs", 4)
    client.log_metric(search, "best/val/accuracy", 0.75)
    add_run(client, None, kind="search", status="KILLED")
    output = invoke("runs", "--kind", "search")
    (line,) = [line for line in output.splitlines() if line.startswith(search)]
    assert line.split() == [search, "search-photos", "photos", "75.0", "%"]
    assert f"cifar-mlflow train --settings-of {trial} --epochs 12" in output
    assert f"cifar-mlflow register {trial} --promote" in output


def test_accuracies_are_those_without_test_time_augmentation_as_in_models(
    client: mlflow.MlflowClient,
) -> None:
    with_tta = add_run(client, 0.5)
    client.log_metric(with_tta, "val/accuracy_tta", 0.6)
    (line,) = [line for line in invoke("runs").splitlines() if line.startswith(with_tta)]
    assert "50.0 %" in line
    assert "60.0 %" not in line


def test_the_best_of_other_data_is_not_suggested(client: mlflow.MlflowClient) -> None:
    add_run(client, 1.0, dataset_digest="of six toys")
    run_id = add_run(client, 0.5, dataset_digest="of the photos")
    assert f"cifar-mlflow register {run_id} --promote" in invoke("runs")


@pytest.mark.parametrize("name", ["it's", """a "b" and 'c'""", "50 %_"])
def test_a_registered_model_may_have_any_name(client: mlflow.MlflowClient, tmp_path: Path, name: str) -> None:
    run_id = add_run(client, 0.5)
    for each in (name, "itXs"):  # a pattern for the first name fits the second, too
        client.create_registered_model(each)
        client.create_model_version(each, str(tmp_path), run_id, tags={"run_id": run_id})
    output = invoke("models")
    assert output.count(f"{name}/1") == 1
    assert f"{name}/1" in invoke("models", "--registered-model", name)
    assert invoke("runs").count(f"{name}/1") + invoke("runs").count("itXs/1") == 1


def test_a_run_that_can_be_resumed_is_listed_with_the_command(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    killed = add_run(client, 0.5, status="KILLED")
    directory = RunDirectory.of(tmp_path / "cache", killed)
    directory.acquire()
    directory.write_owner(store_uri())
    directory.checkpoint.save({})
    assert "--resume" not in invoke("runs")  # a process holds its lock
    directory.release()
    output = invoke("runs")
    assert "killed" in output
    assert f"cifar-mlflow train --resume {killed}" in output
    assert "cifar-mlflow register" not in output


def test_registered_versions_are_listed_with_their_aliases(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    empty = invoke("models")
    assert "No registered models yet." in empty
    assert "cifar-mlflow register pretrained --promote" in empty
    runs = [add_run(client, accuracy) for accuracy in (0.8, 0.7)]
    for name in ("cifar10", "my photos"):
        client.create_registered_model(name)
    for run_id, accuracy in zip(runs, ("0.8", "unknown"), strict=True):
        tags = {"run_id": run_id, "model": "cnn", "precision": "int8", "val_accuracy": accuracy}
        client.create_model_version("cifar10", str(tmp_path), run_id, tags={**tags, "data": "photos"})
    client.create_model_version("my photos", str(tmp_path))
    client.set_registered_model_alias("cifar10", "champion", "1")
    output = invoke("models", "--registered-model", "cifar10")
    assert rows(output) == ["cifar10/2", "cifar10/1"]
    assert output.splitlines()[2].split() == [
        *("cifar10/1", "champion", "cnn", "int8", "photos", "80.0", "%", runs[0]),
    ]
    assert "unknown" in output
    everything = invoke("models")
    assert "cifar-mlflow serve --model-uri models:/cifar10@champion" in everything
    assert "cifar-mlflow promote --registered-model 'my photos'" in everything
    assert "there is no registered model none" in invoke("models", "--registered-model", "none", code=2)
    assert "cifar10/1 champion" in invoke("runs")
    assert "cifar-mlflow register" not in invoke("runs")


def test_an_empty_store_says_how_to_begin() -> None:
    output = invoke("runs")
    assert output.startswith("No trainings yet.")
    assert "cifar-mlflow train --dataset sample" in output
    assert invoke("runs", "--kind", "export") == "No runs of kind export yet.\n"


@pytest.mark.slow
def test_a_wrong_address_is_reported_in_one_line_without_the_patience_of_a_training(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        free_port = closed.getsockname()[1]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port}"}
    environment.pop("CIFAR_MLFLOW_PATIENCE", None)
    done = subprocess.run(
        [sys.executable, "-m", "cifar_mlflow", "runs"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == f"Error: MLflow at http://127.0.0.1:{free_port} does not answer: Connection refused"

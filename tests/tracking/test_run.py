"""The start and end of a run: its status, its local files, and the error that the user sees."""

import multiprocessing
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.entities import Dataset, Metric
from mlflow.exceptions import MlflowException

from cifar_mlflow.cli import main
from cifar_mlflow.errors import CifarError
from cifar_mlflow.tracking import lifecycle, system_metrics
from cifar_mlflow.tracking.lifecycle import close_stale_runs, tracked_run
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.metric_queue import MetricQueue
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import connect


@pytest.fixture(autouse=True)
def _experiment(tmp_path: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0.1")
    connect("ends")


def fail(cache_dir: Path, error: BaseException, with_checkpoint: bool) -> tuple[str, RunDirectory]:
    """Run a run that ends with this error; return its id and directory."""
    seen = []
    with suppress(type(error)), tracked_run(kind="train", name="a", cache_dir=cache_dir) as (run, directory):
        seen.append((run.run_id, directory))
        if with_checkpoint:
            directory.checkpoint.save({})
        raise error
    return seen[0]


def test_a_failed_run_without_a_checkpoint_leaves_nothing_on_this_machine(tmp_path: Path) -> None:
    run_id, directory = fail(tmp_path, ValueError("why"), with_checkpoint=False)
    failed = mlflow.MlflowClient().get_run(run_id)
    assert (failed.info.status, failed.data.tags["error"]) == ("FAILED", "why")
    assert not directory.path.exists()


@pytest.mark.parametrize("folder", ["default", "another place"])
def test_the_commands_that_resume_a_run_name_a_cache_that_is_not_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_CACHE", str(tmp_path / "default"))
    run_id, _ = fail(tmp_path / folder, KeyboardInterrupt(), with_checkpoint=True)
    option = "" if folder == "default" else f" --cache-dir '{tmp_path / folder}'"
    command = f"cifar-mlflow train --resume {run_id}{option}"
    assert caplog.messages[-1] == f"Stopped by Ctrl-C; continue with: {command}"
    assert f"\n  {command}\n" in CliRunner().invoke(main, ["runs"]).output
    mlflow.MlflowClient().log_text(run_id, "", "notes.txt")  # as a run that has begun has files
    refused = CliRunner().invoke(main, ["register", run_id])
    assert refused.output.endswith(f"go on with: {command}\n"), refused.output


def test_ctrl_c_while_a_run_ends_does_not_make_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the process ends, MLflow marks a run that is still active as FINISHED."""

    set_terminated = mlflow.MlflowClient.set_terminated

    def interrupt(*_: object, **__: object) -> None:
        monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", set_terminated)
        raise KeyboardInterrupt

    run_ids = []
    with suppress(KeyboardInterrupt), tracked_run(kind="train", name="a", cache_dir=tmp_path) as (run, _):
        run_ids.append(run.run_id)
        monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", interrupt)
        raise KeyboardInterrupt
    assert mlflow.active_run() is None
    assert mlflow.MlflowClient().get_run(run_ids[0]).info.status == "KILLED"


def test_ctrl_c_while_a_run_starts_leaves_none_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response of the server has not arrived, but the run exists."""
    create_run = mlflow.MlflowClient.create_run

    def interrupt(*arguments: Any, **options: Any) -> None:
        create_run(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", interrupt)
    with pytest.raises(KeyboardInterrupt), tracked_run(kind="train", name="a", cache_dir=tmp_path):
        pass
    assert mlflow.active_run() is None
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "KILLED"


def test_the_cause_of_a_failure_is_raised_even_during_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise MlflowException("API request to nowhere failed")

    def diverge() -> None:
        with tracked_run(kind="train", name="a", cache_dir=tmp_path):
            for call in ("log_batch", "set_terminated"):
                monkeypatch.setattr(mlflow.MlflowClient, call, away)
            raise CifarError("it diverged")

    with pytest.raises(CifarError, match="it diverged"):
        diverge()


def test_a_run_that_could_not_be_marked_is_closed_by_the_next_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as refusal:
        refusal.setattr(lifecycle, "_end", lambda *_: mlflow.end_run("RUNNING"))
        run_id, _ = fail(tmp_path, ValueError(), with_checkpoint=False)
    assert mlflow.MlflowClient().get_run(run_id).info.status == "RUNNING"
    close_stale_runs(tmp_path)
    assert mlflow.MlflowClient().get_run(run_id).info.status == "KILLED"


def test_a_run_of_another_machine_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine cannot see its process, so a free lock means nothing."""
    with monkeypatch.context() as kill:
        kill.setattr(lifecycle, "_end", lambda *_: mlflow.end_run("RUNNING"))
        run_id, directory = fail(tmp_path, ValueError(), with_checkpoint=True)
    owner = directory.path / "owner.json"
    owner.write_text(owner.read_text().replace(socket.gethostname(), "elsewhere"))
    close_stale_runs(tmp_path)
    assert mlflow.MlflowClient().get_run(run_id).info.status == "RUNNING"


def test_the_lock_of_a_run_that_cannot_be_started_is_released(tmp_path: Path) -> None:
    run_id, directory = fail(tmp_path, ValueError(), with_checkpoint=True)
    mlflow.MlflowClient().delete_run(run_id)
    with (
        pytest.raises(CifarError, match="deleted state"),
        tracked_run(kind="train", name="a", cache_dir=tmp_path, resume=run_id),
    ):
        pass
    assert directory.try_acquire()


def test_closing_the_queue_always_wakes_its_thread() -> None:
    for _ in range(200):
        assert MetricQueue(lambda _: None).close(patience=0.5) == []


def test_an_outage_during_a_training_is_reported_in_few_words(caplog: pytest.LogCaptureFixture) -> None:
    pool = "HTTPConnectionPool(host='h', port=1): Max retries exceeded with url: /a"
    cause = "NewConnectionError('Failed to establish a new connection: [Errno 111] Connection refused')"
    outage = MlflowException(f"API request to http://h:1/a failed with exception {pool} (Caused by {cause})")
    errors = [outage]

    def send(metrics: list[Metric]) -> None:
        if errors:
            raise errors.pop()

    queue = MetricQueue(send)
    queue.put([Metric("loss", 1.0, 0, 1)])
    assert queue.close(patience=30) == []
    assert "MLflow does not answer (Connection refused); the training goes on" in caplog.text


def test_concurrent_runs_can_log_the_same_new_data_set() -> None:
    client, experiment = mlflow.MlflowClient(), mlflow.get_experiment_by_name("ends").experiment_id
    runs = [TrackedRun(client.create_run(experiment).info.run_id, "a") for _ in range(3)]
    together = threading.Barrier(len(runs))

    def photos(number: int, context: str) -> Dataset:
        return Dataset(
            f"photos {number} {context}", "0" * 36, source_type="local", source='{"uri": "/photos"}'
        )

    def log(run: TrackedRun) -> None:
        for number in range(10):
            together.wait(timeout=60)
            run.log_datasets({context: photos(number, context) for context in ("train", "test")})

    with ThreadPoolExecutor(len(runs)) as threads:
        list(threads.map(log, runs))
    for run in runs:
        assert len(client.get_run(run.run_id).inputs.dataset_inputs) == 20


def begin(uri: str, together: Barrier) -> None:
    mlflow.set_tracking_uri(uri)
    together.wait(timeout=120)
    connect("new")


@pytest.mark.thorough
@pytest.mark.slow
def test_commands_can_open_a_new_store_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIFAR_MLFLOW_PATIENCE")
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)
    arguments = (f"sqlite:///{tmp_path / 'new.db'}", together)
    commands = [context.Process(target=begin, args=arguments) for _ in range(2)]
    for command in commands:
        command.start()
    for command in commands:
        command.join()
    assert [command.exitcode for command in commands] == [0, 0]


@pytest.mark.slow
def test_system_metrics_are_logged_after_the_first_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    logged = []
    for minute, asked in ((0.01, True), (60.0, True), (0.01, False)):
        monkeypatch.setattr(system_metrics, "FIRST_MINUTE", minute)
        with tracked_run(kind="train", name="a", cache_dir=tmp_path, system_metrics=asked) as (run, _):
            for _ in range(200 if asked and minute < 1 else 5):
                time.sleep(0.1)
                metrics = mlflow.MlflowClient().get_run(run.run_id).data.metrics
                if "system/cpu_utilization_percentage" in metrics:
                    break
        logged.append("system/cpu_utilization_percentage" in metrics)
    assert logged == [True, False, False]

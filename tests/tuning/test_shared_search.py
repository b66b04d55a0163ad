"""Commands and workers that share a search."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from optuna.storages import RDBStorage

from cifar_mlflow.data import load_dataset
from cifar_mlflow.errors import CifarError
from cifar_mlflow.tracking.store import connect
from serving.registry.mlflow_server import free_port
from tests.end_to_end.postgres import Postgres, missing
from tuning.create_study import create_study
from tuning.storage import Storage
from tuning.study import study_run
from tuning.study_spec import StudySpec, read_study_spec
from tuning.worker import Worker

WORKERS = 6
TRIALS = 4


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{folder / 'optuna.db'}"
    elif reason := missing():
        pytest.skip(reason)
    else:
        server = Postgres(free_port())
        yield server.url
        server.remove()


def new_study(url: str, folder: Path, cache: Path) -> tuple[StudySpec, Storage, optuna.Study]:
    given = {"dataset": "sample", "cache_dir": folder, "sampler": "random", "study": "mine", "storage": url}
    spec = read_study_spec(given | {"trials": TRIALS, "workers": WORKERS, "threads": 1})
    storage = Storage(url, "mine", folder, connect(spec.base.experiment))
    dataset = load_dataset(spec.base.model_copy(update={"cache_dir": cache}))
    return spec, storage, create_study(spec, storage, dataset)


def test_a_command_that_joined_a_search_prints_how_to_continue_it(
    folder: Path, shared_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, storage, study = new_study(f"sqlite:///{folder / 'optuna.db'}", folder, shared_cache)
    with study_run(spec, study, storage), pytest.raises(KeyboardInterrupt), study_run(spec, study, storage):
        raise KeyboardInterrupt
    assert f"Stopped by Ctrl-C; continue its study with: {spec.command}" in caplog.text


def test_an_outage_at_the_start_of_a_search_is_an_error_that_says_what_to_do(
    folder: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := missing():
        pytest.skip(reason)
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0")
    server = Postgres(free_port())

    class StoppedAfterOpening(Storage):
        def open(self) -> RDBStorage:
            database = super().open()
            server.stop()
            return database

    try:
        spec, storage, study = new_study(server.url, folder, shared_cache)
        dataset = load_dataset(spec.base.model_copy(update={"cache_dir": shared_cache}))
        with pytest.raises(CifarError, match="Nothing is lost: run the same command"):
            create_study(spec, StoppedAfterOpening(server.url, "mine", folder, "cifar10"), dataset)
        with (
            pytest.raises(CifarError, match="Nothing is lost: run the same command"),
            study_run(spec, study, storage),
        ):
            pass
    finally:
        server.remove()


def test_no_run_is_left_running_if_the_study_cannot_note_it(
    folder: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, storage, study = new_study(f"sqlite:///{folder / 'optuna.db'}", folder, shared_cache)
    create_run = mlflow.MlflowClient.create_run

    def create_run_and_damage_study(*arguments: Any, **options: Any) -> Any:
        run = create_run(*arguments, **options)
        with closing(sqlite3.connect(folder / "optuna.db")) as database:
            database.execute("DROP TABLE study_user_attributes")
        return run

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", create_run_and_damage_study)
    with pytest.raises(CifarError, match="study mine no longer exists"), study_run(spec, study, storage):
        pass
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "the study does not know this run")


def test_workers_that_ask_at_the_same_time_get_each_trial_once(
    url: str, folder: Path, shared_cache: Path
) -> None:
    spec, storage, _ = new_study(url, folder, shared_cache)
    workers = [Worker(each) for each in spec.worker_specs(storage, parent_run_id="")]
    start = threading.Barrier(WORKERS)
    locks = []

    def take_all(worker: Worker) -> list[int]:
        start.wait()
        numbers = []
        while claimed := worker.claim_trial():
            callbacks, lock, is_restart = claimed
            locks.append(lock)  # held, as during the training
            assert not is_restart
            numbers.append(callbacks.trial.number)
        return numbers

    with ThreadPoolExecutor(WORKERS) as pool:
        taken = [number for numbers in pool.map(take_all, workers) for number in numbers]
    assert sorted(taken) == list(range(TRIALS))
    assert len(optuna.load_study(study_name="mine", storage=url).trials) == TRIALS

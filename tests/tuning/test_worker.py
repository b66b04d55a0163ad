"""Workers of one search that take trials at the same time."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest

from cifar_mlflow.data import load_dataset
from serving.registry.mlflow_server import free_port
from tests.end_to_end.postgres import Postgres, missing
from tuning.create_study import create_study
from tuning.storage import Storage
from tuning.study_spec import read_study_spec
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


def test_workers_that_ask_at_the_same_time_get_each_trial_once(
    url: str, folder: Path, shared_cache: Path
) -> None:
    given = {"dataset": "sample", "cache_dir": folder, "sampler": "random", "study": "mine", "storage": url}
    spec = read_study_spec(given | {"trials": TRIALS, "workers": WORKERS, "threads": 1})
    storage = Storage(url, "mine", folder, spec.base.experiment)
    create_study(spec, storage, load_dataset(spec.base.model_copy(update={"cache_dir": shared_cache})))
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

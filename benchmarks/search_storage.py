"""Measure how many trials per second a study in PostgreSQL sustains: workers of a search, without training.

Each worker is a process that takes trials as `cifar-mlflow tune` does (lock, choice of the settings by the
sampler), reports the values of nine epochs, asks the pruner after each, and stores the result. The values are
random and arrive at once, so the workers do nothing but use the storage; MLflow is not part of it. PostgreSQL
comes from Debian's packages with its default settings (fsync is on) and shares the machine with all workers.

Only one worker of a study takes a trial at a time, so the time this takes limits the rate for any number of
workers. The processor time of PostgreSQL per trial does not depend on how many cores the workers occupy.
"""

import multiprocessing
import os
import random
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Row, progress
from cifar_mlflow.data import load_dataset
from serving.registry.mlflow_server import free_port
from tests.end_to_end.postgres import Postgres, missing
from tuning.create_study import create_study
from tuning.objective import VALUE
from tuning.optuna_output import silence_optuna
from tuning.storage import Storage
from tuning.study_spec import WorkerSpec, read_study_spec
from tuning.worker import Worker

EPOCHS = 9
TICKS = os.sysconf("SC_CLK_TCK")


class Carried(NamedTuple):
    """One measurement.

    Attributes:
        trials: finished per second, by all workers.
        claim: milliseconds to take a trial, with the wait for other workers (median).
        database: milliseconds of processor time of PostgreSQL per trial.
    """

    trials: float
    claim: float
    database: float


def measure(
    workers: tuple[int, ...] = (1, 8, 32), seconds: float = 30, samplers: tuple[str, ...] = ("tpe", "random")
) -> list[Row]:
    """Return a row for each sampler and number of workers."""
    if reason := missing():
        raise RuntimeError(f"this benchmark needs PostgreSQL: {reason}")
    silence_optuna()
    server = Postgres(free_port(), settings="-c max_connections=200")
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for sampler in samplers:
                for count in workers:
                    carried = measure_one(server, sampler, count, seconds, Path(folder))
                    progress(f"  {sampler}, {count} workers: {carried}")
                    rows.append(
                        Row(
                            f"trials that PostgreSQL carries: sampler {sampler}, {count} workers",
                            f"{carried.claim:.0f} ms to take a trial",
                            f"{carried.database:.1f} ms of PostgreSQL's CPU per trial",
                            carried.trials,
                            "trials/s",
                        )
                    )
    finally:
        server.remove()
    return rows


def measure_one(server: Postgres, sampler: str, count: int, seconds: float, folder: Path) -> Carried:
    """Run `count` workers on a new study for some seconds."""
    name = f"{sampler}-{count}"
    given = {"dataset": "sample", "cache_dir": folder, "epochs": EPOCHS, "sampler": sampler, "seed": 0}
    given |= {"study": name, "storage": server.url, "trials": 1_000_000, "workers": count, "threads": 1}
    spec = read_study_spec(given)
    storage = Storage(server.url, name, folder, spec.base.experiment)
    create_study(spec, storage, load_dataset(spec.base))
    context = multiprocessing.get_context("fork")  # the workers share the memory of the imports
    barrier = context.Barrier(count + 1)
    claims: multiprocessing.Queue[list[float]] = context.Queue()
    workers = [
        context.Process(target=work, args=(each, seconds, barrier, claims))
        for each in spec.worker_specs(storage, parent_run_id="")
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    before = cpu_seconds(server)
    taken = [duration for _ in workers for duration in claims.get()]
    database = cpu_seconds(server) - before
    for worker in workers:
        worker.join()
    return Carried(len(taken) / seconds, 1000 * statistics.median(taken), 1000 * database / len(taken))


def work(
    spec: WorkerSpec, seconds: float, barrier: Barrier, claims: "multiprocessing.Queue[list[float]]"
) -> None:
    """Run trials without a training for some seconds; put the durations of taking them into the queue."""
    silence_optuna()
    worker = Worker(spec)
    draw = random.Random(spec.index)
    run_trial(worker, draw)  # the first one imports the sampler and connects
    barrier.wait()
    durations = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        durations.append(run_trial(worker, draw))
    claims.put(durations)


def run_trial(worker: Worker, draw: random.Random) -> float:
    """Run a trial without a training; return the seconds that it took to claim it."""
    start = time.monotonic()
    claimed = worker.storage.retry_on_outage(worker.claim_trial)
    duration = time.monotonic() - start
    assert claimed is not None
    callbacks, lock, _ = claimed
    history: list[dict[str, float]] = []
    for epoch in range(1, EPOCHS + 1):
        history.append({"epoch": epoch, VALUE: draw.random()})
        if callbacks.prune(history):
            break
    callbacks.complete("", {"epochs": len(history), "train_seconds": 0.0, VALUE: draw.random()})
    lock.release()
    return duration


def cpu_seconds(server: Postgres) -> float:
    """Return the processor time of all processes of the server so far."""
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(stat.parent.name) == postmaster:
            total += sum(map(int, fields[11:15]))  # with those of its children that have ended
        elif int(fields[1]) == postmaster:
            total += sum(map(int, fields[11:13]))
    return total / TICKS

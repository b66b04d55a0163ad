"""The cost of tracking a training: the demo's recipe on the sample, logged to MLflow in SQLite.

The peer is the same training with the same seed, which appends its metrics to a list and writes no
checkpoint. The sample is the worst case: its epochs are a tenth of CIFAR-10's, and logging an epoch costs
the same.

The times of two equal trainings differ by a few percent even on a quiet machine, so a cost below 1 % cannot
be measured as their difference. It is instead the sum of two parts:

- the wall-clock time of the calls that the training waits for;
- the CPU time of the thread that sends the metrics. It counts in full, as if the training paused meanwhile:
  an upper bound, since there are other cores.

The cost is a fraction of the fastest training without tracking, so that a busy machine does not make it look
small. As a check that no part is missing, the table also has the CPU times of the whole trainings.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import mlflow
import torch

from benchmarks.harness import Row, progress
from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.split import divide
from cifar_mlflow.pipeline import finish
from cifar_mlflow.tracking.artifacts import log_data, log_start
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.training.checkpoint import CheckpointFile
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.initial import build_classifier
from cifar_mlflow.training.loop import Training


@dataclass(frozen=True)
class Cost:
    """Seconds of one training: its epochs (wall clock), `fit` (CPU time), and the parts of tracking."""

    epochs: float
    cpu: float
    metrics: float = 0
    checkpoints: float = 0
    start_and_end: float = 0


def measure(epochs: int = 3, rounds: int = 5, **settings: Any) -> list[Row]:
    """Return four rows; a round is one training without tracking and one with it.

    Args:
        settings: settings of the training.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = resolve_train_config(
            {"recipe": "demo", "epochs": epochs, "cache_dir": Path(folder), **settings}
        )
        dataset = load_dataset(config)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment(config.experiment, artifact_location=f"{folder}/artifacts")
        connect(config.experiment)
        train_untracked(config.model_copy(update={"epochs": 1}), dataset)  # the one-time setup
        pairs = []
        for number in range(rounds):
            pairs.append((train_untracked(config, dataset), train_tracked(config, dataset)))
            progress(f"  {number + 1}/{rounds}: {pairs[-1]}")

    def of_median(side: int, value: Callable[[Cost], float]) -> float:
        return median(value(pair[side]) for pair in pairs)

    seconds = min(untracked.epochs for untracked, _ in pairs)  # other load can only increase it
    metrics = of_median(1, lambda cost: cost.metrics)
    checkpoints = of_median(1, lambda cost: cost.checkpoints)
    cpu, cpu_tracked = (of_median(side, lambda cost: cost.cpu) for side in (0, 1))
    changes = [100 * (tracked.cpu / untracked.cpu - 1) for untracked, tracked in pairs]
    beside = f"{seconds / epochs:.2f} s per epoch (metrics to a list)"
    return [
        Row(
            what="logging the metrics of each epoch, fraction of training time",
            ours=f"{1000 * metrics / epochs:.1f} ms per epoch (MLflow, SQLite)",
            beside=beside,
            figure=100 * metrics / seconds,
            unit="%",
            at_most=1,
        ),
        Row(
            what="a checkpoint after each epoch, fraction of training time",
            ours=f"{1000 * checkpoints / epochs:.1f} ms per epoch",
            beside=beside,
            figure=100 * checkpoints / seconds,
            unit="%",
        ),
        Row(
            what=f"check: CPU time ({min(changes):+.1f} to {max(changes):+.1f} % in {rounds} pairs)",
            ours=f"{cpu_tracked:.1f} s (metrics and checkpoints)",
            beside=f"{cpu:.1f} s (neither)",
            figure=median(changes),
            unit="%",
        ),
        Row(
            what="once per run: settings, environment, data, figures, models",
            ours="MLflow, SQLite",
            beside="-",
            figure=of_median(1, lambda cost: cost.start_and_end),
            unit="s",
        ),
    ]


class MetricsInAList:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append(metrics)


def train_untracked(config: TrainConfig, dataset: ImageDataset) -> Cost:
    training = new_training(config, dataset)
    start = time.process_time()
    training.fit(MetricsInAList())
    return Cost(training.seconds, time.process_time() - start)


def train_tracked(config: TrainConfig, dataset: ImageDataset) -> Cost:
    """Do what `pipeline.train` does, and measure its parts."""
    train, val = divide(dataset, config)
    training = new_training(config, dataset)
    with tracked_run(kind="benchmark", name="tracked", cache_dir=config.cache_dir) as (run, directory):
        once = Clocked(run)
        log_start(cast(TrackedRun, once), config, dataset, val, training.hardware, training.world)
        log_data(cast(TrackedRun, once), config, dataset, train)

        metrics, checkpoint = Clocked(run), Clocked(directory.checkpoint)
        sender = next(thread for thread in threading.enumerate() if thread.name == "metric-queue")
        sent_before, start = cpu_seconds(sender), time.process_time()
        best = training.fit(cast(TrackedRun, metrics), cast(CheckpointFile, checkpoint))
        while run.missing_epochs(training.history):  # the last ones are still on their way
            time.sleep(0.01)
        cpu = time.process_time() - start
        sending = cpu_seconds(sender) - sent_before

        finish(cast(TrackedRun, once), config, dataset, val, training, best)
    return Cost(training.seconds, cpu, metrics.seconds + sending, checkpoint.seconds, once.seconds)


def new_training(config: TrainConfig, dataset: ImageDataset) -> Training:
    hardware = set_up_hardware(config, config.precision)
    train, val = divide(dataset, config)
    torch.manual_seed(config.seed)
    return Training(
        build_classifier(config, dataset, train, hardware), dataset.classes, train, val, config, hardware
    )


class Clocked:
    """A proxy for an object that adds up the duration of its method calls."""

    def __init__(self, target: object) -> None:
        self._target = target
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return value(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return clocked


def cpu_seconds(thread: threading.Thread) -> float:
    assert thread.ident is not None, "the thread has not been started"
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))

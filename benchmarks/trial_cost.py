"""What tracking and storage add to a trial of a search, beside the same training alone.

A trial's time is that in Optuna's storage, from its start to its result: settings chosen, run begun, metrics
by epoch, checkpoints, pictures, weights, result told. Alone is data in memory, network, epochs, and the
evaluation after each. It is the smallest network that a search tries by default, trained as its recipe says;
a larger one takes longer and adds no more. The two sides take turns.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Row, progress
from benchmarks.search import default_search, train_alone
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data import load_dataset
from tuning.storage import quiet


def measure(rounds: int = 3, epochs: int = 9, **settings: Any) -> list[Row]:
    """One row. `settings` are a training's, the same for both sides."""
    settings = {"dataset": "sample", "model": "cnn", "epochs": epochs, **settings}
    quiet()
    trials, alone = [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            given = {**settings, "cache_dir": folder}
            config = resolve_train_config({**given, "test": False})
            dataset = load_dataset(config)
            start = time.perf_counter()
            train_alone(config, dataset)
            alone.append(time.perf_counter() - start)
            (trial,) = default_search(given, epochs, Path(folder)).trials
            assert trial.duration is not None
            trials.append(trial.duration.total_seconds())
        progress(f"  {number + 1}/{rounds}: alone {alone[-1]:.2f} s, as a trial {trials[-1]:.2f} s")
    added = median(trials) - median(alone)
    return [
        Row(
            f"what a search adds to a trial of {epochs} epochs",
            f"{added:.1f} s (MLflow, Optuna in SQLite, pictures)",
            f"{median(alone):.0f} s (the same training of {settings['model']} alone)",
            100 * added / median(alone),
            "%",
            at_most=2,
        )
    ]

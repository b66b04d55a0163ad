"""The time that tracking and storage add to a trial of a search, compared with the same training alone.

A trial's duration is that in Optuna's storage, from its start to its result: choice of settings, start of
the run, metrics per epoch, checkpoints, weights, result. From it we subtract the epochs, and what the
training alone spends outside of its epochs: building the network and the final evaluation. Two trainings of
20 s differ by half a second by chance, so the epochs themselves are not compared; but both are printed,
since the plots of a trial are drawn while the next one trains, which may slow that down.

The smallest network of the default space has the largest share of constant costs, and a large one has large
checkpoints and weights. Both sides are the second training in their process, since the first also loads
kernels, and they alternate.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import mlflow
import torch
import yaml
from optuna.trial import FrozenTrial

from benchmarks.harness import Row, progress
from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.split import divide
from cifar_mlflow.evaluation.report import report_on
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.initial import build_classifier
from cifar_mlflow.training.loop import NoRecorder, Training
from tuning.config import SearchConfig
from tuning.optuna_output import silence_optuna
from tuning.study import tune

EPOCHS = SearchConfig().epochs  # of a trial that is not pruned
# A space needs a choice; this range is too narrow to change how long a trial takes.
SPACE = {"weight_decay": {"low": 0.0005, "high": 0.000501}, "replace": True}


def measure(rounds: int = 1, **settings: Any) -> list[Row]:
    """Return a row for the smallest network of a search and one for a larger one.

    `settings` are training settings.
    """
    silence_optuna()
    return [
        measure_one({"dataset": "sample", "model": network, "epochs": EPOCHS, **settings}, rounds)
        for network in ("cnn", "vgg16")
    ]


def measure_one(settings: dict[str, Any], rounds: int) -> Row:
    added: list[float] = []
    epochs: list[float] = []
    alone: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            given = {**settings, "cache_dir": folder}
            config = resolve_train_config({**given, "test": False})
            dataset = load_dataset(config)
            if not alone:
                train(config.model_copy(update={"epochs": 1}), dataset)
            seconds, around = train(config, dataset)
            trial = second_trial(given, Path(folder))
            assert trial.duration is not None
        alone.append(seconds)
        epochs.append(trial.user_attrs["seconds"])
        added.append(trial.duration.total_seconds() - epochs[-1] - around)
        progress(f"  epochs alone {seconds:.2f} s, of a trial {epochs[-1]:.2f} s, added {added[-1]:.2f} s")
    return Row(
        f"what a search adds to a trial of {config.model}, {config.epochs} epochs",
        f"{median(added):.2f} s (MLflow, Optuna, checkpoints), epochs {median(epochs):.1f} s",
        f"epochs {median(alone):.1f} s (the same training alone)",
        100 * median(added) / median(epochs),
        "%",
        at_most=2,
    )


def train(config: TrainConfig, dataset: ImageDataset) -> tuple[float, float]:
    """Return the seconds of a training's epochs, and of everything else in it."""
    start = time.perf_counter()
    hardware = set_up_hardware(config, config.precision)
    train_split, val = divide(dataset, config)
    torch.manual_seed(config.seed)
    classifier = build_classifier(config, dataset, train_split, hardware)
    training = Training(classifier, dataset.classes, train_split, val, config, hardware)
    best = training.fit(NoRecorder())
    report_on(best, val, dataset.classes, "val", device=hardware.device)
    return training.seconds, time.perf_counter() - start - training.seconds


def second_trial(given: dict[str, Any], folder: Path) -> FrozenTrial:
    """Run `cifar-mlflow tune` and return its second trial."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment(folder.name, artifact_location=f"{folder}/artifacts")
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    study, _ = tune(
        {
            **given,
            "storage": f"sqlite:///{folder}/optuna.db",
            "space": space,
            "trials": 2,
            "experiment": folder.name,
        }
    )
    return study.trials[1]

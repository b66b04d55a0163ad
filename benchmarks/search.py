"""The default search compared with random search without pruning, on the embedded sample.

Both search the same space with the same network, and train on the same images with the same threads. The
peer is the usual script: Optuna's random sampler, each trial trained to its end, nothing tracked. The
figure is the number of epochs after which our search has a trial as good as the peer's best one, as a share
of the peer's total epochs; mean over seeds. Only trials that trained all their epochs count, since the
model of a pruned one is of no use. Our search stops after a third of the peer's epochs; if it has not
reached the peer's best by then, the figure is infinite.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch
from optuna.trial import TrialState

from benchmarks.harness import Row, progress
from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.split import divide
from cifar_mlflow.pipeline import build_classifier
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.loop import Training
from tuning.optuna_output import silence_optuna
from tuning.space import Space
from tuning.study import tune

# Total epochs and best value after each trial that was trained to its end.
Curve = list[tuple[int, float]]


class NoTracking:
    """Discards metrics."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        pass


def measure(seeds: int = 3, trials: int = 20, epochs: int = 9, **settings: Any) -> list[Row]:
    """Return one row. `settings` are training settings, the same for both searches."""
    settings = {"dataset": "sample", "model": "cnn", "width": 0.5, "epochs": epochs, **settings}
    silence_optuna()
    shares = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            given = {**settings, "seed": seed, "cache_dir": folder}
            peer = random_search(given, trials)
            ours = curve_of(default_search(given, max(epochs, trials * epochs // 3), Path(folder)), epochs)
        budget, best = peer[-1]
        reached = next((spent for spent, value in ours if value >= best), math.inf)
        shares.append(reached / budget)
        for name, curve in (("random", peer), ("ours", ours)):
            line = ", ".join(f"{spent}: {value:.3f}" for spent, value in curve)
            progress(f"seed {seed}, {name}, best value by epochs trained: {line}")
    share = sum(shares) / seeds
    each = ", ".join(f"{value:.2f}" for value in shares)
    return [
        Row(
            f"epochs to random search's best, mean of {seeds} seeds ({each})",
            "default search (recipes first, TPE, ASHA)",
            f"random search, {trials} trials of {epochs} epochs, no pruning",
            share,
            "of its epochs",
            at_most=1 / 3,
        ),
    ]


def random_search(given: dict[str, Any], trials: int) -> Curve:
    """Run the usual script."""
    base = resolve_train_config(given)
    dataset = load_dataset(base)
    space = Space.default().fixed(
        {name: value for name, value in given.items() if name in ("model", "width")}
    )
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=given["seed"])
    )
    curve: Curve = []
    for number in range(1, trials + 1):
        trial = study.ask()
        config = resolve_train_config({**given, **space.suggest(trial), "test": False})
        try:
            study.tell(trial, train_alone(config, dataset))
        except Exception as error:  # continue the search, as ours does
            progress(f"  a trial failed: {error}")
            study.tell(trial, state=TrialState.FAIL)
            continue
        curve.append((number * config.epochs, study.best_value))
    return curve


def train_alone(config: TrainConfig, dataset: ImageDataset) -> float:
    """Train without tracking and return the validation accuracy."""
    hardware = set_up_hardware(config, config.precision)
    train, val = divide(dataset, config)
    torch.manual_seed(config.seed)
    training = Training(
        build_classifier(config, dataset, train), dataset.classes, train, val, config, hardware
    )
    training.fit(NoTracking())
    return training.history[-1]["val/accuracy"]


def default_search(given: dict[str, Any], budget: int, folder: Path) -> optuna.Study:
    """Run `cifar-mlflow tune`."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment(folder.name, artifact_location=f"{folder}/artifacts")
    storage = f"sqlite:///{folder}/optuna.db"
    return tune({**given, "storage": storage, "epochs_budget": budget, "experiment": folder.name})


def curve_of(study: optuna.Study, epochs: int) -> Curve:
    curve: Curve = []
    spent, best = 0, -math.inf
    for trial in study.trials:
        spent += trial.user_attrs["epochs"]
        if trial.state == TrialState.COMPLETE:
            best = max(best, trial.intermediate_values[epochs])
            curve.append((spent, best))
    return curve

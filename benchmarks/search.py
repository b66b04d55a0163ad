"""The default search beside Optuna's default and random search without pruning, on the embedded sample.

All search the same space with the same network, train on the same images with the same threads, and begin
with the same enqueued trials: the recipe, and the recipe with each other optimizer. So the searches are
compared, not the first guesses. The peers are usual scripts: nothing is tracked, and samplers and pruners
have Optuna's defaults.

- Optuna's default: TPE and the median pruner.
- Random search: each trial is trained to its end.

Each side may train the same number of epochs in total; a pruned trial costs the epochs that it trained.
Only trials that trained all their epochs count, since the model of a pruned one is of no use. The figures
are means over seeds: the epochs after which our search has a trial as good as the peer's best one, as a
fraction of the epochs that the peer trained (infinite if it never has), and the difference of the best
values at the end.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import mlflow
import optuna
import torch
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.harness import Row, progress
from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.split import divide
from cifar_mlflow.errors import CifarError
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.initial import build_classifier
from cifar_mlflow.training.loop import History, NoRecorder, Training
from tuning.optuna_output import silence_optuna
from tuning.study import tune
from tuning.study_spec import StudySpec, read_study_spec
from tuning.warm_start import first_trials

# Total epochs and best value after each trial that was trained to its end.
Curve = list[tuple[int, float]]
RANDOM, DEFAULT = "random search, no pruning", "Optuna's default, TPE and median pruner"
PEERS: dict[str, Callable[[int], dict[str, Any]]] = {
    DEFAULT: lambda seed: {"sampler": TPESampler(seed=seed), "pruner": MedianPruner()},
    RANDOM: lambda seed: {"sampler": RandomSampler(seed=seed), "pruner": NopPruner()},
}
# The target was set against random search.
AT_MOST = {RANDOM: 1 / 3}


def measure(seeds: int = 3, trials: int = 20, epochs: int = 9, **settings: Any) -> list[Row]:
    """Return two rows per peer.

    Args:
        trials: the budget of each side, in trials that are trained to their end.
        settings: training settings, the same for all.
    """
    settings = {"dataset": "sample", "model": "cnn", "width": 0.5, "epochs": epochs, **settings}
    silence_optuna()
    curves: dict[str, list[Curve]] = {name: [] for name in ("ours", *PEERS)}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            given = {**settings, "seed": seed, "cache_dir": folder}
            budget = trials * epochs
            spec = read_study_spec({**given, "epochs_budget": budget})
            for name, peer in PEERS.items():
                study = optuna.create_study(direction="maximize", **peer(seed))
                curves[name].append(checked(name, usual_search(spec, given, study, budget)))
            study = default_search(given, budget, Path(folder))
            curves["ours"].append(checked("our search", curve_of(study, epochs)))
        for name, of_seeds in curves.items():
            line = ", ".join(f"{spent}: {value:.3f}" for spent, value in of_seeds[-1])
            progress(f"seed {seed}, {name}, best value by epochs trained: {line}")
    return [row for name in PEERS for row in rows_of(name, curves["ours"], curves[name])]


def checked(side: str, curve: Curve) -> Curve:
    """Return the curve of a side.

    Raises:
        CifarError: none of its trials was trained to its end.
    """
    if not curve:
        raise CifarError(f"search: no trial was completed by {side}; there is nothing to compare")
    return curve


def rows_of(peer: str, ours: list[Curve], theirs: list[Curve]) -> list[Row]:
    shares = [
        next((spent for spent, value in mine if value >= curve[-1][1]), math.inf) / curve[-1][0]
        for mine, curve in zip(ours, theirs, strict=True)
    ]
    best, peer_best = ([curve[-1][1] for curve in side] for side in (ours, theirs))
    gains = [100 * (value - other) for value, other in zip(best, peer_best, strict=True)]
    return [
        Row(
            f"epochs to the best of {peer}, mean of {len(shares)} seeds ({listed(shares)})",
            "default search (TPE, ASHA)",
            f"{peer}, with the same enqueued trials",
            fmean(shares),
            "of its epochs",
            at_most=AT_MOST.get(peer),
        ),
        Row(
            f"check: best validation accuracy after the same number of epochs ({listed(gains)})",
            f"{fmean(best):.1%}",
            f"{fmean(peer_best):.1%} ({peer})",
            fmean(gains),
            "points more",
        ),
    ]


def listed(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def usual_search(spec: StudySpec, given: dict[str, Any], study: optuna.Study, budget: int) -> Curve:
    """Run the usual script until its trials have trained `budget` epochs."""
    dataset = load_dataset(spec.base)
    for first in first_trials(spec.space, spec.models, spec.fixed, (), spec.search.trials):
        study.enqueue_trial(first["params"])
    curve: Curve = []
    spent = 0
    while spent + spec.base.epochs <= budget:  # as in ours, no trial starts that would exceed it
        trial = study.ask()
        config = resolve_train_config({**given, **spec.space.suggest(trial), "test": False})
        try:
            history = train_alone(config, dataset, trial)
        except Exception as error:  # continue the search, as ours does
            progress(f"  a trial failed: {error}")
            study.tell(trial, state=TrialState.FAIL)
            spent += config.epochs
            continue
        spent += len(history)
        if len(history) < config.epochs:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, history[-1]["val/accuracy"])
            curve.append((spent, study.best_value))
    return curve


def train_alone(config: TrainConfig, dataset: ImageDataset, trial: optuna.Trial) -> History:
    """Train without tracking until the end or until the pruner stops it; return the metrics by epoch."""

    def prune(history: History) -> bool:
        if not history:
            return False
        trial.report(history[-1]["val/accuracy"], len(history))
        return len(history) < config.epochs and trial.should_prune()

    hardware = set_up_hardware(config, config.precision)
    train, val = divide(dataset, config)
    torch.manual_seed(config.seed)
    training = Training(
        build_classifier(config, dataset, train, hardware), dataset.classes, train, val, config, hardware
    )
    training.fit(NoRecorder(), prune=prune)
    return training.history


def default_search(given: dict[str, Any], budget: int, folder: Path) -> optuna.Study:
    """Run `cifar-mlflow tune`."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment(folder.name, artifact_location=f"{folder}/artifacts")
    storage = f"sqlite:///{folder}/optuna.db"
    study, _ = tune({**given, "storage": storage, "epochs_budget": budget, "experiment": folder.name})
    return study


def curve_of(study: optuna.Study, epochs: int) -> Curve:
    curve: Curve = []
    spent, best = 0, -math.inf
    for trial in study.trials:
        spent += trial.user_attrs["epochs"]
        if trial.state == TrialState.COMPLETE:
            best = max(best, trial.intermediate_values[epochs])
            curve.append((spent, best))
    return curve

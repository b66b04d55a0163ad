"""The end of a search: retrain its best settings on all training images and test them once."""

import logging
from functools import partial
from typing import Any

import mlflow
import optuna
from optuna.trial import FrozenTrial

from cifar_mlflow import pipeline
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.names import counted
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.retry import call_mlflow
from tuning.config import SearchConfig
from tuning.objective import resumable_config
from tuning.storage import Storage

logger = logging.getLogger("cifar_mlflow.tuning")


def retrainings(best: FrozenTrial, search: SearchConfig, common: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of the retrainings, by the name under which the study stores the run of each.

    Args:
        common: settings of this machine, which replace those of the trial.
    """
    settings = best.user_attrs["settings"]
    epochs = search.retrain_epochs or settings["epochs"]
    first_seed = int(settings.get("seed", 0))
    return {
        f"retrain-{best.number:03}-{epochs}-epochs-seed-{seed}": {
            **settings,
            **common,
            "epochs": epochs,
            "seed": seed,
            "val_size": 0,  # nothing is left to choose
            "patience": 0,
            "test": True,
        }
        for seed in range(first_seed, first_seed + search.retrain_seeds)
    }


class RetrainingCallbacks(pipeline.TrainingCallbacks):
    """The hooks of a retraining, whose run is nested in that of the study."""

    def __init__(self, study: optuna.Study, name: str, tags: dict[str, str], storage: Storage) -> None:
        self._study = study
        self._storage = storage
        self._name = name
        self.study = study.study_name
        self.tags = {**tags, "retrained": name}

    def on_start(self, run_id: str) -> None:
        self._storage.link_command(run_id)
        self._storage.retry_on_outage(lambda: self._study.set_user_attr(self._name, run_id))


def retrain(
    study: optuna.Study, trainings: dict[str, dict[str, Any]], tags: dict[str, str], storage: Storage
) -> None:
    """Run the retrainings that are not finished, an interrupted one from its checkpoint."""
    client = mlflow.MlflowClient()
    for name, settings in trainings.items():
        config = resolve_train_config({**settings, "run_name": name})
        run_id = study.user_attrs.get(name)
        if run_id and call_mlflow(partial(client.get_run, run_id)).info.status == "FINISHED":
            continue
        logger.info("%s: %s on all training images", name, counted(config.epochs, "epoch"))
        if run_id and RunDirectory.of(config.cache_dir, run_id).checkpoint.path.exists():
            config = resumable_config(run_id, {"cache_dir": config.cache_dir}, study.study_name)
        else:
            run_id = None
        pipeline.train(config, run_id, RetrainingCallbacks(study, name, tags, storage))


def retrained_runs(study: optuna.Study, names: list[str]) -> list[str]:
    """Return the ids of the runs of these retrainings, as far as they have started."""
    return [study.user_attrs[name] for name in names if name in study.user_attrs]

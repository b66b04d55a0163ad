"""The settings of a search. Its trials have the settings of a training."""

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.settings import Settings, setting
from cifar_mlflow.verb_config import RegisterConfig

SamplerName = Literal["tpe", "random", "cmaes", "gp", "grid", "qmc"]
PrunerName = Literal["auto", "asha", "hyperband", "median", "none"]

DEFAULT_TRIALS = 20
# The settings of the default space, for the help: `tuning.space` takes long to import.
SEARCHED = (
    "model",
    "width",
    "dropout",
    "crop_padding",
    "flip",
    "cutout",
    "brightness",
    "contrast",
    "batch_size",
    "optimizer",
    "lr",
    "aux_lr",
    "bias_lr",
    "momentum",
    "weight_decay",
    "label_smoothing",
)


class SearchConfig(Settings):
    """Search: what to try, and for how long."""

    study: str | None = setting(
        None,
        "Name of the study; an existing study of this name is continued. Default: name of the data set.",
        min_length=1,
        max_length=200,
    )
    storage: str = setting(
        "sqlite:///optuna.db",
        "Optuna's database, an SQLAlchemy URL; for several machines postgresql+psycopg://user@host/db.",
    )
    trials: int | None = setting(
        None,
        f"Total number of trials in the study. Default: {DEFAULT_TRIALS}, unless another budget is given.",
        ge=1,
    )
    timeout: float | None = setting(
        None, "Seconds after which no new trial starts; running trials are finished.", gt=0
    )
    epochs_budget: int | None = setting(
        None, "Maximum number of epochs that all trials of the study train together.", ge=1
    )
    epochs: int = setting(9, "Epochs of a trial that is not pruned.", ge=1, le=10_000)
    space: Path | None = setting(
        None, "YAML file that narrows or replaces the search space; see docs/search.md."
    )
    sampler: SamplerName = setting(
        "tpe", "How hyperparameters are chosen: TPE (multivariate, grouped), random, CMA-ES, GP, grid or QMC."
    )
    pruner: PrunerName = setting(
        "auto", "How bad trials are stopped early; auto means asha, or none with two objectives."
    )
    second_objective: Literal["none", "latency", "parameters"] = setting(
        "none",
        "Objective to minimize besides validation accuracy: latency of one image in milliseconds, "
        "or number of parameters.",
    )
    workers: int = setting(
        1, "Processes that train at the same time and share the CPU threads.", ge=1, le=256
    )
    enqueue: tuple[str, ...] = setting(
        (), "IDs of runs whose hyperparameters are tried right after the recipes (comma-separated)."
    )
    warm_start: str | None = setting(
        None, "Experiment whose finished runs on the same data and split count as completed trials."
    )
    retrain_best: bool = setting(
        False, "At the end, retrain the best trial on all training images and test it once."
    )
    retrain_seeds: int = setting(1, "Number of retrainings, each with its own seed.", ge=1, le=100)
    retrain_epochs: int = setting(0, "Epochs of a retraining; 0 means those of a trial.", ge=0, le=10_000)

    @field_validator("enqueue", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return [run_id.strip() for run_id in value.split(",")] if isinstance(value, str) else value


class TuneConfig(SearchConfig, TrainConfig):
    """All settings of a search: a training setting that is given is the same in all trials."""


class TuneAndPromoteConfig(TuneConfig, RegisterConfig):
    """All settings that `tune` takes."""

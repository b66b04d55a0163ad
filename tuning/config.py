"""The settings of a search. What is trained in it has the settings of a training, as everywhere."""

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from cifar_mlflow.config import RegisterConfig, Settings, TrainConfig, setting

SamplerName = Literal["tpe", "random", "cmaes", "gp", "grid", "qmc"]
PrunerName = Literal["auto", "asha", "hyperband", "median", "none"]

DEFAULT_TRIALS = 20


class SearchConfig(Settings):
    """Search: what is tried, and for how long."""

    study: str | None = setting(
        None,
        "Name of the study; the same name goes on with it. Default: the name of the data set.",
        min_length=1,
        max_length=200,
    )
    storage: str = setting(
        "sqlite:///optuna.db",
        "Where Optuna keeps the study: an SQLAlchemy URL; for several machines postgresql+psycopg://user@host/db.",
    )
    trials: int | None = setting(
        None, f"Trials of the study in all. Default: {DEFAULT_TRIALS}, unless another budget is given.", ge=1
    )
    timeout: float | None = setting(
        None, "Seconds after which no new trial begins; those that run are finished.", gt=0
    )
    epochs_budget: int | None = setting(
        None, "Epochs that all trials of the study together may train; never exceeded.", ge=1
    )
    epochs: int = setting(9, "Epochs of a trial that is not pruned.", ge=1, le=10_000)
    space: Path | None = setting(
        None, "YAML file that narrows or replaces what is searched; see docs/search.md."
    )
    sampler: SamplerName = setting(
        "tpe", "Who chooses hyperparameters: TPE (multivariate, grouped), random, CMA-ES, GP, grid, or QMC."
    )
    pruner: PrunerName = setting(
        "auto", "Who ends bad trials early; auto is asha, or none where there are two objectives."
    )
    second_objective: Literal["none", "latency", "parameters"] = setting(
        "none", "Beside validation accuracy: milliseconds for one image, or the number of parameters."
    )
    workers: int = setting(1, "Processes that train at once; they share the CPU threads.", ge=1, le=256)
    enqueue: tuple[str, ...] = setting(
        (), "Ids of runs whose hyperparameters are tried first, after the recipes' own (comma-separated)."
    )
    warm_start: str | None = setting(
        None, "Experiment whose finished runs on the same data and split count as trials already made."
    )
    retrain_best: bool = setting(
        False, "At the end, train the best trial again on all training images, and test that once."
    )
    retrain_seeds: int = setting(1, "How many times, each with its own seed.", ge=1, le=100)
    retrain_epochs: int = setting(0, "Epochs of that; 0 takes those of a trial.", ge=0, le=10_000)

    @field_validator("enqueue", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return [run_id.strip() for run_id in value.split(",")] if isinstance(value, str) else value


class TuneConfig(SearchConfig, TrainConfig):
    """All settings that `tune` takes: a setting of the training that is given is the same in all trials."""


class TuneAndPromoteConfig(TuneConfig, RegisterConfig):
    """All settings that `tune` takes."""

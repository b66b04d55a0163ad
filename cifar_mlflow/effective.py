"""The settings that make a difference in a training: the params of its run, and the changes in its name."""

from pathlib import Path
from typing import Any

from cifar_mlflow.config import (
    MODELS_WITH_DROPOUT,
    MODELS_WITH_WIDTH,
    PlacesConfig,
    TrackingConfig,
    TrainConfig,
)
from cifar_mlflow.recipes import RECIPES, recipe_for_model

# Settings that do not change the result of a training: where and under which name it runs, and its test.
NEUTRAL = (*PlacesConfig.model_fields, *TrackingConfig.model_fields, "device", "threads", "test", "tta")
LONGEST_NAME = 60
LONGEST_DATA = 24
LONGEST_VALUE = 16


def without_effect(config: TrainConfig) -> set[str]:
    """Return the names of the settings that change nothing in this training, whatever their value."""
    cases = {
        "mirrors": config.dataset != "cifar10" or config.data_dir is not None,
        "data_dir": config.dataset == "sample",
        "image_size": config.dataset != "folder",
        "skip_unreadable": config.dataset != "folder",
        "split_seed": config.val_size == 0,
        "patience": config.val_size == 0,
        "width": config.model not in MODELS_WITH_WIDTH,
        "dropout": config.model not in MODELS_WITH_DROPOUT,
        "head_first": not config.weights,
        "freeze": not config.weights,
        "aux_lr": config.optimizer != "muon",
        "bias_lr": config.optimizer != "muon",
        "tta": not config.test,
    }
    return {"cache_dir", *TrackingConfig.model_fields} | {name for name, idle in cases.items() if idle}


def effective_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that have an effect in this training, as JSON values."""
    values = config.model_dump(mode="json", exclude=without_effect(config))
    return {name: value for name, value in values.items() if value is not None}


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings, besides `NEUTRAL` ones, in which a training differs from its recipe."""
    recipe = RECIPES[config.recipe or recipe_for_model(config.model)]
    usual = {**TrainConfig().model_dump(mode="json"), **recipe, "model": config.model}
    return {
        name: value
        for name, value in config.model_dump(mode="json", exclude=without_effect(config)).items()
        if name not in NEUTRAL and name != "recipe" and value != usual[name]
    }


def default_run_name(config: TrainConfig, data_name: str) -> str:
    """Return model, what was changed from its recipe, and data set: `cnn epochs=3 lr=0.02 on photos`.

    MLflow's tables cut long names at the end. All runs of an experiment have the same data, so their name is
    the first to be cut.
    """
    data = data_name if len(data_name) <= LONGEST_DATA else f"{data_name[: LONGEST_DATA - 1]}…"
    data = f" on {data}"
    return changes_in_words(config, LONGEST_NAME - len(data)) + data


def changes_in_words(config: TrainConfig, longest: int = LONGEST_NAME) -> str:
    """Return model and what was changed from its recipe, as far as it fits: `cnn lr=0.02 and 2 more`."""
    changes = {name: value for name, value in changed_settings(config).items() if name != "dataset"}
    if config.recipe not in (None, recipe_for_model(config.model)):
        changes = {"recipe": config.recipe, **changes}
    name, left = str(config.model), len(changes)
    for setting, value in changes.items():
        part = f" {setting}={_short(value)}"
        if len(name + part) > longest:
            return f"{name} and {left} more"
        name, left = name + part, left - 1
    return name


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return Path(str(value)).name[:LONGEST_VALUE]  # a path, as of weights, by its last part

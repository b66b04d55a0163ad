"""What a study can learn before its first trial: from the recipes, and from runs that MLflow has already."""

import logging
from typing import Any

import mlflow
import optuna
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState

from cifar_mlflow.config import PlacesConfig, TrainConfig, resolve_train_config, validate
from cifar_mlflow.errors import UsageError
from cifar_mlflow.tracking.retry import first_line
from tuning.space import Space

logger = logging.getLogger("cifar_mlflow.tuning")

EARLIER = "earlier run"
# Settings that say where and under which name a training runs; its result does not depend on them.
PLACES = (*PlacesConfig.model_fields, "device", "threads", "experiment", "run_name", "test", "tta")


def first_tries(
    space: Space, models: list[str], fixed: dict[str, Any], enqueued: tuple[str, ...], trials: int | None
) -> list[dict[str, Any]]:
    """Parameters to try before the sampler is asked: the recipe of each model, then the runs asked for, then
    the recipes with each other optimizer.

    No other setting decides as much, and none takes as many of its own: chance alone finds a good rate for
    the right optimizer late. Of `trials` in all, half are the sampler's to choose.

    Raises:
        UsageError: a run is not there, or lies outside of the space.
    """
    tries, others = [], []
    for model in models:
        settings = resolve_train_config({**fixed, "model": model}).model_dump(mode="json")
        params = space.params_of(settings)
        if params is None:
            logger.info("The recipe of %s is not tried first: it lies outside of the space", model)
        else:
            tries.append({"params": params, "origin": f"recipe of {model}"})
        for other in space.others(settings, "optimizer"):
            if params := space.params_of(other):
                others.append({"params": params, "origin": f"recipe of {model} with {other['optimizer']}"})
    for run_id in enqueued:
        settings = settings_of(_run(run_id)).model_dump(mode="json")
        params = space.params_of(settings)
        misfit = space.misfit(settings) or other_settings(space, settings, fixed)
        if params is None or misfit:
            raise UsageError(f"enqueue: run {run_id} lies outside of the space: {misfit}")
        tries.append({"params": params, "origin": f"run {run_id}"})
    return tries + (others if trials is None else others[: max(trials // 2 - len(tries), 0)])


def experiment_id(name: str) -> str:
    """The experiment whose runs are to count as trials.

    Raises:
        UsageError: there is no such experiment.
    """
    found = mlflow.MlflowClient().get_experiment_by_name(name)
    if found is None:
        raise UsageError(f"warm_start: there is no experiment {name!r} in {mlflow.get_tracking_uri()}")
    identifier: str = found.experiment_id
    return identifier


def earlier_trials(
    experiment: str,
    space: Space,
    fixed: dict[str, Any],
    digest: str,
    study: optuna.Study,
) -> list[FrozenTrial]:
    """Finished trainings of an experiment as completed trials of the study, without those it has already.

    Args:
        experiment: its id.
    """
    client = mlflow.MlflowClient()
    known = {trial.user_attrs.get("run_id") for trial in study.get_trials(deepcopy=False)}
    query = f"attributes.status = 'FINISHED' and tags.kind = 'train' and tags.`dataset.digest` = '{digest}'"
    trials, left_out = [], 0
    for run in _all_runs(client, experiment, query):
        if run.info.run_id in known:
            continue
        trial = _as_trial(run, space, fixed, study.user_attrs["objectives"])
        if trial is None:
            left_out += 1
        else:
            trials.append(trial)
    logger.info(
        "Warm start: %d earlier runs on the same data; %d left out (another split, pruned, without a value, "
        "or with settings that are not searched)",
        len(trials),
        left_out,
    )
    return trials


def settings_of(run: Run) -> TrainConfig:
    """The settings of a training, from the params of its run."""
    values = {
        name: value
        for name, value in run.data.params.items()
        if name in TrainConfig.model_fields and name not in PLACES and value != "None"
    }
    return validate(TrainConfig, values)


def other_settings(space: Space, settings: dict[str, Any], fixed: dict[str, Any]) -> str | None:
    """What a training has that is not searched, and that a trial of its model would have otherwise."""
    usual = resolve_train_config({**fixed, "model": settings["model"]}).model_dump(mode="json")
    free = {*space.settings, *PLACES, "epochs", "seed", "recipe", "patience"}
    differing = [name for name in settings if name not in free and settings[name] != usual[name]]
    named = ", ".join(f"{name} is {settings[name]} and would be {usual[name]}" for name in differing)
    return named or None


def given_settings(config: TrainConfig) -> dict[str, Any]:
    """What has to be given beside the model for a training to have these settings."""
    names = {"model": config.model, **({"recipe": config.recipe} if config.recipe else {})}
    usual = resolve_train_config(names).model_dump(mode="json")
    differing = {
        name: value
        for name, value in config.model_dump(mode="json").items()
        if name not in PLACES and value != usual[name]
    }
    return {**names, **differing}


def _as_trial(run: Run, space: Space, fixed: dict[str, Any], objectives: list[str]) -> FrozenTrial | None:
    try:
        config = settings_of(run)
        settings = config.model_dump(mode="json")
        same = other_settings(space, settings, fixed) is None
    except UsageError:  # of a version with other settings, or of a model that what is given does not fit
        return None
    complete = run.data.tags.get("optuna.state", "COMPLETE") == "COMPLETE" and all(
        name in run.data.metrics for name in objectives
    )
    params = space.params_of(settings)
    if not (same and complete) or params is None:
        return None
    distributions = space.distributions
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        params=params,
        distributions={name: distributions[name] for name in params},
        values=[run.data.metrics[name] for name in objectives],
        user_attrs={
            "origin": EARLIER,
            "run_id": run.info.run_id,
            "settings": given_settings(config),
            "epochs": config.epochs,
            "seconds": run.data.metrics.get("train_seconds", 0.0),
        },
    )


def _run(run_id: str) -> Run:
    try:
        return mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise UsageError(f"enqueue: {first_line(error)}") from error


def _all_runs(client: mlflow.MlflowClient, experiment_id: str, query: str) -> list[Run]:
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], query, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs

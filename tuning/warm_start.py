"""Prior knowledge of a study: the recipes, enqueued runs, and finished runs in MLflow."""

import logging
from functools import partial
from typing import Any

import mlflow
import optuna
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.effective import NEUTRAL, changed_settings, without_effect
from cifar_mlflow.errors import UsageError
from cifar_mlflow.names import counted
from cifar_mlflow.settings import validate
from cifar_mlflow.tracking.retry import call_mlflow
from tuning.space import Space

logger = logging.getLogger("cifar_mlflow.tuning")

# Origin of a trial that stands for a run from before the study.
PRIOR_RUN = "earlier run"


def first_trials(
    space: Space, models: list[str], fixed: dict[str, Any], enqueued: tuple[str, ...], trials: int | None
) -> list[dict[str, Any]]:
    """Return `params` and `origin` of the trials that come before the sampler's.

    These are the recipe of each model, the enqueued runs, and the recipes with each other optimizer: no other
    setting matters as much, and random sampling takes long to find a good learning rate for an optimizer.
    The last group is cut so that at least half of `trials` is left to the sampler.

    Raises:
        UsageError: an enqueued run does not exist or lies outside of the space.
        CifarError: MLflow does not answer.
    """
    first, others = [], []
    for model in models:
        settings = resolve_train_config({**fixed, "model": model}).model_dump(mode="json")
        params = space.params_of(settings)
        if params is None:
            logger.info("Skipping the recipe of %s: it lies outside of the space", model)
        else:
            first.append({"params": params, "origin": f"recipe of {model}"})
        for other in space.others(settings, "optimizer"):
            if params := space.params_of(other):
                others.append({"params": params, "origin": f"recipe of {model} with {other['optimizer']}"})
    for run_id in enqueued:
        settings = settings_of(_run(run_id)).model_dump(mode="json")
        params = space.params_of(settings)
        misfit = space.misfit(settings) or differing_settings(space, settings, fixed)
        if params is None or misfit:
            raise UsageError(f"--enqueue: run {run_id} lies outside of the space: {misfit}")
        first.append({"params": params, "origin": f"run {run_id}"})
    return first + (others if trials is None else others[: max(trials // 2 - len(first), 0)])


def experiment_id(name: str) -> str:
    """Return the id of the experiment for a warm start.

    Raises:
        UsageError: there is no such experiment.
        CifarError: MLflow does not answer.
    """
    found = call_mlflow(lambda: mlflow.MlflowClient().get_experiment_by_name(name))
    if found is None:
        raise UsageError(f"--warm-start: there is no experiment {name!r} in {mlflow.get_tracking_uri()}")
    identifier: str = found.experiment_id
    return identifier


def prior_trials(
    experiment: str,
    space: Space,
    fixed: dict[str, Any],
    digest: str,
    study: optuna.Study,
) -> list[FrozenTrial]:
    """Return the finished trainings of an experiment as completed trials that the study does not have yet.

    Args:
        experiment: its id.
        digest: of the data set; runs on other data are ignored.

    Raises:
        CifarError: MLflow does not answer.
    """
    client = mlflow.MlflowClient()
    known = {trial.user_attrs.get("run_id") for trial in study.get_trials(deepcopy=False)}
    query = f"attributes.status = 'FINISHED' and tags.kind = 'train' and tags.`dataset.digest` = '{digest}'"
    trials, skipped = [], 0
    for run in _all_runs(client, experiment, query):
        if run.info.run_id in known:
            continue
        trial = _as_trial(run, space, fixed, study.user_attrs["objectives"])
        if trial is None:
            skipped += 1
        else:
            trials.append(trial)
    logger.info(
        "Warm start: %s on the same data; skipped %d (other split, pruned, without a value, or "
        "with other settings outside of the space)",
        counted(len(trials), "finished run"),
        skipped,
    )
    return trials


def settings_of(run: Run) -> TrainConfig:
    """Return the settings of a training from the params of its run."""
    values = {
        name: value
        for name, value in run.data.params.items()
        if name in TrainConfig.model_fields and name not in NEUTRAL and value != "None"
    }
    return validate(TrainConfig, values)


def differing_settings(space: Space, settings: dict[str, Any], fixed: dict[str, Any]) -> str | None:
    """Describe how a training differs from a trial of its model in settings that are not searched.

    Returns:
        None if there is no difference.
    """
    usual = resolve_train_config({**fixed, "model": settings["model"]}).model_dump(mode="json")
    idle = without_effect(validate(TrainConfig, settings))  # not among the params of its run
    free = {*space.settings, *NEUTRAL, *idle, "epochs", "seed", "recipe", "patience"}
    differing = [name for name in settings if name not in free and settings[name] != usual[name]]
    named = ", ".join(f"{name} is {settings[name]} instead of {usual[name]}" for name in differing)
    return named or None


def given_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings to give, besides the model's recipe, to repeat a training."""
    names = {"model": config.model, **({"recipe": config.recipe} if config.recipe else {})}
    return {**names, **changed_settings(config)}


def _as_trial(run: Run, space: Space, fixed: dict[str, Any], objectives: list[str]) -> FrozenTrial | None:
    try:
        config = settings_of(run)
        settings = config.model_dump(mode="json")
        comparable = differing_settings(space, settings, fixed) is None
    except UsageError:  # settings of another version, or a model that does not allow the given settings
        return None
    complete = run.data.tags.get("optuna.state", "COMPLETE") == "COMPLETE" and all(
        name in run.data.metrics for name in objectives
    )
    params = space.params_of(settings)
    if not (comparable and complete) or params is None:
        return None
    distributions = space.distributions
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        params=params,
        distributions={name: distributions[name] for name in params},
        values=[run.data.metrics[name] for name in objectives],
        user_attrs={
            "origin": PRIOR_RUN,
            "run_id": run.info.run_id,
            "settings": given_settings(config),
            "epochs": config.epochs,
            "seconds": run.data.metrics.get("train_seconds", 0.0),
        },
    )


def _run(run_id: str) -> Run:
    missing = f"--enqueue: there is no run {run_id} in {mlflow.get_tracking_uri()}"
    return call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id), missing)


def _all_runs(client: mlflow.MlflowClient, experiment_id: str, query: str) -> list[Run]:
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = call_mlflow(partial(client.search_runs, [experiment_id], query, page_token=token))
        runs += page
        token = page.token
        if not token:
            return runs

"""Create or load a study, after checking the request."""

from typing import Any

import mlflow
import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.data import ImageDataset
from cifar_mlflow.errors import UsageError
from cifar_mlflow.files import atomic_write
from cifar_mlflow.tracking.local_state import STUDY_COMMAND, RunDirectory
from cifar_mlflow.tracking.retry import call_mlflow
from tuning.samplers import build_pruner, build_sampler
from tuning.storage import Storage
from tuning.study_spec import StudySpec
from tuning.warm_start import experiment_id, first_trials, prior_trials

MAX_VALUE_LENGTH = 60  # of a value in the message that compares settings


def create_study(spec: StudySpec, storage: Storage, dataset: ImageDataset) -> optuna.Study:
    """Create the study, or load it as it was left, and store which trials come first.

    Raises:
        UsageError: a study of this name has other settings, or an enqueued run or the experiment of the warm
            start does not exist. Nothing is created then.
        CifarError: the storage or MLflow does not answer.
    """
    search = spec.search
    # A grid includes the recipes' values itself, and would not know that they were tried.
    models = [] if search.sampler == "grid" else spec.models
    first = first_trials(spec.space, models, spec.fixed, search.enqueue, search.trials)
    prior = experiment_id(search.warm_start) if search.warm_start else None
    identity = spec.identity(dataset.digest)
    database = storage.open()

    def create() -> optuna.Study:
        with storage.exclusive():
            drop_conflicting_empty_study(spec, identity, database)
            directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(spec.objectives)]
            study = optuna.create_study(
                study_name=spec.name,
                storage=database,
                directions=directions,
                load_if_exists=True,
                sampler=build_sampler(search, spec.space, 0),
                pruner=build_pruner(search),
            )
            if "identity" not in study.user_attrs:
                study.set_user_attr("objectives", spec.objectives)
                study.set_user_attr("first_tries", [])
                study.set_user_attr("identity", identity)
            _add_first_trials(study, first)
            if prior:
                study.add_trials(prior_trials(prior, spec.space, spec.fixed, dataset.digest, study))
            return study

    study = storage.retry_on_outage(create)
    for name, text in (("space.yaml", spec.space_yaml), (STUDY_COMMAND, spec.command)):
        with atomic_write(storage.folder / name) as file:
            file.write_text(text)
    return study


def _add_first_trials(study: optuna.Study, first: list[dict[str, Any]]) -> None:
    stored = study.user_attrs["first_tries"]
    known = [trial["params"] for trial in stored]
    for trial in first:
        if trial["params"] not in known:
            stored.append(trial)
            known.append(trial["params"])
    study.set_user_attr("first_tries", stored)


def drop_conflicting_empty_study(spec: StudySpec, identity: dict[str, Any], database: BaseStorage) -> None:
    """Delete a study of the same name with other settings if it has no trials and no search runs on it.

    Raises:
        UsageError: it has trials, or a search that runs is about to add some.
    """
    try:
        previous = optuna.load_study(study_name=spec.name, storage=database)
    except KeyError:
        return
    settings = previous.user_attrs.get("identity", {})
    differing = [name for name in sorted({*settings, *identity}) if settings.get(name) != identity.get(name)]
    if not differing:
        return
    run_id = previous.user_attrs.get("parent_run_id")
    if not previous.get_trials(deepcopy=False) and not (run_id and is_alive(run_id, spec.base)):
        optuna.delete_study(study_name=spec.name, storage=database)
    elif not settings:
        raise UsageError(
            f"--study: {spec.name} in this storage was not created by cifar_mlflow; choose another --study"
        )
    else:
        changes = "; ".join(_difference(name, settings.get(name), identity.get(name)) for name in differing)
        raise UsageError(
            f"study {spec.name} has other settings ({changes}), so its trials could not be compared. "
            "Choose another --study, or give the settings of this one"
        )


def _difference(name: str, was: Any, now: Any) -> str:
    if name == "space":  # too long to print
        settings = [setting for setting in {**was, **now} if was.get(setting) != now.get(setting)]
        return f"the space differs in {', '.join(settings)}"
    return f"{name} was {_short(was)}, is now {_short(now)}"


def _short(value: Any) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 1]}…"


def is_alive(run_id: str, base: TrainConfig) -> bool:
    """Return whether another process works on the run of a study.

    Raises:
        UsageError: the tracking store does not have the run.
        CifarError: MLflow does not answer.
    """
    missing = (
        f"the MLflow run of this study, {run_id}, was not found in {mlflow.get_tracking_uri()}. Set "
        "MLFLOW_TRACKING_URI to the store that has it, or choose another --study"
    )
    run = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id), missing)
    directory = RunDirectory.of(base.cache_dir, run_id)
    return directory.is_alive() if directory.path.exists() else run.info.status == "RUNNING"

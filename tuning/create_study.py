"""How a study begins: what is wrong with it is said before its storage has it, and it goes on as it began."""

from typing import Any

import mlflow
import optuna
from mlflow.exceptions import MlflowException
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.data import ImageDataset
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.tracking.local_state import STUDY_COMMAND, RunDirectory
from cifar_mlflow.tracking.retry import first_line
from tuning.samplers import build_pruner, build_sampler
from tuning.storage import Storage
from tuning.study_spec import Plan
from tuning.warm_start import earlier_trials, experiment_id, first_tries

LONGEST_VALUE = 60  # of those that a message compares


def prepare(plan: Plan, storage: Storage, dataset: ImageDataset) -> optuna.Study:
    """The study in its storage, new or as it was left, with what is to be tried first.

    Raises:
        UsageError: there is a study of this name that searches something else; or what the search is to
            begin with is not there, and then nothing is made.
    """
    search = plan.search
    # A grid comes to the recipes' values by itself, and would not know that they were tried.
    models = [] if search.sampler == "grid" else plan.models
    firsts = first_tries(plan.space, models, plan.fixed, search.enqueue, search.trials)
    past = experiment_id(search.warm_start) if search.warm_start else None
    identity = plan.identity(dataset.digest)
    database = storage.open()
    with storage.turn():
        make_way(plan, identity, database)
        directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(plan.objectives)]
        study = optuna.create_study(
            study_name=plan.name,
            storage=database,
            directions=directions,
            load_if_exists=True,
            sampler=build_sampler(search, plan.space, 0),
            pruner=build_pruner(search),
        )
        if "identity" not in study.user_attrs:
            study.set_user_attr("objectives", plan.objectives)
            study.set_user_attr("first_tries", [])
            study.set_user_attr("identity", identity)
        tries = study.user_attrs["first_tries"]
        known = [first["params"] for first in tries]
        for first in firsts:
            if first["params"] not in known:
                tries.append(first)
                known.append(first["params"])
        study.set_user_attr("first_tries", tries)
        if past:
            study.add_trials(earlier_trials(past, plan.space, plan.fixed, dataset.digest, study))
    storage.folder.joinpath("space.yaml").write_text(plan.space_yaml)
    storage.folder.joinpath(STUDY_COMMAND).write_text(plan.command)
    return study


def make_way(plan: Plan, identity: dict[str, Any], database: BaseStorage) -> None:
    """Delete a study of the same name and other settings if there is nothing to compare with: no trial.

    Raises:
        UsageError: there is, or soon will be.
    """
    try:
        former = optuna.load_study(study_name=plan.name, storage=database)
    except KeyError:
        return
    settings = former.user_attrs.get("identity", {})
    differing = [name for name in sorted({*settings, *identity}) if settings.get(name) != identity.get(name)]
    if not differing:
        return
    run_id = former.user_attrs.get("parent_run_id")
    if not former.get_trials(deepcopy=False) and not (run_id and is_alive(run_id, plan.base)):
        optuna.delete_study(study_name=plan.name, storage=database)
    elif not settings:
        raise UsageError(
            f"study: {plan.name} in this storage was not made by cifar_mlflow; choose another --study"
        )
    else:
        what = "; ".join(_difference(name, settings.get(name), identity.get(name)) for name in differing)
        raise UsageError(
            f"study {plan.name} was begun with other settings ({what}): its trials could not be "
            "compared. Choose another --study, or give those settings"
        )


def _difference(name: str, was: Any, now: Any) -> str:
    if name == "space":  # too much to be shown
        settings = [each for each in {**was, **now} if was.get(each) != now.get(each)]
        return f"the space differs in {', '.join(settings)}"
    return f"{name} was {_short(was)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def is_alive(run_id: str, base: TrainConfig) -> bool:
    """Whether another process is at work on the run of a study."""
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise CifarError(
            f"the run {run_id} of this study cannot be had from {mlflow.get_tracking_uri()} "
            f"({first_line(error)}): its trials are tracked elsewhere. Set MLFLOW_TRACKING_URI, or choose "
            "another --study"
        ) from error
    directory = RunDirectory.of(base.cache_dir, run_id)
    if directory.path.exists():
        if not directory.try_acquire():
            return True
        directory.release()
        return False
    return run.info.status == "RUNNING"

"""A search from top to bottom: one MLflow run for the study, and workers that train its trials."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import mlflow
import optuna
import pandas as pd
import sqlalchemy
import torch
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.errors import CifarError
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.pipeline import divide
from cifar_mlflow.tracking.artifacts import log_data
from cifar_mlflow.tracking.lifecycle import close_stale_runs, tracked_run
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.training.device import set_up_hardware
from tuning.create_study import is_alive, prepare
from tuning.report import best_trials, log_study
from tuning.retrain import retrained_runs, retrainings
from tuning.storage import HEARTBEAT_SECONDS, Storage, cause, quiet, retry_on_outage, safe
from tuning.study_spec import Plan, read_plan
from tuning.trial_plots import TrialPictures
from tuning.warm_start import EARLIER, PLACES
from tuning.worker import Orders, own_trials
from tuning.workers import work_together

logger = logging.getLogger("cifar_mlflow.tuning")


def tune(given: dict[str, Any]) -> optuna.Study:
    """Search hyperparameters as one MLflow run with a nested run for each trial; goes on where it was.

    Args:
        given: settings of `TuneConfig`, those of the training being the same for all trials.

    Raises:
        CifarError: the request is wrong, or something outside of the trials failed; what was done is kept.
        Interrupted: a signal came; each trial is saved, and the same command goes on.
    """
    quiet()
    plan = read_plan(given)
    search, base = plan.search, plan.base
    dataset = load_dataset(base)
    dataset.split("train")  # decoded once, not by each worker
    connect(base.experiment)
    close_stale_runs(base.cache_dir)
    storage = Storage(search.storage, plan.name, base.cache_dir)
    study = prepare(plan, storage, dataset)
    finished = len(own_trials(study.get_trials(deepcopy=False, states=FINISHED)))
    if search.trials and finished >= search.trials:
        logger.info(
            "Study %s has %d trials already; --trials asks for more, --study begins another",
            plan.name,
            finished,
        )

    with StopRequest() as stop, study_run(plan, study, storage) as run:
        if not mlflow.MlflowClient().get_run(run.run_id).data.params.get("space"):
            log_plan(run, plan, dataset)
        orders = give_orders(plan, storage, run.run_id)
        _, val_split = divide(dataset, base)
        try:
            with TrialPictures(storage.pictures, val_split, dataset.classes):
                work_together(orders, stop, lambda: _finished(study), _heartbeat(study, storage))
                if search.retrain_best and not stop.signum:
                    retrain_best(plan, study, storage, run, stop)
        except CifarError:
            with suppress(CifarError):  # what ended the search matters more than that this fails too
                log_study(run, study)
            raise
        log_study(run, study)
        stop.raise_if_asked()
    return study


FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@contextmanager
def study_run(plan: Plan, study: optuna.Study, storage: Storage) -> Iterator[TrackedRun]:
    """The MLflow run of the study: ours to begin and end, unless another process is at work on it."""
    client = mlflow.MlflowClient()
    ours = os.environ.get("MLFLOW_RUN_ID")  # `mlflow run` has made one for us
    with storage.turn():
        former = study.user_attrs.get("parent_run_id")
        if former and is_alive(former, plan.base):
            logger.info("Joining the search of run %s", former)
            joined = TrackedRun(former, plan.name)
        else:
            joined = None
            if ours and ours != former:
                adopt_trials(client, study, ours)
            run_id = ours or former or _new_run(client, plan)
            study.set_user_attr("parent_run_id", run_id)
    name = plan.base.run_name or f"search-{plan.name}"
    if joined is None:
        with tracked_run(
            kind="search", name=name, cache_dir=plan.base.cache_dir, resume=run_id, study=plan.name,
            tags={"mlflow.runName": name, "optuna.study": plan.name},
        ) as (run, _):  # fmt: skip
            storage.sign(run.run_id)
            logger.info("Search %s: run %s (%s)", plan.name, run.name, run.run_id)
            yield run
        return
    yield joined
    joined.flush()
    if not study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        client.set_terminated(joined.run_id, "FINISHED")


def _new_run(client: mlflow.MlflowClient, plan: Plan) -> str:
    experiment = client.get_experiment_by_name(plan.base.experiment)
    run_id: str = client.create_run(experiment.experiment_id).info.run_id
    return run_id


def adopt_trials(client: mlflow.MlflowClient, study: optuna.Study, parent_run_id: str) -> None:
    """Nest the runs of the study's trials in another run: `mlflow run` makes one each time it is called."""
    for trial in study.get_trials(deepcopy=False):
        if (run_id := trial.user_attrs.get("run_id")) and trial.user_attrs.get("origin") != EARLIER:
            client.set_tag(run_id, MLFLOW_PARENT_RUN_ID, parent_run_id)


def log_plan(run: TrackedRun, plan: Plan, dataset: ImageDataset) -> None:
    """What is searched, on which data, by which code."""
    readable = {"space": str(plan.search.space or "default"), "storage": safe(plan.search.storage)}
    run.log_params(plan.search.model_dump(mode="json") | plan.fixed | readable)
    run.log_text(plan.space_yaml, "search/space.yaml")
    hardware = set_up_hardware(plan.base, plan.base.precision)
    run.log_environment(f"{hardware.name}, {hardware.precision}")
    run.set_tags({"dataset": dataset.name, "dataset.digest": dataset.digest})
    run.log_dataset(dataset.name, dataset.digest, ["train", "validation"])
    config = plan.base.model_copy(update={"test": False})
    train_split, _ = divide(dataset, config)
    log_data(run, config, dataset, train_split)


def give_orders(plan: Plan, storage: Storage, parent_run_id: str) -> list[Orders]:
    """One for each worker; together they have the CPU threads of one training."""
    search, base = plan.search, plan.base
    threads = base.threads or torch.get_num_threads()
    places = {name: value for name, value in plan.fixed.items() if name in ("data_dir", "device", "mirrors")}
    orders = Orders(
        study=plan.name,
        search=search.model_dump(mode="json"),
        fixed={name: value for name, value in plan.fixed.items() if name not in PLACES} | places,
        space=str(storage.folder / "space.yaml"),
        parent_run_id=parent_run_id,
        cache_dir=str(base.cache_dir),
        experiment=base.experiment,
        deadline=time.time() + search.timeout if search.timeout else None,
    )
    return [
        replace(orders, index=index, threads=max(1, threads // search.workers))
        for index in range(search.workers)
    ]


def retrain_best(
    plan: Plan, study: optuna.Study, storage: Storage, run: TrackedRun, stop: StopRequest
) -> None:
    """Train the best settings on all images, in a process of its own, and log what the test says."""
    best = best_trials(study, 1)
    if not best:
        logger.warning("There is no complete trial to train again")
        return
    base = plan.base
    common = {
        name: plan.fixed[name] for name in PLACES if name in plan.fixed and name not in ("run_name", "test")
    }
    common |= {"cache_dir": str(base.cache_dir), "experiment": base.experiment}
    trainings = retrainings(best[0], plan.search, common)
    orders = replace(give_orders(plan, storage, run.run_id)[0], retrain=trainings, threads=base.threads)
    work_together([orders], stop, lambda: len(retrained_runs(study, list(trainings))), lambda: None)
    if stop.signum:
        return
    client = mlflow.MlflowClient()
    runs = [client.get_run(run_id).data.metrics for run_id in retrained_runs(study, list(trainings))]
    results = pd.DataFrame(runs, index=list(trainings)).filter(like="test/")
    run.log_csv(results, "search/retrained.csv", index=True)
    means = {str(name): float(value) for name, value in results.mean().items()}
    if len(results) > 1:
        means |= {f"{name}_std": float(value) for name, value in results.std().items()}
    run.log_metrics(means, step=_finished(study))
    logger.info("Trained again on all images: test accuracy %.4f", means["test/accuracy"])


def _finished(study: optuna.Study) -> int:
    return len(retry_on_outage(lambda: study.get_trials(deepcopy=False, states=FINISHED)))


def _heartbeat(study: optuna.Study, storage: Storage) -> Callable[[], None]:
    """A function that may be called at any time and beats when it is due."""
    due = 0.0

    def beat() -> None:
        nonlocal due
        if time.monotonic() > due:
            due = time.monotonic() + HEARTBEAT_SECONDS
            try:
                storage.beat(study)
            except (StorageInternalError, sqlalchemy.exc.OperationalError) as error:
                logger.warning("The storage does not answer (%s)", cause(error))

    return beat

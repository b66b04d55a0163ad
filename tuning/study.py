"""A search from start to end: one MLflow run for the study, and workers that train its trials."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import mlflow
import optuna
import pandas as pd
from mlflow.entities import Run
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.trial import FrozenTrial, TrialState

from cifar_mlflow.console import spinner
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.split import divide_lazily
from cifar_mlflow.data.summary import log_notes
from cifar_mlflow.effective import NEUTRAL
from cifar_mlflow.errors import CifarError
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.names import counted
from cifar_mlflow.tracking.artifacts import log_data
from cifar_mlflow.tracking.datasets import dataset_entities
from cifar_mlflow.tracking.lifecycle import close_stale_runs, create_run, tracked_run
from cifar_mlflow.tracking.retry import call_mlflow
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import connect
from cifar_mlflow.training.device import set_up_hardware
from tuning.command import without_passwords
from tuning.create_study import create_study, is_alive
from tuning.optuna_output import silence_optuna
from tuning.report import log_study, snapshot
from tuning.results import best_trials, failure_reason, own_trials
from tuning.retrain import retrained_runs, retrainings
from tuning.storage import STORAGE_ERRORS, Storage, cause, heartbeat_seconds, redact_password
from tuning.study_spec import StudySpec, read_study_spec
from tuning.trial_plots import TrialPlotter
from tuning.warm_start import PRIOR_RUN
from tuning.workers import run_workers

logger = logging.getLogger("cifar_mlflow.tuning")

# Settings that may change when a search is continued; the params of a run cannot.
BUDGET = ("trials", "timeout", "epochs_budget", "workers", "retrain_best", "retrain_seeds", "retrain_epochs")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


def tune(given: dict[str, Any], promotion: dict[str, Any] | None = None) -> tuple[optuna.Study, list[Run]]:
    """Search hyperparameters as one MLflow run with a nested run per trial; continue an existing study.

    Args:
        given: settings of `TuneConfig`; training settings among them are the same in all trials.
        promotion: options of the registration that the caller will do, for the printed command that continues
            the search.

    Returns:
        The study, and the runs of the retrainings that the command asked for.

    Raises:
        CifarError: the request is wrong, no trial succeeded, or something outside of the trials failed;
            finished trials are kept.
        Interrupted: a signal arrived; each trial is saved, and the same command continues the search.
    """
    silence_optuna()
    spec = read_study_spec(given, promotion)
    search, base = spec.search, spec.base
    dataset = load_dataset(base)
    log_notes(dataset)
    dataset.split("train")  # decoded once here, not by each worker
    with spinner("Opening the study"):
        base = base.model_copy(update={"experiment": connect(base.experiment)})
        spec = replace(spec, base=base)
        close_stale_runs(base.cache_dir)
        storage = Storage(search.storage, spec.name, base.cache_dir, base.experiment)
        study = create_study(spec, storage, dataset)
    finished = len(own_trials(_trials(study, storage, FINISHED)))
    complete = search.trials is not None and finished >= search.trials
    if complete:
        logger.info(
            "Study %s already has %s; raise --trials for more, or choose another --study",
            spec.name,
            counted(finished, "trial"),
        )

    with StopRequest() as stop, study_run(spec, study, storage) as run:
        if not call_mlflow(lambda: mlflow.MlflowClient().get_run(run.run_id)).data.params.get("space"):
            log_spec(run, spec, dataset)
        budget = spec.search.model_dump(mode="json", include=set(BUDGET))
        run.set_tags({name: value for name, value in budget.items() if value is not None})
        _, val_split = divide_lazily(dataset, base)
        retrained: list[Run] = []
        try:
            with TrialPlotter(storage.plots, val_split, dataset.classes):
                if not complete or _trials(study, storage, UNFINISHED):
                    with spinner("Training the trials"):
                        run_workers(
                            spec.worker_specs(storage, run.run_id),
                            stop,
                            lambda: _count_finished(study, storage),
                            _heartbeat(study, storage),
                        )
                if not stop.signum:
                    if reason := storage.retry_on_outage(lambda: failure_reason(study)):
                        raise CifarError(reason)
                    if search.retrain_best:
                        retrained = retrain_best(spec, study, storage, run, stop)
        except CifarError:
            with suppress(CifarError):  # the first error matters more
                log_study(run, storage.retry_on_outage(lambda: snapshot(study)))
            raise
        with spinner("Drawing the plots of the search"):
            log_study(run, storage.retry_on_outage(lambda: snapshot(study)))
        stop.raise_if_asked()
    return study, retrained


@contextmanager
def study_run(spec: StudySpec, study: optuna.Study, storage: Storage) -> Iterator[TrackedRun]:
    """Yield the MLflow run of the study; start and end it unless another process already works on it."""
    client = mlflow.MlflowClient()
    project_run = os.environ.get("MLFLOW_RUN_ID")  # created by `mlflow run`
    chosen: str | None = None
    created: str | None = None

    def choose_run() -> tuple[str, bool]:
        """Return the id of the run, and whether another process already works on it."""
        nonlocal chosen, created
        with storage.exclusive():
            previous = study.user_attrs.get("parent_run_id")
            if previous and previous != chosen and is_alive(previous, spec.base):
                return previous, True
            if project_run and project_run != previous:
                nest_trials(client, study, project_run)
            # An attempt that an outage ended may have created a run.
            chosen = project_run or previous or created
            if not chosen:
                chosen = created = _create_run(client, spec)
            study.set_user_attr("parent_run_id", chosen)
            return chosen, False

    run_id: str | None = None
    try:
        run_id, is_joined = storage.retry_on_outage(choose_run)
    finally:
        if created and created != run_id:  # an outage came before the study knew the run
            with suppress(CifarError):
                call_mlflow(partial(client.set_tag, created, "error", "the study does not know this run"))
                call_mlflow(partial(client.set_terminated, created, "FAILED"))
    name = spec.base.run_name or f"search-{spec.name}"
    if not is_joined:
        with tracked_run(
            kind="search", name=name, cache_dir=spec.base.cache_dir, resume=run_id, study=spec.name,
            tags={"mlflow.runName": name, "optuna.study": spec.name},
        ) as (run, _):  # fmt: skip
            storage.link_command(run.run_id)
            logger.info("Search %s: run %s (%s)", spec.name, run.name, run.run_id)
            yield run
        return
    logger.info("Joining the search of run %s", run_id)
    joined = TrackedRun(run_id, spec.name)
    try:
        yield joined
    except KeyboardInterrupt as interruption:  # includes Interrupted; `tracked_run` prints it for its own run
        reason = str(interruption) or "Ctrl-C"
        logger.warning("Stopped by %s; continue its study with: %s", reason, spec.command)
        raise
    joined.flush()
    if not _trials(study, storage, UNFINISHED):
        call_mlflow(lambda: client.set_terminated(joined.run_id, "FINISHED"))


def _create_run(client: mlflow.MlflowClient, spec: StudySpec) -> str:
    experiment = call_mlflow(lambda: client.get_experiment_by_name(spec.base.experiment))
    # `resolve_tags` returns the tags that `mlflow.start_run` adds: the user, and the program as the source.
    return create_run(experiment.experiment_id, resolve_tags())


def nest_trials(client: mlflow.MlflowClient, study: optuna.Study, parent_run_id: str) -> None:
    """Nest the trials' runs in another run, since each `mlflow run` creates one."""
    for trial in study.get_trials(deepcopy=False):
        if (run_id := trial.user_attrs.get("run_id")) and trial.user_attrs.get("origin") != PRIOR_RUN:
            call_mlflow(partial(client.set_tag, run_id, MLFLOW_PARENT_RUN_ID, parent_run_id))


def log_spec(run: TrackedRun, spec: StudySpec, dataset: ImageDataset) -> None:
    """Log what is searched, on which data and by which code, without passwords."""
    search = spec.search.model_dump(mode="json", exclude=set(BUDGET))
    search |= {"space": str(spec.search.space or "default"), "storage": redact_password(spec.search.storage)}
    given = {name: value for name, value in (search | spec.fixed).items() if value not in (None, [])}
    run.log_params(without_passwords(given))
    run.log_text(spec.space_yaml, "search/space.yaml")
    hardware = set_up_hardware(spec.base, spec.base.precision)
    run.log_environment(f"{hardware.name}, {hardware.precision}")
    run.set_tags({"dataset": dataset.name, "dataset.digest": dataset.digest})
    run.log_datasets(dataset_entities(dataset, spec.base, ["train", "validation"]))
    config = spec.base.model_copy(update={"test": False})
    train_split, _ = divide_lazily(dataset, config)
    log_data(run, config, dataset, train_split)


def retrain_best(
    spec: StudySpec, study: optuna.Study, storage: Storage, run: TrackedRun, stop: StopRequest
) -> list[Run]:
    """Train the best settings on all images, in a separate process, and log the test results.

    Returns:
        The finished runs; none if a signal arrived.
    """
    (best,) = best_trials(study, 1)
    base = spec.base
    common = {
        name: value
        for name, value in spec.fixed.items()
        if name in NEUTRAL and name not in ("run_name", "test")
    }
    common |= {"cache_dir": str(base.cache_dir), "experiment": base.experiment}
    trainings = retrainings(best, spec.search, common)
    worker = replace(spec.worker_specs(storage, run.run_id)[0], retrain=trainings, threads=base.threads)
    with spinner("Retraining the best trial"):
        run_workers([worker], stop, lambda: len(retrained_runs(study, list(trainings))), lambda: None)
    if stop.signum:
        return []
    client = mlflow.MlflowClient()
    runs = [call_mlflow(partial(client.get_run, id_)) for id_ in retrained_runs(study, list(trainings))]
    metrics = [finished.data.metrics for finished in runs]
    results = pd.DataFrame(metrics, index=list(trainings)).filter(like="test/")
    run.log_csv(results, "search/retrained.csv", index=True)
    means = {str(name): float(value) for name, value in results.mean().items()}
    if len(results) > 1:
        means |= {f"{name}_std": float(value) for name, value in results.std().items()}
    run.log_metrics(means, step=_count_finished(study, storage))
    logger.info("Retrained on all images: test accuracy %.4f", means["test/accuracy"])
    return runs


def _count_finished(study: optuna.Study, storage: Storage) -> int:
    return len(_trials(study, storage, FINISHED))


def _trials(study: optuna.Study, storage: Storage, states: tuple[TrialState, ...]) -> list[FrozenTrial]:
    return storage.retry_on_outage(lambda: study.get_trials(deepcopy=False, states=states))


def _heartbeat(study: optuna.Study, storage: Storage) -> Callable[[], None]:
    """Return a function that renews the heartbeats when they are due, however often it is called."""
    due = 0.0

    def renew_if_due() -> None:
        nonlocal due
        if time.monotonic() > due:
            due = time.monotonic() + heartbeat_seconds()
            try:
                storage.record_heartbeats(study)
            except STORAGE_ERRORS as error:  # the workers find out by themselves whether it is an outage
                logger.warning("The storage of the study does not answer (%s)", cause(error))

    return renew_if_due

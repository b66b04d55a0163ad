"""One trial: a training whose hyperparameters Optuna chose, and the storing of its outcome in the study."""

import logging
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
import torch
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from cifar_mlflow import pipeline
from cifar_mlflow.config import TrainConfig
from cifar_mlflow.console import percent
from cifar_mlflow.errors import CifarError, TrainingDivergedError, first_line
from cifar_mlflow.evaluation.calibration import Labels
from cifar_mlflow.evaluation.report import Report
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.redact import redact
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.resume import resumable_config as interrupted_config
from cifar_mlflow.tracking.retry import call_mlflow
from cifar_mlflow.training.loop import History
from tuning.results import own_trials
from tuning.storage import Storage
from tuning.trial_plots import save_for_plotting

logger = logging.getLogger("cifar_mlflow.tuning")

VALUE = "val/accuracy"
# The run's metric that is the second objective.
SECOND_OBJECTIVES = {"latency": "latency_ms", "parameters": "parameters"}
WARM_UP_CALLS, TIMED_CALLS = 5, 30


# The first trials of a study train to their end: there is little to compare them with, and a first epoch says
# little about an optimizer that warms up.
NEVER_PRUNED = 3


class TrialLostError(CifarError):
    """Another machine restarted this trial because its heartbeat was missing for too long."""


class TrialCallbacks(pipeline.TrainingCallbacks):
    """The hooks by which a training reports to its trial.

    Args:
        trial: a running trial with its parameters already chosen.
        objectives: names of metrics; the first is validation accuracy.
        epochs: number of epochs of a trial that is not pruned.
        tags: MLflow tags that all trials of the study share.
        storage: of the study.
        may_be_pruned: whether the training stops when the pruner says so.
    """

    skip_model_export = True

    def __init__(
        self,
        trial: optuna.Trial,
        objectives: list[str],
        epochs: int,
        tags: dict[str, str],
        storage: Storage,
        *,
        may_be_pruned: bool,
    ) -> None:
        self.storage = storage
        self.trial = trial
        self.study = tags["optuna.study"]
        self.objectives = objectives
        self.epochs = epochs
        self.tags = {**tags, "optuna.trial": str(trial.number), "optuna.state": "RUNNING"}
        self.may_be_pruned = may_be_pruned
        self.trained_epochs = 0

    def on_start(self, run_id: str) -> None:
        self.storage.link_command(run_id)
        self._set_attr("run_id", run_id)

    def forget_run(self) -> None:
        if self.trial.user_attrs.get("run_id"):
            self._set_attr("run_id", None)

    def prune(self, history: History) -> bool:
        """Report new epochs and ask the pruner; its decision to prune survives an interruption.

        The pruner is asked even if its answer is ignored: it records the values that later trials must reach.
        """
        self.trained_epochs = len(history)
        if len(self.objectives) > 1:  # Optuna's pruners support one value only
            return False
        reported = self.storage.retry_on_outage(self._reported_epochs)
        for row in history:
            if row["epoch"] not in reported:
                self._write(partial(self.trial.report, row[VALUE], int(row["epoch"])))
        pruned = bool(self.trial.user_attrs.get("pruned")) or self.storage.retry_on_outage(
            self.trial.should_prune
        )
        if not pruned or not self.may_be_pruned or len(history) in (0, self.epochs):
            return False
        self._set_attr("pruned", True)
        return True

    def measure(self, classifier: ImageClassifier, device: torch.device) -> dict[str, float]:
        metrics = {
            "epochs": float(self.trained_epochs),
            "parameters": float(sum(weights.numel() for weights in classifier.parameters())),
        }
        if "latency_ms" in self.objectives:
            size = self.trial.user_attrs["settings"].get("image_size", 32)
            metrics["latency_ms"] = latency_ms(classifier, device, size)
        return metrics

    def defer_plots(self, run_id: str, report: Report, labels: Labels, history: pd.DataFrame) -> bool:
        save_for_plotting(self.storage.plots, run_id, report, labels, history)
        return True

    def complete(self, run_id: str, metrics: dict[str, float]) -> None:
        """Store the result of a finished run in the study."""
        state = TrialState.PRUNED if self.trial.user_attrs.get("pruned") else TrialState.COMPLETE
        values = None if state == TrialState.PRUNED else [metrics[name] for name in self.objectives]
        self._finish(state, values, run_id, metrics["epochs"], metrics["train_seconds"])
        if state == TrialState.PRUNED:
            logger.info("pruned after epoch %d: %s", metrics["epochs"], percent(metrics[VALUE]).strip())
        else:
            others = [f"{name} {metrics[name]:.4g}" for name in self.objectives[1:]]
            logger.info("complete: %s", ", ".join([percent(metrics[VALUE]).strip(), *others]))

    def fail(self, reason: str, seconds: float, cache_dir: Path) -> None:
        """Mark the trial and its run as failed and delete its checkpoint; the search continues."""
        reason = redact(reason)
        run_id = self.trial.user_attrs.get("run_id")
        if run_id:
            client = mlflow.MlflowClient()
            call_mlflow(lambda: client.set_tag(run_id, "error", reason))
            call_mlflow(lambda: client.set_terminated(run_id, "FAILED"))
            _remove_directory(cache_dir, run_id)
        self._set_attr("error", reason)
        self._finish(TrialState.FAIL, None, run_id, self.trained_epochs, seconds)
        logger.warning("failed: %s", reason)

    def _finish(
        self,
        state: TrialState,
        values: list[float] | None,
        run_id: str | None,
        epochs: float,
        seconds: float,
    ) -> None:
        if run_id:
            client = mlflow.MlflowClient()
            call_mlflow(lambda: client.set_tag(run_id, "optuna.state", state.name))
            if state != TrialState.COMPLETE:  # visible in every list of runs
                name = f"trial-{self.trial.number:03} ({state.name.lower()})"
                call_mlflow(lambda: client.update_run(run_id, name=name))
        self._set_attr("epochs", int(epochs))
        self._set_attr("seconds", seconds)
        self._write(
            lambda: self.trial.study.tell(self.trial.number, values, state=state, skip_if_finished=True)
        )

    def _reported_epochs(self) -> set[int]:
        trial_id = self.storage.trial_id(self.trial.number)
        return {*self.storage.database.get_trial(trial_id).intermediate_values}

    def _set_attr(self, name: str, value: Any) -> None:
        self._write(lambda: self.trial.set_user_attr(name, value))

    def _write(self, call: Callable[[], Any]) -> None:
        try:
            self.storage.retry_on_outage(call)
        except UpdateFinishedTrialError as error:
            raise TrialLostError(
                f"trial {self.trial.number} was restarted by another machine, which had received no "
                "heartbeat from this one; its work here is discarded"
            ) from error


def may_be_pruned(number: int, trials: list[FrozenTrial]) -> bool:
    """Return whether the pruner may stop the trial of this number; it never stops the study's first three."""
    return sum(trial.number < number for trial in own_trials(trials)) >= NEVER_PRUNED


def run_trial(callbacks: TrialCallbacks, config: TrainConfig, is_restart: bool) -> None:
    """Train a trial, from its checkpoint if there is one, and store the outcome in the study.

    Args:
        is_restart: another process has already worked on the trial.

    Raises:
        CifarError: something outside of the trial failed; it stays open, and the same command continues it.
        Interrupted: a signal arrived; the trial stays open likewise.
    """
    run = finished_run(callbacks) if is_restart else None
    if run is not None:
        callbacks.complete(run.info.run_id, run.data.metrics)
        return
    resume = callbacks.trial.user_attrs.get("run_id") if is_restart else None
    if resume and RunDirectory.of(config.cache_dir, resume).checkpoint.path.exists():
        places = {"cache_dir": config.cache_dir, "data_dir": config.data_dir}
        config = resumable_config(resume, places, callbacks.study)
        logger.info("continues from its checkpoint")
    else:
        resume = None
        if is_restart:
            delete_unfinished_runs(callbacks, config)
    start = time.monotonic()
    try:
        result = pipeline.train(config, resume, callbacks)
    except TrainingDivergedError as error:
        callbacks.fail(str(error), time.monotonic() - start, config.cache_dir)
    except CifarError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):  # a bug, here or in a library
            logger.exception("unexpected error")
        callbacks.fail(first_line(error), time.monotonic() - start, config.cache_dir)
    else:
        callbacks.complete(result.run_id, result.metrics)


def resumable_config(run_id: str, places: dict[str, Any], study: str) -> TrainConfig:
    """Return the settings in the checkpoint of a run of the study, for the MLflow store in use.

    The checkpoint names the store in which the run started, which may have been moved since.
    """
    tracking_uri = mlflow.get_tracking_uri()
    config = interrupted_config(run_id, places, study)
    mlflow.set_tracking_uri(tracking_uri)
    return config


def finished_run(callbacks: TrialCallbacks) -> Run | None:
    """Return the finished run of a trial whose process died before it stored the result; else None."""
    run_id = callbacks.trial.user_attrs.get("run_id")
    run = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id)) if run_id else None
    return run if run and run.info.status == "FINISHED" else None


def delete_unfinished_runs(callbacks: TrialCallbacks, config: TrainConfig) -> None:
    """Delete runs of a trial whose process died before their first checkpoint.

    Only runs nested in the run of this study are deleted: another study of the same name may have existed.
    """
    client = mlflow.MlflowClient()
    experiment = call_mlflow(lambda: client.get_experiment_by_name(config.experiment))
    same = " and ".join(
        f"tags.`{name}` = '{callbacks.tags[name]}'" for name in (MLFLOW_PARENT_RUN_ID, "optuna.trial")
    )
    unfinished = f"attributes.status != 'FINISHED' and {same}"
    for run in call_mlflow(lambda: client.search_runs([experiment.experiment_id], unfinished)):
        call_mlflow(partial(client.delete_run, run.info.run_id))
        _remove_directory(config.cache_dir, run.info.run_id)
    callbacks.forget_run()


def _remove_directory(cache_dir: Path, run_id: str) -> None:
    directory = RunDirectory.of(cache_dir, run_id)
    directory.acquire()
    directory.remove()


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out; torch raises its own error on a GPU, but a RuntimeError on the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "memory" in str(error)
    )


@torch.inference_mode()
def latency_ms(classifier: ImageClassifier, device: torch.device, image_size: int) -> float:
    """Return the median time for one image in fp32, in milliseconds, with the training's CPU threads."""
    image = torch.rand(1, 3, image_size, image_size, device=device)
    seconds = []
    for _ in range(WARM_UP_CALLS + TIMED_CALLS):
        start = time.perf_counter()
        classifier(image)[0].tolist()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[-TIMED_CALLS:])

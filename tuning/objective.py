"""One trial: a training whose hyperparameters Optuna chose, and what becomes of it in the study."""

import logging
import statistics
import time
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
from optuna.trial import TrialState

from cifar_mlflow import pipeline
from cifar_mlflow.config import TrainConfig
from cifar_mlflow.errors import CifarError, TrainingDivergedError
from cifar_mlflow.evaluation.calibration import Labels
from cifar_mlflow.evaluation.report import Report
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.retry import call_mlflow, first_line
from cifar_mlflow.training.loop import History
from tuning.storage import Storage, retry_on_outage
from tuning.trial_plots import leave_to_draw

logger = logging.getLogger("cifar_mlflow.tuning")

VALUE = "val/accuracy"
# What a second objective is called among the metrics of a run.
SECOND_OBJECTIVES = {"latency": "latency_ms", "parameters": "parameters"}
TIMED_CALLS = 30
# The first trials of a study are trained to their end: there is hardly anything to compare them with, and a
# first epoch says little of an optimizer that warms up.
NEVER_PRUNED = 3


class TrialLostError(CifarError):
    """Another machine has begun this trial anew, since nothing was heard of this one for too long."""


class TrainedTrial(pipeline.TrainingCallbacks):
    """A trial of Optuna's, as a training sees it.

    Args:
        trial: running, with its parameters already chosen.
        objectives: names of metrics; the first is validation accuracy.
        epochs: of a trial that is not pruned.
        tags: those of all trials of the study.
        storage: of the study.
    """

    skip_model_export = True

    def __init__(
        self,
        trial: optuna.Trial,
        objectives: list[str],
        epochs: int,
        tags: dict[str, str],
        storage: Storage,
    ) -> None:
        self.storage = storage
        self.trial = trial
        self.study = tags["optuna.study"]
        self.objectives = objectives
        self.epochs = epochs
        self.tags = {**tags, "optuna.trial": str(trial.number), "optuna.state": "RUNNING"}
        self.trained_epochs = 0

    def on_start(self, run_id: str) -> None:
        self.storage.sign(run_id)
        self._tell("run_id", run_id)

    def forget_run(self) -> None:
        if self.trial.user_attrs.get("run_id"):
            self._tell("run_id", None)

    def prune(self, history: History) -> bool:
        """Report what is new, and ask the pruner. What it has said once stays so after an interruption."""
        self.trained_epochs = len(history)
        if len(self.objectives) > 1:  # Optuna prunes by one value only
            return False
        reported = retry_on_outage(lambda: self._frozen().intermediate_values)
        for row in history:
            if row["epoch"] not in reported:
                self._patiently(lambda row=row: self.trial.report(row[VALUE], int(row["epoch"])))
        if self.trial.number < NEVER_PRUNED or len(history) in (0, self.epochs):
            return False
        pruned = bool(self.trial.user_attrs.get("pruned")) or retry_on_outage(self.trial.should_prune)
        if pruned:
            self._tell("pruned", True)
        return pruned

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
        leave_to_draw(self.storage.pictures, run_id, report, labels, history)
        return True

    def conclude(self, run_id: str, metrics: dict[str, float]) -> None:
        """Tell Optuna the result of a run that is finished."""
        state = TrialState.PRUNED if self.trial.user_attrs.get("pruned") else TrialState.COMPLETE
        values = None if state == TrialState.PRUNED else [metrics[name] for name in self.objectives]
        self._end(state, values, run_id, metrics["epochs"], metrics["train_seconds"])
        if state == TrialState.PRUNED:
            logger.info("pruned after epoch %d: %.4f", metrics["epochs"], metrics[VALUE])
        else:
            named = ", ".join(f"{name} {metrics[name]:.4g}" for name in self.objectives)
            logger.info("complete: %s", named)

    def fail(self, reason: str, seconds: float, cache_dir: Path) -> None:
        """The settings are at fault: the search goes on without them, and their checkpoint is of no use."""
        run_id = self.trial.user_attrs.get("run_id")
        if run_id:
            client = mlflow.MlflowClient()
            call_mlflow(lambda: client.set_tag(run_id, "error", reason))
            call_mlflow(lambda: client.set_terminated(run_id, "FAILED"))
            _forget_directory(cache_dir, run_id)
        self._tell("error", reason)
        self._end(TrialState.FAIL, None, run_id, self.trained_epochs, seconds)
        logger.warning("failed: %s", reason)

    def _end(
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
            if state != TrialState.COMPLETE:  # seen in every list of runs
                name = f"trial-{self.trial.number:03} ({state.name.lower()})"
                call_mlflow(lambda: client.update_run(run_id, name=name))
        self._tell("epochs", int(epochs))
        self._tell("seconds", seconds)
        self._patiently(
            lambda: self.trial.study.tell(self.trial.number, values, state=state, skip_if_finished=True)
        )

    def _frozen(self) -> optuna.trial.FrozenTrial:
        return self.trial.storage.get_trial(self.trial._trial_id)

    def _tell(self, name: str, value: Any) -> None:
        self._patiently(lambda: self.trial.set_user_attr(name, value))

    def _patiently(self, call: Any) -> None:
        try:
            retry_on_outage(call)
        except UpdateFinishedTrialError as error:
            raise TrialLostError(
                f"trial {self.trial.number} was begun anew by another machine: this one was not heard of"
            ) from error


def run_trial(trial: TrainedTrial, config: TrainConfig, begun: bool) -> None:
    """Train a trial from wherever it is, and tell the study how it ended.

    Args:
        begun: another process has worked on it before.

    Raises:
        CifarError: something outside of the trial failed; it stays open, for the same command to go on with.
        Interrupted: a signal came; likewise.
    """
    run = finished_run(trial) if begun else None
    if run is not None:
        trial.conclude(run.info.run_id, run.data.metrics)
        return
    resume = trial.trial.user_attrs.get("run_id") if begun else None
    if resume and RunDirectory.of(config.cache_dir, resume).checkpoint.path.exists():
        given = {"cache_dir": config.cache_dir, "data_dir": config.data_dir}
        config = pipeline.resumable_config(resume, given, trial.study)
        logger.info("goes on from its checkpoint")
    else:
        resume = None
        if begun:
            forget_runs(trial, config)
    start = time.monotonic()
    try:
        result = pipeline.train(config, resume, trial)
    except TrainingDivergedError as error:
        trial.fail(str(error), time.monotonic() - start, config.cache_dir)
    except CifarError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):  # a defect: of ours, or of a library with these settings
            logger.exception("unexpected error")
        trial.fail(first_line(error), time.monotonic() - start, config.cache_dir)
    else:
        trial.conclude(result.run_id, result.metrics)


def finished_run(trial: TrainedTrial) -> Run | None:
    """The run of a trial whose process died between the end of the run and telling the study."""
    run_id = trial.trial.user_attrs.get("run_id")
    run = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id)) if run_id else None
    return run if run and run.info.status == "FINISHED" else None


def forget_runs(trial: TrainedTrial, config: TrainConfig) -> None:
    """Delete runs that were begun for a trial and died before their first checkpoint.

    Only those below the run of this study: there may have been another one of the same name.
    """
    client = mlflow.MlflowClient()
    experiment = call_mlflow(lambda: client.get_experiment_by_name(config.experiment))
    same = " and ".join(
        f"tags.`{name}` = '{trial.tags[name]}'" for name in (MLFLOW_PARENT_RUN_ID, "optuna.trial")
    )
    unfinished = f"attributes.status != 'FINISHED' and {same}"
    for run in call_mlflow(lambda: client.search_runs([experiment.experiment_id], unfinished)):
        call_mlflow(partial(client.delete_run, run.info.run_id))
        _forget_directory(config.cache_dir, run.info.run_id)
    trial.forget_run()


def _forget_directory(cache_dir: Path, run_id: str) -> None:
    directory = RunDirectory.of(cache_dir, run_id)
    directory.acquire()
    directory.remove()


def is_out_of_memory(error: Exception) -> bool:
    """Torch raises an error of its own on a GPU, and a plain RuntimeError on the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "memory" in str(error)
    )


@torch.inference_mode()
def latency_ms(classifier: ImageClassifier, device: torch.device, image_size: int) -> float:
    """Milliseconds for one image, in fp32, on the device and threads of the training: median of 30 calls."""
    image = torch.rand(1, 3, image_size, image_size, device=device)
    seconds = []
    for _ in range(5 + TIMED_CALLS):  # the first ones choose kernels
        start = time.perf_counter()
        classifier(image)[0].tolist()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[-TIMED_CALLS:])

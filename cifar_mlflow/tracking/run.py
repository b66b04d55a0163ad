"""Everything that is written to an MLflow run goes through here."""

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import numpy as np
import pandas as pd
from filelock import FileLock
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from cifar_mlflow.config import Settings, default_cache_dir
from cifar_mlflow.environment import git_state, installed_packages, library_versions
from cifar_mlflow.errors import CifarError
from cifar_mlflow.names import printable
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.metric_queue import MetricQueue
from cifar_mlflow.tracking.retry import PATIENCE_SECONDS, first_line, is_outage, retry_on_outage

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TrackedRun:
    """One MLflow run that is being written: metrics from a thread, all else at once and with patience."""

    def __init__(self, run_id: str, name: str) -> None:
        self.run_id = run_id
        self.name = name
        self._client = mlflow.MlflowClient()
        self._queue = MetricQueue(lambda metrics: self._client.log_batch(run_id, metrics=metrics))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Queue metrics; returns at once, and an outage of the server loses none."""
        now = int(time.time() * 1000)
        self._queue.put([Metric(name, value, now, step) for name, value in metrics.items()])

    def log_settings(self, config: Settings) -> None:
        """Every setting as a param."""
        self.log_params(config.model_dump(mode="json"))

    def log_params(self, values: dict[str, Any]) -> None:
        """Params; one that is there stays, as one that `mlflow run -P` has logged as the user wrote it."""
        known = self._patiently(lambda: self._client.get_run(self.run_id)).data.params
        params = [
            Param(name, printable(", ".join(value) if isinstance(value, list) else str(value)))
            for name, value in values.items()
            if name not in known
        ]
        self._patiently(lambda: self._client.log_batch(self.run_id, params=params))

    def set_tags(self, tags: dict[str, Any]) -> None:
        run_tags = [RunTag(key, str(value)) for key, value in tags.items()]
        self._patiently(lambda: self._client.log_batch(self.run_id, tags=run_tags))

    def clear_error(self) -> None:
        """Forget why an earlier attempt ended."""
        if "error" in self._patiently(lambda: self._client.get_run(self.run_id)).data.tags:
            self._patiently(lambda: self._client.delete_tag(self.run_id, "error"))

    def log_environment(self, hardware: str) -> None:
        """Commit, library versions, device."""
        self.set_tags({**git_state(), "device": hardware})
        self.log_json(library_versions(), "environment/versions.json")
        self.log_text(installed_packages(), "environment/requirements.txt")

    def log_dataset(self, name: str, digest: str, contexts: list[str]) -> None:
        """The data set as an input of the run, once for each split that is used."""
        longest_digest = digest[:36]  # that MLflow keeps; the whole one is a tag
        inputs = []
        for context in contexts:
            # MLflow takes two inputs of one name and digest for one.
            dataset = MetaDataset(CodeDatasetSource(tags={}), f"{name}-{context}", longest_digest)
            tags = [InputTag(MLFLOW_DATASET_CONTEXT, context)]
            inputs.append(DatasetInput(dataset._to_mlflow_entity(), tags))

        def log() -> None:
            try:
                self._client.log_inputs(self.run_id, inputs)
            except MlflowException as error:
                # MLflow looks for the data set, then makes it: another run may make it in between, and of a
                # run that is refused nothing is written. Now it is there to be found.
                if error.error_code != "BAD_REQUEST":
                    raise
                self._client.log_inputs(self.run_id, inputs)

        self._patiently(log)

    def log_figure(self, figure: Figure, path: str) -> None:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # once: MLflow's log_figure calls savefig, which draws an unseen one first
        picture = np.asarray(canvas.buffer_rgba())
        self._patiently(lambda: self._client.log_image(self.run_id, picture, path))

    def log_json(self, values: Any, path: str) -> None:
        self._patiently(lambda: self._client.log_dict(self.run_id, values, path))

    def log_text(self, text: str, path: str) -> None:
        self._patiently(lambda: self._client.log_text(self.run_id, text, path))

    def log_csv(self, table: pd.DataFrame, path: str, *, index: bool = False) -> None:
        self.log_text(table.to_csv(index=index), path)

    def log_file(self, file: Path, folder: str) -> None:
        self._patiently(lambda: self._client.log_artifact(self.run_id, str(file), folder))

    def log_pytorch_model(self, **arguments: Any) -> None:
        """`mlflow.pytorch.log_model`, with patience."""
        self._patiently(lambda: mlflow.pytorch.log_model(**arguments))

    def missing_epochs(self, history: list[dict[str, float]]) -> list[dict[str, float]]:
        """The rows of a history whose metrics never reached the run (its process was killed before)."""
        logged = self._patiently(lambda: self._client.get_metric_history(self.run_id, "train/loss"))
        steps = {metric.step for metric in logged}
        return [row for row in history if row["epoch"] not in steps]

    def flush(self) -> None:
        """Wait until all metrics have arrived.

        Raises:
            TrackingLostError: MLflow is away for too long.
        """
        unsent = self._queue.close(PATIENCE_SECONDS)
        if unsent:
            steps = sorted({metric.step for metric in unsent})
            raise TrackingLostError(f"the metrics of epochs {steps[0]} to {steps[-1]}")

    def _patiently(self, call: Callable[[], T]) -> T:
        try:
            return retry_on_outage(call, PATIENCE_SECONDS)
        except Exception as error:
            if is_outage(error):
                raise TrackingLostError("what comes at the end of the training") from error
            # Each kind of artifact store has errors of its own.
            raise CifarError(f"the run could not be written to MLflow: {first_line(error)}") from error


class TrackingLostError(CifarError):
    """MLflow stayed away, so the run lacks something."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"MLflow at {mlflow.get_tracking_uri()} does not answer; the run lacks {missing}")


def connect(experiment: str, resume: str | None = None) -> None:
    """Make the experiment the current one, creating it if needed.

    In `mlflow run` it is chosen already, and for a run to `resume` it is the one that the run is in.

    Raises:
        CifarError: the tracking store cannot be reached or written.
    """
    # A new SQLite store reports each of its many migrations.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    what = f"run {resume}" if resume else f"experiment {experiment!r}"
    resume_hint = (
        "MLFLOW_TRACKING_URI names another store, such as sqlite:////a/folder/mlflow.db or http://host:5000"
        + ("" if resume else "; --experiment another experiment")
    )
    try:
        if resume:
            run = mlflow.MlflowClient().get_run(resume)
            mlflow.set_experiment(experiment_id=run.info.experiment_id)
        elif "MLFLOW_RUN_ID" not in os.environ:
            with _alone(mlflow.get_tracking_uri()):
                mlflow.set_experiment(experiment)
    except Exception as error:  # each kind of store has errors of its own
        raise CifarError(
            f"{what} in MLflow's store {mlflow.get_tracking_uri()} cannot be used: {first_line(error)}\n"
            + resume_hint
        ) from error


@contextmanager
def _alone(tracking_uri: str) -> Iterator[None]:
    """One command of this user at a time with a database that it may have to make.

    MLflow makes the tables of a new one without a thought of others who begin to do the same.
    """
    name = hashlib.sha256(tracking_uri.encode()).hexdigest()[:16]
    path = default_cache_dir() / "stores" / f"{name}.lock"
    with ExitStack() as held:
        if not tracking_uri.startswith("http"):  # whose database its server makes
            # A cache that cannot be written takes nothing from a command that is alone.
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                # One that is held for so long hangs, and is not waited for.
                held.enter_context(FileLock(path, timeout=PATIENCE_SECONDS))
        yield


def close_stale_runs(cache_dir: Path, resume: str | None = None) -> None:
    """Mark runs as KILLED whose process died on this machine without a word (`kill -9`, power failure).

    Only runs whose directory is here and whose lock is free: a run of another machine is never touched. Nor
    is the one to `resume`, which is about to go on.
    """
    client = mlflow.MlflowClient()
    for directory in RunDirectory.all(cache_dir):
        run_id = directory.path.name
        if (
            run_id == resume
            or not directory.is_ours(mlflow.get_tracking_uri())
            or not directory.try_acquire()
        ):
            continue
        try:
            info = client.get_run(run_id).info
            if info.status == "RUNNING":
                client.set_tag(run_id, "error", "its process was killed")
                client.set_terminated(run_id, "KILLED")
                logger.warning("Run %s (%s) was killed%s", info.run_name, run_id, directory.resume_hint)
        except MlflowException as error:
            logger.warning("Run %s cannot be looked up: %s", run_id, first_line(error))
        finally:
            directory.release()


def tag_project_run(error: str) -> None:
    """Give the run that `mlflow run` made before it called us the reason why nothing is in it."""
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        with suppress(MlflowException):  # the error itself is on its way to the terminal
            mlflow.MlflowClient().set_tag(run_id, "error", error)


@contextmanager
def tracked_run(
    *,
    kind: str,
    name: str,
    cache_dir: Path,
    resume: str | None = None,
    study: str | None = None,
    tags: dict[str, str] | None = None,
) -> Iterator[tuple[TrackedRun, RunDirectory]]:
    """A run that ends FINISHED, FAILED (with the error as a tag) or KILLED, whatever happens in the block.

    Its directory keeps the checkpoint unless the run is FINISHED.

    Args:
        resume: id of the run to continue, whose directory is in `cache_dir`.
        study: the name of the study that the run is part of: what is stopped there, `tune` goes on with.
        tags: for the run, from the moment it is there.

    Raises:
        CifarError: another process is at work on the run to resume; it is left alone.
    """
    # The run that `mlflow run` made, by its id: MLflow forgets the variable when it first reads it, and after
    # an outage would begin another run.
    if run_id := resume or os.environ.get("MLFLOW_RUN_ID"):
        directory = RunDirectory.of(cache_dir, run_id)
        directory.acquire()  # first: a run that another process writes must not even be touched
        try:
            active = _start(run_id=run_id, run_name=None if resume else name, tags=tags)
        except BaseException:
            directory.release()
            raise
    else:
        active = _start(run_name=name, tags=tags)
        directory = RunDirectory.of(cache_dir, active.info.run_id)
    run = TrackedRun(active.info.run_id, active.info.run_name)
    status = "FAILED"
    try:
        if not run_id:
            directory.acquire()
        directory.sign(mlflow.get_tracking_uri(), study)
        if resume:
            run.clear_error()
        run.set_tags({"kind": kind})
        yield run, directory
        run.flush()
        status = "FINISHED"
    except KeyboardInterrupt as interruption:  # an Interrupted too
        status = "KILLED"
        why = str(interruption) or "Ctrl-C"
        logger.warning("Stopped by %s%s", why, directory.resume_hint)
        _say_why(run, f"stopped by {why}")
        raise
    except TrackingLostError as error:
        if not directory.checkpoint.path.exists():
            raise
        raise CifarError(f"{error}.\nNothing is lost{directory.resume_hint} when MLflow is back") from error
    except Exception as error:
        _say_why(run, first_line(error))
        raise
    finally:
        ended = _end(run.run_id, status)
        # A run that could not be marked keeps its directory: by that a later training finds and closes it.
        if ended and (status == "FINISHED" or not directory.checkpoint.path.exists()):
            directory.remove()
        else:
            directory.release()


def _say_why(run: TrackedRun, reason: str) -> None:
    """Tag a run that ends early and send its metrics; what ended it matters more than a failure in that."""
    try:
        run.set_tags({"error": reason})
        run.flush()
    except CifarError as error:
        logger.error("%s", error)


def _start(tags: dict[str, str] | None = None, **which: Any) -> mlflow.ActiveRun:
    owner = {"host": socket.gethostname(), "pid": str(os.getpid())}
    begun = int(time.time() * 1000)
    attempts = 0

    def start() -> mlflow.ActiveRun:
        nonlocal attempts
        attempts += 1
        if attempts > 1 and "run_id" not in which:  # where only the answer was lost, there is a run already
            ours = " and ".join(f"tags.{key} = '{value}'" for key, value in owner.items())
            of_now = f"{ours} and attributes.start_time >= {begun}"
            if made := mlflow.search_runs(filter_string=of_now, output_format="list"):
                return mlflow.start_run(run_id=made[0].info.run_id)
        return mlflow.start_run(**which, tags={**(tags or {}), **owner})

    try:
        return retry_on_outage(start, PATIENCE_SECONDS)
    except MlflowException as error:
        raise CifarError(f"MLflow does not start the run: {first_line(error)}") from error


def _end(run_id: str, status: str) -> bool:
    """Whether the run could be marked as ended."""
    ended = True
    try:
        retry_on_outage(lambda: mlflow.MlflowClient().set_terminated(run_id, status), PATIENCE_SECONDS)
    except Exception as error:
        logger.error("Run %s could not be marked as %s: %s", run_id, status, first_line(error))
        ended = False
    with suppress(MlflowException):  # it is marked; this only tells the fluent API that no run is active
        mlflow.end_run(status)
    return ended

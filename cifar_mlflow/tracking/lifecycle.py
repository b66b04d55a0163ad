"""The start and the end of a run: it ends FINISHED, FAILED or KILLED, and never stays RUNNING."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException

from cifar_mlflow.environment import patience_seconds
from cifar_mlflow.errors import CifarError, first_line
from cifar_mlflow.names import printable
from cifar_mlflow.tracking.local_state import CACHE_TAG, RunDirectory
from cifar_mlflow.tracking.retry import call_mlflow, retry_on_outage
from cifar_mlflow.tracking.run import TrackedRun, TrackingLostError, now_ms
from cifar_mlflow.tracking.store import page_address, store_uri
from cifar_mlflow.tracking.system_metrics import system_metrics as monitor_system

logger = logging.getLogger(__name__)


@contextmanager
def tracked_run(
    *,
    kind: str,
    name: str,
    cache_dir: Path,
    resume: str | None = None,
    study: str | None = None,
    tags: dict[str, str] | None = None,
    system_metrics: bool = False,
) -> Iterator[tuple[TrackedRun, RunDirectory]]:
    """Start a run, and end it as FINISHED, FAILED (with the error as a tag) or KILLED after the block.

    Its local directory is kept, with the checkpoint, unless the run is FINISHED.

    Args:
        kind: value of the tag `kind`.
        resume: id of the run to continue; its directory is in `cache_dir`.
        study: name of the study that the run belongs to; `tune` continues its stopped runs.
        tags: tags that the run has from its creation on.
        system_metrics: log the load of the machine from the second minute on.

    Raises:
        CifarError: another process is working on the run to resume, which is left alone.
    """
    # `mlflow run` has created a run. Pass its id on each attempt: MLflow deletes the variable when it first
    # reads it, and would start another run after an outage.
    if run_id := resume or os.environ.get("MLFLOW_RUN_ID"):
        directory = RunDirectory.of(cache_dir, run_id)
        directory.acquire()  # before anything else: a run that another process writes must not be touched
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
        if page := page_address(f"experiments/{active.info.experiment_id}/runs/{run.run_id}"):
            logger.info("Run %s: %s", run.name, page)
        if not run_id:
            directory.acquire()
        directory.write_owner(store_uri(), study)
        if resume:
            run.clear_error()
        run.set_tags({"kind": kind, CACHE_TAG: printable(str(cache_dir))})
        # If MLflow is configured to log system metrics, it does so itself.
        monitored = system_metrics and not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get()
        with monitor_system(run.run_id) if monitored else nullcontext():
            yield run, directory
        run.flush()
        status = "FINISHED"
    except KeyboardInterrupt as interruption:  # includes Interrupted
        status = "KILLED"
        reason = str(interruption) or "Ctrl-C"
        # The command that continues a study is printed once, by the search, and not for each trial.
        hint = "" if study and kind != "search" else directory.resume_hint
        logger.warning("Stopped by %s%s", reason, hint)
        _log_reason(run, f"stopped by {reason}")
        raise
    except TrackingLostError as error:
        if not directory.checkpoint.path.exists():
            raise
        raise CifarError(f"{error}.\nNothing is lost{directory.resume_hint} when MLflow is back") from error
    except Exception as error:
        _log_reason(run, first_line(error))
        raise
    finally:
        ended = _end(run.run_id, status)
        # A run that could not be marked keeps its directory, by which a later training finds and closes it.
        if ended and (status == "FINISHED" or not directory.checkpoint.path.exists()):
            directory.remove()
        else:
            directory.release()


def create_run(experiment_id: str, tags: dict[str, str], name: str | None = None) -> str:
    """Create a run, which the caller has to end, and return its id.

    Raises:
        CifarError: MLflow does not answer or refuses.
    """
    client, owner, started_at = mlflow.MlflowClient(), _owner(), now_ms()
    attempts = 0

    def create() -> str:
        nonlocal attempts
        attempts += 1
        # If only the response to an earlier attempt was lost, the run exists already.
        if attempts > 1 and (existing := client.search_runs([experiment_id], _created(owner, started_at))):
            return str(existing[0].info.run_id)
        return str(client.create_run(experiment_id, tags={**tags, **owner}, run_name=name).info.run_id)

    return call_mlflow(create)


def close_stale_runs(cache_dir: Path, resume: str | None = None) -> None:
    """Mark as KILLED the runs whose process on this machine died without notice (`kill -9`, power failure).

    A run qualifies if its directory is here and its lock is free. Runs of other machines, and the run to
    `resume`, are left alone.
    """
    for directory in RunDirectory.all(cache_dir):
        if directory.path.name != resume and directory.belongs_to(store_uri()) and directory.try_acquire():
            _close_dead_run(directory, "KILLED", "its process was killed")


def close_run_of_killed_process(cache_dir: Path, run_id: str, seconds: float) -> None:
    """Mark a run as FAILED if the process that wrote it was killed; for a process that trained with it.

    Args:
        seconds: how long to wait for that process, if it is alive, to end the run itself. A process on
            another machine cannot be checked: its run is left alone.
    """
    directory = RunDirectory.of(cache_dir, run_id)
    if directory.belongs_to(store_uri()) and directory.try_acquire(seconds):
        _close_dead_run(directory, "FAILED", "the process that wrote the run was killed")


def _close_dead_run(directory: RunDirectory, status: str, reason: str) -> None:
    """End a run that is still RUNNING although no process holds its lock, and release the lock."""
    client, run_id = mlflow.MlflowClient(), directory.path.name
    try:
        info = client.get_run(run_id).info
        if info.status == "RUNNING":
            client.set_tag(run_id, "error", reason)
            client.set_terminated(run_id, status)
            logger.warning("Run %s (%s) was killed%s", info.run_name, run_id, directory.resume_hint)
    except MlflowException as error:
        logger.warning("Run %s cannot be looked up: %s", run_id, first_line(error))
    finally:
        directory.release()


def tag_project_run(error: str) -> None:
    """Tag the run that `mlflow run` created for this process with the error that ended it."""
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        with suppress(MlflowException):  # the terminal shows the error anyway
            mlflow.MlflowClient().set_tag(run_id, "error", error)


def _log_reason(run: TrackedRun, reason: str) -> None:
    """Tag a run that ends early and send its metrics; only log a failure to do so."""
    try:
        run.set_tags({"error": reason})
        run.flush()
    except CifarError as error:
        logger.error("%s", error)


def _start(tags: dict[str, str] | None = None, **arguments: Any) -> mlflow.ActiveRun:
    owner, started_at = _owner(), now_ms()
    attempts = 0

    def started() -> list[str]:
        """Return the id of the run, if the store has it: perhaps only the response was lost."""
        if "run_id" in arguments:
            return [arguments["run_id"]]
        query = _created(owner, started_at)
        return [run.info.run_id for run in mlflow.search_runs(filter_string=query, output_format="list")]

    def start() -> mlflow.ActiveRun:
        nonlocal attempts
        attempts += 1
        if attempts > 1 and "run_id" not in arguments and (existing := started()):
            return mlflow.start_run(run_id=existing[0])
        return mlflow.start_run(**arguments, tags={**(tags or {}), **owner})

    try:
        return retry_on_outage(start, patience_seconds())
    except KeyboardInterrupt:
        with suppress(MlflowException):
            mlflow.end_run("KILLED")
            for run_id in started():
                mlflow.MlflowClient().set_terminated(run_id, "KILLED")
        raise
    except MlflowException as error:
        raise CifarError(f"MLflow cannot start the run: {first_line(error)}") from error


def _owner() -> dict[str, str]:
    """Return the tags that name this process."""
    return {"host": socket.gethostname(), "pid": str(os.getpid())}


def _created(owner: dict[str, str], since: int) -> str:
    """Return the filter for the runs that a process has created since a Unix time in milliseconds."""
    conditions = [f"tags.{key} = '{value}'" for key, value in owner.items()]
    return " and ".join([*conditions, f"attributes.start_time >= {since}"])


def _end(run_id: str, status: str) -> bool:
    """Mark the run as ended; return whether that succeeded."""
    ended = True
    try:
        retry_on_outage(lambda: mlflow.MlflowClient().set_terminated(run_id, status), patience_seconds())
    except Exception as error:
        logger.error("Run %s could not be marked as %s: %s", run_id, status, first_line(error))
        ended = False
    finally:
        # Tell the fluent API that no run is active, also after Ctrl-C: when the process ends, MLflow marks an
        # active run as FINISHED.
        with suppress(MlflowException):
            mlflow.end_run(status)
    return ended

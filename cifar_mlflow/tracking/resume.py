"""Read the settings of an interrupted run from its checkpoint, so that `train` can continue it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_mlflow.config import PlacesConfig, TrainConfig
from cifar_mlflow.errors import UsageError
from cifar_mlflow.settings import option_name, validate
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.store import select_store, store_uri
from cifar_mlflow.training.distributed import this_world


def resumable_config(run_id: str, given: Mapping[str, object], study: str | None = None) -> TrainConfig:
    """Return the settings of an interrupted run, from its checkpoint, and select its MLflow store.

    Args:
        given: settings of `PlacesConfig` that replace those of the run; others would make it another run.
        study: name of the study that continues the run; a trial is resumed by its study only.

    Raises:
        UsageError: the run cannot be resumed, or another setting is given.
    """
    if others := sorted(set(given) - {*PlacesConfig.model_fields}):
        raise UsageError(
            f"--resume takes the settings of the run: leave out {', '.join(map(option_name, others))}"
        )
    cache_dir = validate(TrainConfig, dict(given)).cache_dir
    world = this_world()
    # The checkpoint is on the machine of the first process.
    settings = world.broadcast(_settings_of_run(cache_dir, run_id, study) if world.is_main else None)
    return validate(TrainConfig, {**settings, **given, "cache_dir": cache_dir})


def _settings_of_run(cache_dir: Path, run_id: str, study: str | None) -> dict[str, Any]:
    """Return the settings in the checkpoint of an interrupted run, and select its MLflow store."""
    directory = RunDirectory.of(cache_dir, run_id)
    if not directory.checkpoint.path.exists():
        known = RunDirectory.resumable(cache_dir, store_uri(), study)
        raise UsageError(
            f"run {run_id} cannot be resumed: it has no checkpoint in {directory.path.parent} "
            "(a finished run needs none; if the run had a --cache-dir, give it again). "
            f"Resumable runs of {store_uri()}: {', '.join(known) or 'none'}"
        )
    if directory.owner is None:
        raise UsageError(f"run {run_id} cannot be resumed: {directory.path}/owner.json is missing or damaged")
    if directory.owner.study != study:
        raise UsageError(f"run {run_id} is a trial of a study{directory.resume_hint}")
    select_store(directory.owner.tracking_uri)
    settings: dict[str, Any] = directory.checkpoint.load()["config"]
    return settings

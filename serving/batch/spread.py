"""Classify images with an engine into a dataset: plan the parts, run them, count the answers."""

import importlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import mlflow

from cifar_mlflow.interrupt import Interrupted, StopRequest
from cifar_mlflow.tracking.store import absolute_uri
from serving.batch.dataset import Dataset
from serving.batch.find import find_images
from serving.batch.pipeline import check_top_k, model_digest, start_summary
from serving.batch.progress import progress
from serving.batch.remote import is_url, local_path
from serving.batch.summary import Summary
from serving.batch.worker import Job
from serving.registry.loader import load_scorer, pin_model

logger = logging.getLogger("cifar_mlflow.classify")


def classify_on_engine(
    paths: Sequence[str],
    model_uri: str,
    output: str,
    *,
    engine: str = "local",
    cluster: str | None = None,
    top_k: int | None = None,
) -> Summary:
    """Classify the same inputs as `classify` into a folder of Parquet files (see `Dataset`).

    The folder then has exactly one row for each image. The same call continues an interrupted one, and adds
    the rows of new images and replaces those of changed ones.

    Args:
        output: the folder, local or at a URL; workers on other machines must be able to write there.
        engine: a module of `serving.batch.engines`.
        cluster: see `run` of the engine.

    Raises:
        UsageError: a path, the model, `output` or `top_k` cannot be used, or the engine is not installed.
        CifarError: there are no images, or the storage or the engine failed; finished parts are kept.
        Interrupted: a signal came; finished parts are in `output`.
    """
    model_uri = pin_model(model_uri)  # an alias may move while the images are listed
    scorer = load_scorer(model_uri)
    top_k = check_top_k(top_k, scorer)
    digest = model_digest(scorer)
    place = output if is_url(local_path(output)) else str(Path(local_path(output)).absolute())
    run = importlib.import_module(f"serving.batch.engines.{engine}").run
    found = find_images(paths)
    summary = start_summary(found, scorer, output)
    job = Job(place, model_uri, absolute_uri(mlflow.get_tracking_uri()), digest, top_k)
    with ExitStack() as stack:
        dataset = stack.enter_context(Dataset(place, digest, top_k))
        kept, parts = dataset.plan(found)
        advance = stack.enter_context(progress(found.count))
        _count(summary, dataset, kept, earlier=True)
        advance(summary.earlier)
        # Signals end an engine at once: the next run computes unfinished parts again.
        stop = stack.enter_context(StopRequest())
        try:
            with stop.at_once(), closing(run(job, parts, cluster)) as names:
                for name in names if parts else ():
                    before = summary.done
                    _count(summary, dataset, [name], earlier=False)
                    advance(summary.done - before)
        except KeyboardInterrupt as error:
            if stop.signum is None:
                raise
            interruption = Interrupted(stop.signum)  # Ray replaces it by its base class
            logger.warning("Stopped by %s after %s", interruption, summary.resume_hint)
            raise interruption from error
    return summary


def _count(summary: Summary, dataset: Dataset, names: list[str], *, earlier: bool) -> None:
    for name in names:
        for path, outcome in dataset.outcomes(name):
            summary.add(path, outcome, earlier=earlier)

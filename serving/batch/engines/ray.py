"""Engine `ray`: Ray Data runs actors that hold a scorer each; a part is a batch."""

import logging
import os
import pickle
import socket
import warnings
from collections.abc import Generator
from typing import Any

from cifar_mlflow.errors import CifarError, first_line
from cifar_mlflow.extras import import_extra, install_command
from cifar_mlflow.interrupt import keep_handlers
from serving.batch.dataset import Part
from serving.batch.worker import Job, classify_part, load_answerer

THREADS = 1  # of an actor, which occupies one core
RETRIES = 3  # of a part whose worker died, as on Spark; by default, Ray never gives up
CONNECT_SECONDS = 10


class PartScorer:
    """The actor: loads the scorer once, then classifies parts.

    Ray starts an actor again when its process dies, and repeats the part that it was working on.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._answerer = load_answerer(job, THREADS)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        parts = [pickle.loads(content) for content in batch["part"]]
        return {"name": [classify_part(part, self._job, self._answerer) for part in parts]}


def run(job: Job, parts: list[Part], cluster: str | None) -> Generator[str]:
    """Yield the name of each part when its file is written.

    Args:
        cluster: address of a Ray cluster. Default: RAY_ADDRESS, or else a cluster of this machine's cores
            that ends with the job.

    Raises:
        UsageError: Ray is not installed.
        CifarError: the cluster does not answer, or a worker failed.
    """
    ray = import_extra("ray", install_command("ray"), "--engine ray")
    data = import_extra("ray.data", install_command("ray"), "--engine ray")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # an error is reported once, below
    try:
        if address := cluster or os.environ.get("RAY_ADDRESS"):
            _check_address(address)
        with keep_handlers():
            ray.init(
                address=cluster, logging_level=logging.WARNING, log_to_driver=False, configure_logging=False
            )
    except Exception as error:  # Ray raises plain exceptions
        raise CifarError(f"Ray at {cluster or 'this machine'} did not start: {first_line(error)}") from error
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False  # `progress` shows it
        context.raise_original_map_exception = True  # Ray's own says only that a function failed
        cores = int(ray.cluster_resources().get("CPU", 1))
        with warnings.catch_warnings():
            # `max_task_retries` has no parameter of its own; Ray 2.64 is to remove the way that it is given.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            names = data.from_items(
                [{"part": pickle.dumps(part)} for part in parts], override_num_blocks=len(parts)
            ).map_batches(
                PartScorer,
                fn_constructor_args=(job,),
                batch_size=1,
                num_cpus=THREADS,
                max_task_retries=RETRIES,
                compute=data.ActorPoolStrategy(min_size=1, max_size=max(1, min(cores, len(parts)))),
            )
        for row in names.iter_rows():
            yield row["name"]
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise CifarError(f"Ray stopped: {first_line(cause)}; the same command continues") from error
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Connect once to an address with a port: Ray itself tries for half an hour.

    Raises:
        OSError: nothing answers there.
    """
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdecimal():
        with socket.create_connection((host, int(port)), CONNECT_SECONDS):
            pass

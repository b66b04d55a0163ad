"""Engine `spark`: Spark's Python workers call the registered MLflow model; a part is a task."""

import os
import pickle
import re
import shutil
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PyFuncModel

from cifar_mlflow.errors import CifarError, UsageError, first_line
from cifar_mlflow.extras import import_extra, install_command
from cifar_mlflow.interrupt import keep_handlers
from cifar_mlflow.scorer.phone_formats import in_common_format
from serving.batch.dataset import Part, finished_parts
from serving.batch.worker import Job, classify_part

# This machine's cores; a task may fail three times, as on a cluster (Spark's `local[*]` allows no failure).
LOCAL = "local[*,4]"
SECONDS_BETWEEN_LOOKS = 1.0


def run(job: Job, parts: list[Part], cluster: str | None) -> Generator[str]:
    """Yield the name of each part when its file is found in the output.

    Args:
        cluster: master, such as spark://host:7077 or yarn. Default: that of `spark-submit`, or else this
            machine.

    Raises:
        UsageError: PySpark or Java is not installed.
        CifarError: the cluster does not answer, or a task failed four times.
    """
    sql = import_extra("pyspark.sql", install_command("spark"), "--engine spark")
    errors = import_extra("pyspark.errors", install_command("spark"), "--engine spark")
    java = import_extra("py4j.protocol", install_command("spark"), "--engine spark")
    if "JAVA_HOME" not in os.environ and shutil.which("java") is None:
        raise UsageError(
            "--engine spark needs Java, which is not installed (Debian: apt install default-jre-headless)"
        )
    builder = sql.SparkSession.builder.appName("cifar-mlflow classify")
    builder = builder.config("spark.ui.showConsoleProgress", "false").config("spark.log.level", "OFF")
    # Spark's own default is the first `python3` in PATH.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if cluster or "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit sets the variable
        builder = builder.master(cluster or LOCAL)
    spark = None
    try:
        with keep_handlers():
            spark = builder.getOrCreate()
        tasks = [(pickle.dumps(part),) for part in parts]
        frame = spark.sparkContext.parallelize(tasks, len(tasks)).toDF("part binary")
        names = frame.mapInPandas(_Task(job), "name string")
        yield from _watch(names, job, {part.name for part in parts})
    except (errors.PySparkException, java.Py4JError) as error:
        reason = _reason(error)
        if spark is None:
            raise CifarError(f"Spark at {cluster or 'this machine'} did not start: {reason}") from error
        raise CifarError(f"Spark stopped: {reason}; the same command continues") from error
    finally:
        if spark is not None:
            spark.stop()


class PyfuncAnswerer:
    """Pass the bytes to an MLflow model that `register` made."""

    parallel = 1

    def __init__(self, model: PyFuncModel, top_k: int) -> None:
        self._model = model
        self._params = {"top_k": top_k, "on_error": "null"}

    def prepare(self, data: bytes) -> bytes:
        return in_common_format(data)

    def answers(self, images: list[bytes]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self._model.predict(pd.DataFrame({"image": images}), self._params)
        return answers


class _Task:
    """The function that Spark runs on its workers."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            parts = [pickle.loads(content) for content in frame["part"]]
            answerer = _load_pyfunc(self._job)
            names = [classify_part(part, self._job, answerer) for part in parts]
            yield pd.DataFrame({"name": names})


@cache  # Spark keeps the worker process for further tasks
def _load_pyfunc(job: Job) -> PyfuncAnswerer:
    mlflow.set_tracking_uri(job.tracking_uri)
    return PyfuncAnswerer(mlflow.pyfunc.load_model(job.model_uri), job.top_k)


def _watch(names: Any, job: Job, pending: set[str]) -> Generator[str]:
    """Run the Spark job in a thread, and yield the name of each part that appears in the output."""
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(names.collect)
        try:
            while not running.done():
                wait([running], SECONDS_BETWEEN_LOOKS)
                finished = pending & finished_parts(job.output)
                pending -= finished
                yield from finished
            running.result()
        finally:
            names.sparkSession.sparkContext.cancelAllJobs()
    yield from pending & finished_parts(job.output)


def _reason(error: BaseException) -> str:
    """Return the line of a Java or Python stack trace that says what failed."""
    lines = [
        line.removeprefix(": ")  # before the class of a Java error
        for line in str(error).splitlines()
        if line and not line.startswith(("\t", " "))
    ]
    named = [
        line for line in lines if line.partition(":")[0].rpartition(".")[2].endswith(("Error", "Exception"))
    ]
    return re.sub(rf"^{UsageError.__module__}\.\w+: ", "", named[-1]) if named else first_line(error)

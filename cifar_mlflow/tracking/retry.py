"""The one retry policy for calls to MLflow, and the words for what went wrong."""

import logging
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

import mlflow
import requests
from mlflow.exceptions import MlflowException, RestException

from cifar_mlflow.errors import CifarError, UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long the end of a run waits for a tracking server that is away.
PATIENCE_SECONDS = float(os.environ.get("CIFAR_MLFLOW_PATIENCE", "120"))
# MLflow's own retries would hold up a call for minutes, and make a second version or run where only an answer
# was lost; ours report what they wait for, and look first.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# It would draw a bar for each small file.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
LONGEST_PAUSE_SECONDS = 10.0
# What MLflow says of a database that cannot be written at the moment, or of a server that is too busy.
_OUTAGES = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"}
# Of a download of several files MLflow tells only the texts of what went wrong.
_DOWNLOAD_FAILED = "The following failures occurred while downloading"
_IN_A_DOWNLOAD = re.compile(
    r"5\d\d Server Error|HTTPS?ConnectionPool|Connection \w+|timed out|API request to"
)


def is_outage(error: Exception) -> bool:
    """Whether trying again later can help: the server or its database is away.

    Anything else (the run was deleted, a value is not allowed) will not mend itself.
    """
    if str(error).startswith(_DOWNLOAD_FAILED):
        return _IN_A_DOWNLOAD.search(str(error)) is not None
    if isinstance(error, MlflowException):
        # MLflow gives the code of a connection that failed to any error that was given no code.
        no_connection = str(error).startswith("API request to") or isinstance(error, RestException)
        return error.error_code in _OUTAGES or (error.error_code == "INTERNAL_ERROR" and no_connection)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, requests.RequestException | ConnectionError | TimeoutError)


def first_line(error: BaseException, limit: int = 200) -> str:
    """The text of an error in a form that fits into a log line or a tag."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    line = lines[-1] if lines[0].startswith(_DOWNLOAD_FAILED) else lines[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"


def retry_on_outage(call: Callable[[], T], seconds: float) -> T:
    """`call()`, tried again while the tracking server is away, for `seconds` at the most."""
    deadline = time.monotonic() + seconds
    pause = 0.5
    while True:
        try:
            return call()
        except Exception as error:
            if not is_outage(error) or time.monotonic() + pause > deadline:
                raise
            logger.warning("MLflow does not answer (%s); trying again in %.0f s.", first_line(error), pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def call_mlflow(call: Callable[[], T], missing: str | None = None) -> T:
    """`call()`, a question to MLflow, and again while it does not answer.

    Args:
        missing: what to say where MLflow does not have what is asked for.

    Raises:
        UsageError: `missing`.
        CifarError: MLflow stays away, or refuses.
    """
    try:
        return retry_on_outage(call, PATIENCE_SECONDS)
    except CifarError:
        raise
    except Exception as error:  # each kind of store has errors of its own
        if missing and isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UsageError(missing) from error
        problem = "does not answer" if is_outage(error) else "refuses"
        raise CifarError(f"MLflow at {mlflow.get_registry_uri()} {problem}: {first_line(error)}") from error

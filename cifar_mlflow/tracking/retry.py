"""The retry policy for calls to a server or database during an outage, and the rules for MLflow's errors."""

import logging
import os
import re
import threading
from collections.abc import Callable
from typing import TypeVar

import mlflow
import requests
from mlflow.exceptions import MlflowException, RestException
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential

from cifar_mlflow.environment import patience_seconds
from cifar_mlflow.errors import DOWNLOAD_FAILED, CifarError, UsageError, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

# MLflow's own retries block for minutes without a word, and repeat a "create" whose response was lost.
# Ours report the outage, and callers check whether the first attempt succeeded.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# MLflow would print the address of a run with the password; `tracked_run` logs it without.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow would draw a progress bar for each small file.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
UNREPORTED_PAUSE_SECONDS = 1.0
# A server that has not answered this process yet is probably the wrong one: no time was invested so far.
FIRST_ANSWER_SECONDS = 3.0
_has_answered = threading.Event()
# Error codes of a database that cannot be written at the moment, or of an overloaded server.
_OUTAGE_CODES = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"}
# The cause at the end of what requests and urllib3 say in 300 characters.
_CAUSE = re.compile(r"(?:\[Errno -?\d+\] |Caused by \w+\W+)([^'\")[]+)")
_OUTAGE_IN_DOWNLOAD = re.compile(
    r"5\d\d Server Error|HTTPS?ConnectionPool|Connection \w+|timed out|API request to"
)


def outage_policy(
    is_outage: Callable[[BaseException], bool],
    seconds: float,
    before_sleep: Callable[[BaseException, float], None],
) -> Retrying:
    """Return a policy that repeats a call during an outage; use it as `outage_policy(...)(call)`.

    The pause grows from 0.5 s to 10 s. Any other error, and the last one when time is up, is raised as it is.

    Args:
        is_outage: decides whether an error is worth another attempt.
        seconds: time after which to give up, counted from the first attempt; `math.inf` never gives up.
        before_sleep: called before each pause with the error and the length of the pause in seconds.
    """

    def report(state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        before_sleep(error, state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(is_outage),
        wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        stop=stop_before_delay(seconds),
        before_sleep=report,
        reraise=True,
    )


def is_outage(error: BaseException) -> bool:
    """Return whether MLflow or its database is unavailable, so that the same call may succeed later.

    Other errors (a deleted run, a value that is not allowed) will not go away.
    """
    if str(error).startswith(DOWNLOAD_FAILED):
        return _OUTAGE_IN_DOWNLOAD.search(str(error)) is not None
    if isinstance(error, MlflowException):
        # MLflow uses INTERNAL_ERROR both for a failed connection and for any error without a code.
        no_connection = str(error).startswith("API request to") or isinstance(error, RestException)
        return error.error_code in _OUTAGE_CODES or (error.error_code == "INTERNAL_ERROR" and no_connection)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, requests.RequestException | ConnectionError | TimeoutError)


def retry_on_outage(call: Callable[[], T], seconds: float) -> T:
    """Return `call()`; repeat it while MLflow is unavailable, for up to `seconds`."""

    def warn(error: BaseException, pause: float) -> None:
        if pause > UNREPORTED_PAUSE_SECONDS:
            logger.warning("MLflow does not answer (%s); trying again in %.0f s.", outage_cause(error), pause)

    result = outage_policy(is_outage, seconds, warn)(call)
    _has_answered.set()
    return result


def outage_cause(error: BaseException) -> str:
    """Return why MLflow cannot be reached, in a few words if they can be found: `Connection refused`."""
    found = _CAUSE.findall(str(error))
    return found[-1].strip() if found else first_line(error)


def no_answer(store: str, error: BaseException) -> CifarError:
    """Return the error of a command that an outage of MLflow, at the address `store`, ends."""
    return CifarError(f"MLflow at {store} does not answer: {outage_cause(error)}")


def call_mlflow(call: Callable[[], T], missing: str | None = None) -> T:
    """Return `call()`, a request to MLflow; repeat it during an outage, and reword its errors.

    Without CIFAR_MLFLOW_PATIENCE, a process whose first request gets no answer gives up after seconds.

    Args:
        missing: message for an object that MLflow does not have.

    Raises:
        UsageError: with the message `missing`.
        CifarError: MLflow stays unavailable or refuses the request.
    """
    patience = patience_seconds() if _has_answered.is_set() else patience_seconds(FIRST_ANSWER_SECONDS)
    try:
        return retry_on_outage(call, patience)
    except CifarError:
        raise
    except Exception as error:  # each kind of store raises errors of its own
        if missing and isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UsageError(missing) from error
        store = mlflow.get_registry_uri()
        if is_outage(error):
            raise no_answer(store, error) from error
        raise CifarError(f"MLflow at {store} refuses: {first_line(error)}") from error

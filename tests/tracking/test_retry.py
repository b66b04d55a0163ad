"""The retry policy: which errors are repeated, how often, and what is raised in the end."""

import math
from collections.abc import Callable

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.tracking.retry import call_mlflow, is_outage, outage_policy, retry_on_outage


def failing(times: int, error: Exception) -> Callable[[], int]:
    """Return a function that raises `error` for its first calls and then returns the number of calls."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return calls

    return call


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("API request to http://host failed", INTERNAL_ERROR), True),
        (MlflowException("an error without a code"), False),
        (MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), False),
        (MlflowException("not allowed", INVALID_PARAMETER_VALUE), False),
        (ConnectionResetError(), True),
        (requests.Timeout(), True),
        (MlflowException("The following failures occurred while downloading\n503 Server Error: x"), True),
        (MlflowException("The following failures occurred while downloading\n404 Client Error: x"), False),
        (ValueError("a defect"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_an_outage_is_told_from_other_errors(error: BaseException, away: bool) -> None:
    assert is_outage(error) is away


def test_a_call_is_repeated_until_the_server_is_back() -> None:
    assert retry_on_outage(failing(1, ConnectionResetError()), seconds=60) == 2


def test_the_last_error_is_raised_as_it_is_when_time_is_up() -> None:
    error = ConnectionResetError("gone")
    with pytest.raises(ConnectionResetError) as raised:
        retry_on_outage(failing(9, error), seconds=0.1)
    assert raised.value is error


def test_other_errors_are_raised_at_once() -> None:
    call = failing(1, ValueError("a defect"))
    with pytest.raises(ValueError, match="a defect"):
        retry_on_outage(call, seconds=60)
    assert call() == 2


def test_a_policy_without_a_limit_reports_each_pause() -> None:
    pauses: list[float] = []
    policy = outage_policy(is_outage, math.inf, lambda error, pause: pauses.append(pause))
    policy.sleep = lambda seconds: None
    assert policy(failing(7, ConnectionResetError())) == 8
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]


def test_call_mlflow_explains_what_is_missing_refused_or_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0")
    with pytest.raises(UsageError, match="there is no such model"):
        call_mlflow(failing(9, MlflowException("x", RESOURCE_DOES_NOT_EXIST)), "there is no such model")
    with pytest.raises(CifarError, match="refuses: x"):
        call_mlflow(failing(9, MlflowException("x", INVALID_PARAMETER_VALUE)))
    with pytest.raises(CifarError, match="does not answer: away"):
        call_mlflow(failing(9, ConnectionResetError("away")))


def test_the_patience_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "60")
    assert call_mlflow(failing(1, ConnectionResetError())) == 2
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "abc")
    with pytest.raises(UsageError, match="'abc'"):
        call_mlflow(failing(0, ConnectionResetError()))

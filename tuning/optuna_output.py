"""Silence Optuna where this package reports the same thing itself, or uses a feature on purpose."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning


def silence_optuna() -> None:
    """Turn off Optuna's log lines: this package logs the progress of each trial itself."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def ignore_optuna_warnings() -> Iterator[None]:
    """Ignore warnings about experimental features and about heartbeats without `Study.optimize`.

    Also works as a decorator, `@ignore_optuna_warnings()`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with", UserWarning)
        yield

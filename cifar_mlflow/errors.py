"""Errors meant for a person: one or two lines that say what was wrong, with which value, and what to do.

The command line prints their text without a traceback and exits with `exit_code`. Everything else that
escapes is a defect of ours and keeps its traceback.
"""

from cifar_mlflow.names import printable


class CifarError(Exception):
    """Something outside the program failed: data, network, disk, tracking server. Exit code 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it names files, and also becomes a tag in MLflow


class UsageError(CifarError):
    """The request itself was wrong: an unknown name, a value out of bounds, a missing file. Exit code 2."""

    exit_code = 2


class TrainingDivergedError(CifarError):
    """The loss became NaN or infinite."""

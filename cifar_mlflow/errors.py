"""Errors for the user: one or two lines that say what was wrong, with which value, and what to do.

The command line prints their message without a traceback and exits with `exit_code`. Any other exception that
escapes is a defect of this program and keeps its traceback.
"""

from cifar_mlflow.names import printable
from cifar_mlflow.redact import redact

# When several files are downloaded, MLflow raises one error that keeps only the messages of the causes.
DOWNLOAD_FAILED = "The following failures occurred while downloading"


class CifarError(Exception):
    """A failure outside the program: data, network, disk, tracking server. Exit code 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # It may quote an address or name a file, and it also becomes a tag in MLflow.
        super().__init__(redact(printable(message)))


class UsageError(CifarError):
    """An invalid request: an unknown name, a value out of bounds, a missing file. Exit code 2."""

    exit_code = 2


class TrainingDivergedError(CifarError):
    """The loss became NaN or infinite."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the message of a library's error, shortened to one line for a message, a log or a tag."""
    # SQLAlchemy adds the statement to the driver's message, and MLflow quotes SQLAlchemy.
    cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
    lines = (redact(str(cause)).strip() or type(cause).__name__).splitlines()
    line = lines[-1] if lines[0].startswith(DOWNLOAD_FAILED) else lines[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"

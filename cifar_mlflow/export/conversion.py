"""Run converters and runtimes of other projects, which print much and raise errors of any kind."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

from cifar_mlflow.errors import CifarError, first_line

logger = logging.getLogger(__name__)

STDOUT, STDERR = 1, 2


@contextmanager
def conversion(name: str) -> Iterator[None]:
    """Hide the output of the block, that of C++ included, and report its errors in one line.

    Args:
        name: of the library that does the work.

    Raises:
        CifarError: the library failed; its output and the traceback are logged as debug messages.
    """
    try:
        with _hidden_output():
            yield
    except (CifarError, OSError, MemoryError):
        raise
    except Exception as error:
        logger.debug("%s failed", name, exc_info=True)
        raise CifarError(f"{name} failed with this model: {first_line(error)}") from error


@contextmanager
def _hidden_output() -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (STDOUT, STDERR)]
    with TemporaryFile() as output:
        try:
            for number, _ in saved:
                os.dup2(output.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            output.seek(0)
            logger.debug("%s", output.read().decode(errors="replace"))

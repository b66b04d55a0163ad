"""How far the classification is: a bar in a terminal, a log line now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifar_mlflow.console import console

SECONDS_BETWEEN_LOG_LINES = 10
logger = logging.getLogger("cifar_mlflow.classify")


@contextmanager
def progress(files: int) -> Iterator[Callable[[int], None]]:
    """To be called with how many more files are done."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    with Progress("classifying", *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=files, speed="")
        done, began = 0, time.monotonic()
        said = began

        def advance(more: int) -> None:
            nonlocal done, said
            done += more
            now = time.monotonic()
            speed = f"{done / max(now - began, 1e-6):,.0f} a second"
            bar.update(task, advance=more, speed=speed)
            if not console.is_terminal and now - said >= SECONDS_BETWEEN_LOG_LINES:
                said = now
                logger.info("classified %s of %s files, %s", f"{done:,}", f"{files:,}", speed)

        yield advance

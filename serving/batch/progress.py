"""The progress of a classification: a bar in a terminal, a log line every ten seconds elsewhere."""

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
    """Yield a function to call with the number of files that were finished since the last call."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    with Progress("classifying", *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=files, speed="")
        done, start = 0, time.monotonic()
        last_line = start

        def advance(count: int) -> None:
            nonlocal done, last_line
            done += count
            now = time.monotonic()
            speed = f"{done / max(now - start, 1e-6):,.0f} files/s"
            bar.update(task, advance=count, speed=speed)
            if not console.is_terminal and now - last_line >= SECONDS_BETWEEN_LOG_LINES:
                last_line = now
                logger.info("Classified %s of %s files, %s", f"{done:,}", f"{files:,}", speed)

        yield advance

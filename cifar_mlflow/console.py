"""What a person sees while the work goes on: a bar in a terminal, plain log lines elsewhere."""

import logging

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Standard output is for results; everything about the way there goes to standard error.
console = Console(stderr=True)


def set_up_logging() -> None:
    """Send the package's log lines to standard error, above the bar where there is one."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("cifar_mlflow")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def training_bar() -> Progress:
    """A bar over all steps of a training; shows nothing where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

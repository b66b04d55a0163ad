"""Terminal output while the work goes on: a progress bar in a terminal, plain log lines elsewhere."""

import logging
import sys
import traceback
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cifar_mlflow.environment import rank, rank_prefix
from cifar_mlflow.names import printable
from cifar_mlflow.redact import redact

# Standard output is for results; everything else goes to standard error.
console = Console(stderr=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(rank_prefix() + super().format(record)))


def set_up_logging() -> None:
    """Send the package's log lines to standard error, above the progress bar, without passwords."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
        handler.setFormatter(_Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("cifar_mlflow")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    sys.excepthook = _print_traceback


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a defect, without passwords."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(printable(redact(text)), file=sys.stderr, end="")


def training_bar() -> Progress:
    """Return a progress bar for all steps of a training, shown by one process and only in a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal or rank() > 0,
    )

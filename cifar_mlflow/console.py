"""Terminal output during a job: progress bars in a terminal, plain log lines elsewhere."""

import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cifar_mlflow.environment import rank, rank_prefix
from cifar_mlflow.names import printable
from cifar_mlflow.redact import redact

# Standard output is for results; everything else goes to standard error.
console = Console(stderr=True)
logger = logging.getLogger(__name__)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(rank_prefix() + super().format(record)))


class _TerminalHandler(logging.Handler):
    """Prints log lines above the progress bar; the terminal wraps them, so that commands can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            console.print(self.format(record), markup=False, emoji=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


def set_up_logging() -> None:
    """Send the package's log lines to standard error, without passwords."""
    handler: logging.Handler
    if console.is_terminal:
        handler = _TerminalHandler()
        handler.setFormatter(_Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("cifar_mlflow")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # MLflow, which is imported later, would announce each step, and each of many migrations of a new store.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    sys.excepthook = _print_traceback


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a defect, without passwords."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(printable(redact(text)), file=sys.stderr, end="")


def training_bar() -> Progress:
    """Return a progress bar for all steps of a training, shown by one process and only in a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        disable=not console.is_terminal or rank() > 0,
    )


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show what the block does, which takes seconds: in a terminal while it lasts, else by a log line."""
    if rank() > 0:
        yield
    elif console.is_terminal:
        with console.status(text):
            yield
    else:
        logger.info("%s", text)
        yield


@contextmanager
def loading(*, for_a_job: bool = False) -> Iterator[None]:
    """Show that libraries are being imported; pause the garbage collector, then exempt them.

    The imports create about a million objects that live as long as the process. Scanning them takes one of
    the four seconds before the first step of a training, and a second when the process ends.

    Args:
        for_a_job: the command takes long, so that a log line is due outside of a terminal, too.
    """
    gc.disable()
    try:
        with spinner("Loading the libraries") if for_a_job or console.is_terminal else nullcontext():
            yield
    finally:
        gc.freeze()
        gc.enable()


class Steps:
    """The steps of a job: each is announced by a bar in a terminal or a log line, and its time is measured.

    Attributes:
        seconds: time by kind of step.
    """

    def __init__(self, *, announced: bool = True) -> None:
        self.seconds: dict[str, float] = {}
        self._announced = announced

    @contextmanager
    def step(self, kind: str, text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Measure the block as a step of this kind.

        Args:
            total: amount of work, for a bar; None if it is unknown.

        Yields:
            A function that receives the amount of work done since its last call.
        """
        start = time.monotonic()
        try:
            if not self._announced:
                yield lambda done: None
            elif console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
                with Progress(*columns, console=console, transient=True) as bar:
                    task = bar.add_task(text, total=total)
                    yield lambda done: bar.advance(task, done)
            else:
                logger.info("%s", text)
                yield lambda done: None
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.monotonic() - start


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], flexible: str) -> None:
    """Print a table to standard output.

    Args:
        flexible: the column whose texts are broken into lines if the terminal is too narrow.
    """
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column != flexible, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    # A narrow terminal breaks the lines itself, since the flexible column would have one letter per line.
    # Outside of a terminal, a table takes the width that it needs.
    terminal = Console()
    width = max(terminal.width, 100) if terminal.is_terminal else 10_000
    Console(width=width, highlight=False, markup=False).print(table)


def percent(share: float) -> str:
    """Format a fraction in 0..1 as a percentage, right-aligned in seven characters."""
    return f"{100 * share:5.1f} %"


def duration(seconds: float) -> str:
    """Format a duration, rounded: `85 s`, `46 min`, `3 h 05 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"

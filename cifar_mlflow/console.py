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
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cifar_mlflow.environment import rank, rank_prefix
from cifar_mlflow.names import printable
from cifar_mlflow.redact import redact

NARROWEST, UNLIMITED = 80, 10_000  # columns of a table

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


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to standard output; its column `run` has ids of runs.

    If the terminal is too narrow, the id is below the text of the first other column, and the other texts are
    broken into lines, so that the id stays in one piece and can be copied.
    """
    texts = [[printable(text) for text in row] for row in rows]
    # Outside of a terminal, a table takes the width that it needs. A very narrow terminal breaks the lines.
    terminal = Console()
    width = max(terminal.width, NARROWEST) if terminal.is_terminal else UNLIMITED
    table = _table(columns, texts)
    if Measurement.get(terminal, terminal.options.update(max_width=UNLIMITED), table).maximum > width:
        at = columns.index("run")
        ids = [row.pop(at) for row in texts]
        names = [name for name in columns if name != "run"]
        table = _table(
            [f"{names[0]} / run", *names[1:]],
            [[f"{first}\n{id_}", *rest] for (first, *rest), id_ in zip(texts, ids, strict=True)],
        )
        table.columns[0].width = max(map(len, ids))
    Console(width=width, highlight=False, markup=False).print(table)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def percent(share: float) -> str:
    """Format a fraction in 0..1 as a percentage, right-aligned in seven characters."""
    return f"{100 * share:5.1f} %"


def duration(seconds: float) -> str:
    """Format a duration, rounded: `85 s`, `46 min`, `3 h 05 min`; the longer it is, the coarser the unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"

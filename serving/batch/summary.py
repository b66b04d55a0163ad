"""The summary of a classification, and how it is printed."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from serving.batch.rows import FileError, Outcome

# Up to this many files, each gets a line of its own.
MAX_LISTED_FILES = 50
MAX_LISTED_ERRORS = 100


@dataclass
class Summary:
    """Counts, and the details of the first files.

    Attributes:
        files: number of files that were found.
        output, sorted_into, explained_in: places of the answers, of the copies, and of the pictures that
            explain the answers.
        done: number of files that were finished so far.
        earlier: number of those that `output` had rows for; the counts below include them.
        labels: number of files with an answer, by class.
        uncertain: number of those with an uncertain answer, by class.
        failures: number of files without an answer, and of folders that cannot be read, by error code.
        errors: the first MAX_LISTED_ERRORS of them.
        outcomes: every file with an answer, by path, if there are at most MAX_LISTED_FILES.
        confidence_below: answers with less confidence are uncertain; the other uncertain ones are of images
            unlike those of the training.
    """

    files: int
    output: str | None = None
    sorted_into: Path | None = None
    explained_in: Path | None = None
    done: int = 0
    earlier: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    uncertain: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    errors: list[FileError] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    confidence_below: float = 0.0

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def exit_code(self) -> int:
        """0 if at least one file has an answer, else 1."""
        return 0 if self.labels else 1

    @property
    def resume_hint(self) -> str:
        """Suffix for the "stopped" message: how much is done, and how to continue."""
        kept = "they are in the output, and" if self.output else "with --output FILE they would be kept, and"
        return f"{self.done:,} of {self.files:,} files; {kept} the same command continues from there"

    def add(self, path: str, outcome: Outcome, *, earlier: bool) -> None:
        """Count a file; `path` as in the rows of results."""
        self.done += 1
        self.earlier += earlier
        if outcome.label is None:
            if outcome.error:
                self.add_error(outcome.error)
            return
        self.labels[outcome.label] += 1
        self.uncertain[outcome.label] += bool(outcome.uncertain)
        if self.files <= MAX_LISTED_FILES:
            self.outcomes[path] = outcome

    def add_error(self, error: FileError) -> None:
        self.failures[error.code] += 1
        if len(self.errors) < MAX_LISTED_ERRORS:
            self.errors.append(error)


def print_summary(summary: Summary) -> None:
    """Print the answers (for many files: counts by class) and the files that could not be classified."""
    # Outside of a terminal, a table takes the width that it needs.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False)
    if summary.labels:
        console.print(_file_table(summary) if summary.outcomes else _class_table(summary))
        if not summary.outcomes and not summary.output:
            console.print("The answer for each file: add --output answers.csv")
    if summary.earlier:
        console.print(
            f"{summary.earlier:,} of {summary.files:,} files were already in {summary.output}", soft_wrap=True
        )
    if summary.failed:
        reasons = ", ".join(f"{code} {count:,}" for code, count in summary.failures.most_common())
        console.print(f"{summary.failed:,} could not be classified ({reasons}):", soft_wrap=True)
    for error in summary.errors:
        console.print(f"  {in_one_line(error.path)}: {error.message}", soft_wrap=True)
    if more := summary.failed - len(summary.errors):
        console.print(
            f"  and {more:,} more" + (f": see {summary.output}" if summary.output else ""), soft_wrap=True
        )
    if summary.output:
        console.print(f"answers: {summary.output}", soft_wrap=True)
    if summary.sorted_into:
        console.print(f"copies:  {summary.sorted_into}", soft_wrap=True)
    if summary.explained_in:
        console.print(f"explanations: {summary.explained_in}", soft_wrap=True)


def in_one_line(text: str) -> str:
    """Escape line breaks and control characters, which a file name may contain to mislead the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _file_table(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("file", overflow="fold")
    table.add_column("label")
    table.add_column("confidence", justify="right")
    table.add_column("")
    for path, outcome in summary.outcomes.items():
        label, confidence = in_one_line(outcome.label or ""), outcome.confidence or 0
        doubt = _reason(confidence, summary.confidence_below) if outcome.uncertain else ""
        table.add_row(in_one_line(path), label, f"{confidence:.1%}", doubt)
    return table


def _reason(confidence: float, confidence_below: float) -> str:
    """Return why an answer is uncertain, as the web page does."""
    if confidence_below > 1:
        return "not sure: the model never is"
    if confidence < confidence_below:
        return f"not sure: below {confidence_below:.1%}"
    return "not sure: unlike the training images"


def _class_table(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("label")
    for title in ("files", "not sure", "share"):
        table.add_column(title, justify="right")
    rows = [(label, count, summary.uncertain[label]) for label, count in summary.labels.most_common()]
    for label, count, uncertain in [*rows, ("all", summary.labels.total(), summary.uncertain.total())]:
        table.add_row(in_one_line(label), f"{count:,}", f"{uncertain:,}", f"{uncertain / count:.0%}")
    return table

"""What came of a classification, and how a person is told."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from serving.batch.rows import Problem, Verdict

# Up to here each file gets a line of its own.
FILES_IN_A_TABLE = 50
PROBLEMS_TOLD = 100


@dataclass
class Summary:
    """Counts, and the particulars of some files.

    Attributes:
        files: how many were found.
        output, sorted_into: where the answers and the copies are.
        done: how many were looked at so far.
        known: how many of these were in `output` already; they are counted below like the others.
        labels: files with an answer by class.
        unsure: those of them of which the model is not sure.
        broken: how many files have no answer, and folders that could not be looked into.
        problems: the first PROBLEMS_TOLD of them.
        verdicts: of all files with an answer by path, if there are no more than FILES_IN_A_TABLE.
    """

    files: int
    output: Path | None = None
    sorted_into: Path | None = None
    done: int = 0
    known: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    unsure: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    problems: list[Problem] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if at least one file has an answer, else 1."""
        return 0 if self.labels else 1

    @property
    def resume_hint(self) -> str:
        """How much is done, and how to go on from there; to be put behind the news that it was stopped."""
        kept = "they are kept, and" if self.output else "with --output FILE they would be kept, and"
        return f"{self.done:,} of {self.files:,} files; {kept} the same command goes on from there"

    def add(self, path: str, verdict: Verdict, *, known: bool) -> None:
        """Count a file in; `path` as in the rows of results."""
        self.done += 1
        self.known += known
        if verdict.label is None:
            if verdict.problem:
                self.add_problem(verdict.problem)
            return
        self.labels[verdict.label] += 1
        self.unsure[verdict.label] += bool(verdict.uncertain)
        if self.files <= FILES_IN_A_TABLE:
            self.verdicts[path] = verdict

    def add_problem(self, problem: Problem) -> None:
        self.broken += 1
        if len(self.problems) < PROBLEMS_TOLD:
            self.problems.append(problem)


def show(summary: Summary) -> None:
    """Print the answers (for many files: how many of each class), and which files are broken."""
    # Where no person sees it, a table is as wide as it needs.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False)
    if summary.labels:
        console.print(_answers(summary) if summary.verdicts else _classes(summary))
    if summary.known:
        console.print(
            f"{summary.known:,} of {summary.files:,} files were in {summary.output} already", soft_wrap=True
        )
    if summary.broken:
        console.print(f"{summary.broken:,} could not be classified:", soft_wrap=True)
    for problem in summary.problems:
        console.print(f"  {printable(problem.path)}: {problem.message}", soft_wrap=True)
    if more := summary.broken - len(summary.problems):
        console.print(
            f"  and {more:,} more" + (f": see {summary.output}" if summary.output else ""), soft_wrap=True
        )
    if summary.output:
        console.print(f"answers: {summary.output}", soft_wrap=True)
    if summary.sorted_into:
        console.print(f"copies:  {summary.sorted_into}", soft_wrap=True)


def printable(text: str) -> str:
    """Text that stays in its line and cannot command the terminal: as a name of a file could."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _answers(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("file", overflow="fold")
    table.add_column("label")
    table.add_column("confidence", justify="right")
    table.add_column("")
    for path, verdict in summary.verdicts.items():
        label, confidence = printable(verdict.label or ""), f"{verdict.confidence or 0:.1%}"
        table.add_row(printable(path), label, confidence, "not sure" if verdict.uncertain else "")
    return table


def _classes(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("label")
    for title in ("files", "not sure", ""):
        table.add_column(title, justify="right")
    rows = [(label, count, summary.unsure[label]) for label, count in summary.labels.most_common()]
    for label, count, unsure in [*rows, ("all", summary.labels.total(), summary.unsure.total())]:
        table.add_row(printable(label), f"{count:,}", f"{unsure:,}", f"{unsure / count:.0%}")
    return table

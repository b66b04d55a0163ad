"""The findings as a table with a column for decisions, and the decisions of a filled-in table."""

import csv
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd

from cifar_mlflow.data import ImageDataset
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.files import atomic_write
from cifar_mlflow.names import counted, listed
from cifar_mlflow.review.duplicates import Pair
from cifar_mlflow.review.images import ReviewedImages
from cifar_mlflow.review.label_errors import LabelError

KEEP, DROP = "keep", "drop"
OTHER_DATA = "give the data set that was reviewed, as it was"
SHOWN_COMPLAINTS = 10


@dataclass(frozen=True)
class Finding:
    """A row of the table: an image, and what may be wrong with it.

    Attributes:
        decision: empty; `keep`, `drop` or a class once the user has filled it in.
        suggestion: `drop` or a class.
        issue: `label`, `leak` (the same picture in a later split), `duplicate` (in the same split) or
            `unreadable`.
        confidence, label_confidence: see `LabelError`.
        other, other_split, other_label, similarity: the original of a copy, see `Pair`.
        reason: why the file cannot be read.
    """

    image: str
    decision: str
    suggestion: str
    issue: str
    split: str
    label: str
    confidence: float | None = None
    label_confidence: float | None = None
    other: str = ""
    other_split: str = ""
    other_label: str = ""
    similarity: float | None = None
    reason: str = ""


COLUMNS = [field.name for field in fields(Finding)]


def make_findings(
    dataset: ImageDataset, reviewed: ReviewedImages, errors: Sequence[LabelError], pairs: Sequence[Pair]
) -> list[Finding]:
    """Return the findings: label errors, then leaks, duplicates and unreadable files."""
    names, classes = reviewed.names, dataset.classes

    def label(index: int) -> str:
        return classes[reviewed.labels[index]]

    def finding(index: int, issue: str, suggestion: str) -> Finding:
        return Finding(names[index], "", suggestion, issue, reviewed.splits[index], label(index))

    wrong = [
        replace(
            finding(error.index, "label", classes[error.suggestion]),
            confidence=error.confidence,
            label_confidence=error.label_confidence,
        )
        for error in errors
    ]
    copies: dict[int, Finding] = {}
    for pair in pairs:
        leak = reviewed.splits[pair.first] != reviewed.splits[pair.second]
        # Test and validation images stay; of two images in the same split, the first one.
        index, other = (pair.first, pair.second) if leak else (pair.second, pair.first)
        known = copies.get(index)
        if known is None or (leak and known.issue == "duplicate"):
            copies[index] = replace(
                finding(index, "leak" if leak else "duplicate", DROP),
                other=names[other],
                other_split=reviewed.splits[other],
                other_label=label(other),
                similarity=pair.similarity,
            )
    leaks = [copy for copy in copies.values() if copy.issue == "leak"]
    duplicates = [copy for copy in copies.values() if copy.issue == "duplicate"]
    unreadable = [
        Finding(file.name, "", DROP, "unreadable", file.split, file.label, reason=file.reason)
        for file in dataset.unreadable
    ]
    return [*wrong, *leaks, *duplicates, *unreadable]


def as_table(findings: Iterable[Finding]) -> pd.DataFrame:
    """Return a row for each finding, in order; probabilities and similarities have 4 digits."""
    return pd.DataFrame([asdict(finding) for finding in findings], columns=COLUMNS).round(4)


def write_findings(path: Path, table: pd.DataFrame) -> None:
    """Write the table as CSV.

    Raises:
        CifarError: the file cannot be written.
    """
    with atomic_write(path) as unfinished:
        table.to_csv(unfinished, index=False, encoding="utf-8")


def read_decisions(path: Path, dataset: ImageDataset, reviewed: ReviewedImages) -> dict[int, int | None]:
    """Return the new class of images, or None for images to drop, by position.

    An image with several rows is dropped if one of them says so; `keep` yields to a class.

    Raises:
        UsageError: columns are missing, or rows name an unknown image or decision, were made for other data,
            or contradict each other; one message names the rows.
        CifarError: the file cannot be read.
    """
    positions = {name: index for index, name in enumerate(reviewed.names)}
    unreadable = {file.name for file in dataset.unreadable}
    decisions: dict[int, int | None] = {}
    complaints = []
    for number, row in _rows(path):
        try:
            decision = _decision(row["decision"], dataset.classes)
            index = positions.get(row["image"])
            if index is None and row["image"] not in unreadable:
                raise UsageError(f"there is no image {row['image']!r} in {dataset.name}; {OTHER_DATA}")
            if index is None:
                continue
            label = dataset.classes[reviewed.labels[index]]
            if _class_of(row["label"], dataset.classes) != label:
                raise UsageError(
                    f"{row['image']} has the label {label} in {dataset.name}, but {row['label']} in the "
                    f"table; {OTHER_DATA}"
                )
            if decision == DROP:
                decisions[index] = None
            elif decision != KEEP:
                new = dataset.classes.index(decision)
                known = decisions.setdefault(index, new)
                if known is not None and known != new:
                    raise UsageError(
                        f"{row['image']} is to be both {dataset.classes[known]} and {decision}; choose one"
                    )
        except UsageError as error:
            complaints.append(f"row {number} of {path}: {error}")
    if complaints:
        more = len(complaints) - SHOWN_COMPLAINTS
        shown = [
            *complaints[:SHOWN_COMPLAINTS],
            *([f"and {counted(more, 'more row')} like these"] if more > 0 else []),
        ]
        raise UsageError("\n".join(f"--apply: {complaint}" for complaint in shown))
    return decisions


def _rows(path: Path) -> Iterable[tuple[int, Mapping[str, str]]]:
    """Yield the rows with their numbers, as an editor counts them, with the header as row 1."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            # A spreadsheet may have saved it with other delimiters.
            table = csv.DictReader(file, delimiter=max(",;\t", key=first.count), restval="")
            # It may also have saved empty rows below the table.
            rows = [(table.line_num, row) for row in table if any(row.values())]
            columns = table.fieldnames or ()
    except OSError as error:
        raise CifarError(f"Cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--apply: {path} is not a CSV file in UTF-8: {error}") from None
    missing = [name for name in ("image", "label", "decision") if name not in columns]
    if missing:
        raise UsageError(
            f"--apply: {path} has no column {', '.join(missing)}; give a table that `review` has written"
        )
    return rows


def _decision(text: str, classes: tuple[str, ...]) -> str:
    """Return `keep`, `drop` or a class; an empty cell means `keep`."""
    text = text.strip()
    if text in classes and text.lower() in (KEEP, DROP):
        raise UsageError(f"{text!r} is a class and a decision: rename the class, and review the data again")
    if text.lower() in ("", KEEP, DROP):
        return text.lower() or KEEP
    if known := _class_of(text, classes):
        return known
    close = difflib.get_close_matches(text, [KEEP, DROP, *classes], n=1)
    hint = f"did you mean {close[0]}?" if close else f"use {KEEP}, {DROP} or a class: {listed(classes)}"
    raise UsageError(f"unknown decision {text!r}: {hint}")


def _class_of(text: str, classes: tuple[str, ...]) -> str | None:
    """Return the class of this name; a spreadsheet may have changed `001` to `1`."""
    if text in classes:
        return text
    equal = [name for name in classes if name.isdecimal() and str(int(name)) == text]
    return equal[0] if len(equal) == 1 else None

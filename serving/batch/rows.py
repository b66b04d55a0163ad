"""The row of a results table: the answer for one file, or the reason why there is none."""

import os
import sys
from typing import Any, NamedTuple, TypedDict


class Row(TypedDict):
    r"""One row. A file that cannot be classified has an error and no answer.

    `path` is always valid text: bytes of a file name that are not UTF-8 are written as \xff. `size` in bytes,
    `modified` in nanoseconds since 1970 and the digest of the `model` tell whether the row is still valid.
    """

    path: str
    label: str | None
    class_index: int | None
    confidence: float | None
    uncertain: bool | None
    top_k: list[dict[str, Any]] | None
    error_code: str | None
    error_message: str | None
    size: int
    modified: int
    model: str


COLUMNS = tuple(Row.__annotations__)


class FileError(NamedTuple):
    """The reason why a file has no answer: `code` for programs, `message` for people."""

    path: str
    code: str
    message: str


class Outcome(NamedTuple):
    """The part of a row that the summary and the sorting need: a label, or an error."""

    label: str | None
    confidence: float | None
    uncertain: bool | None
    error: FileError | None


def outcome_of(row: Row) -> Outcome:
    error = None
    if row["error_code"] is not None:
        error = FileError(row["path"], row["error_code"], row["error_message"] or "")
    label = row["label"] and sys.intern(row["label"])  # one string for a million files
    return Outcome(label, row["confidence"], row["uncertain"], error)


def path_text(path: str) -> str:
    r"""Return a path as valid text, with bytes that are not UTF-8 written as \xff."""
    return os.fsencode(path).decode(errors="backslashreplace")


def file_stamp(size: int, modified: int) -> int:
    """Return the state of a file as one number, which takes less memory than two."""
    return hash((size, modified))

"""One answer for one file, as it stands in a table of results."""

import os
import sys
from typing import Any, NamedTuple, TypedDict


class Row(TypedDict):
    """What is known of a file. Of one that could not be classified: the error, and no answer.

    `path` is text whatever bytes the name has: what is no UTF-8 in it is written as \\xff. `size` in bytes,
    `modified` in nanoseconds since 1970, and the digest of the `model` tell whether the answer still holds.
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


class Problem(NamedTuple):
    """Why a file has no answer: `code` is for programs, `message` for people."""

    path: str
    code: str
    message: str


class Verdict(NamedTuple):
    """What came of one file: a label, or a problem."""

    label: str | None
    confidence: float | None
    uncertain: bool | None
    problem: Problem | None


def verdict_of(row: Row) -> Verdict:
    problem = None
    if row["error_code"] is not None:
        problem = Problem(row["path"], row["error_code"], row["error_message"] or "")
    label = row["label"] and sys.intern(row["label"])  # one text for a million files
    return Verdict(label, row["confidence"], row["uncertain"], problem)


def as_text(path: str) -> str:
    """A path as UTF-8 can hold it."""
    return os.fsencode(path).decode(errors="backslashreplace")


def stamp_of(size: int, modified: int) -> int:
    """The state of a file in one number, which takes less memory than two."""
    return hash((size, modified))

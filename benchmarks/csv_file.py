"""Rows of a CSV file as objects of a dataclass, one column per field."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter

from cifar_mlflow.files import atomic_write

T = TypeVar("T")
# Type of a field whose cell may be empty.
FloatOrEmpty = Annotated[float | None, BeforeValidator(lambda cell: cell or None)]


def read_rows(file: Path, kind: type[T]) -> list[T]:
    """Return the rows of the file; none if it does not exist."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return TypeAdapter(list[kind]).validate_python(list(csv.DictReader(lines)))  # type: ignore[valid-type]


def write_rows(file: Path, kind: type[T], rows: Sequence[T]) -> None:
    """Replace the file by the rows, with five decimals."""
    fields: Sequence[Any] = dataclasses.fields(kind)  # type: ignore[arg-type]
    with atomic_write(file) as scratch, scratch.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(field.name for field in fields)
        for row in rows:
            writer.writerow(_cell(getattr(row, field.name)) for field in fields)


def _cell(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value

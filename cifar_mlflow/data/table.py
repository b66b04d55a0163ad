"""A CSV or Parquet file that names the path and the label of each image."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_mlflow.config import SplitName
from cifar_mlflow.data.dataset import SOURCE_SPLITS
from cifar_mlflow.data.folder import split_of
from cifar_mlflow.data.own_images import Files, Found
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.names import counted, data_name, listed, printable

# Usual names of the columns, the best first.
# fmt: off
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file",
    "img", "img_path", "image_name",
)
LABEL_COLUMNS = ("label", "class", "category", "target", "class_name", "label_name")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
# fmt: on


class _Row(NamedTuple):
    number: int  # as an editor counts, with the header as row 1 and with empty rows
    path: str
    label: str
    split: SplitName


def find_in_table(table: Path) -> Found:
    """Return the images that a table names: columns path, label and, optionally, split.

    The columns may have other usual names. A path is relative to the folder of the table. Labels are any
    text or whole numbers, which are sorted as numbers.

    Raises:
        UsageError: columns, paths or labels are missing, an image has two labels or splits, there are fewer
            than two classes, or a class has no training image.
        CifarError: the file cannot be read.
    """
    header, cells = _read(table)
    path_column, label_column = (_column(table, header, names) for names in (PATH_COLUMNS, LABEL_COLUMNS))
    split_column = next((name for name in header if name.lower() in SPLIT_COLUMNS), None)
    wanted = [header.index(name) for name in (path_column, label_column, split_column) if name]
    rows = _rows(table, ((number, [row[i] if i < len(row) else "" for i in wanted]) for number, row in cells))
    unique, repeated = _without_repetitions(table, rows)
    classes = _sorted_classes({row.label for row in unique})
    if len(classes) < 2:
        found = f"only {classes[0]}" if classes else "none"
        raise UsageError(f"--data-dir: at least 2 classes are needed in {table}; found {found}")
    splits: dict[SplitName, Files] = {}
    numbers = {name: number for number, name in enumerate(classes)}
    for split in SOURCE_SPLITS:
        if of_split := [row for row in unique if row.split == split]:
            splits[split] = Files(
                [_locate(table.parent, row.path) for row in of_split],
                np.array([numbers[row.label] for row in of_split], dtype=np.int64),
                [row.path for row in of_split],
            )
    if untrained := sorted(set(classes) - {row.label for row in unique if row.split == "train"}):
        raise UsageError(f"--data-dir: no training image in {table} has the label {listed(untrained)}")
    notes = [f"Skipped {counted(repeated, 'repeated row')} of {table}"] if repeated else []
    if "val" in splits:
        notes.append(
            f"The column {split_column} of {table} sets the validation split; --val-size does not apply"
        )
    return Found(
        "table", table, data_name("folder", table), tuple(map(printable, classes)), splits, tuple(notes)
    )


def _read(table: Path) -> tuple[list[str], list[tuple[int, Sequence[str]]]]:
    """Return the names of the columns, and the rows as text with their numbers."""
    try:
        if table.suffix.lower() == ".parquet":
            return _read_parquet(table)
        # A path may have bytes that are not UTF-8.
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
            if "\0" in first:
                raise UsageError(f"--data-dir: {table} is not UTF-8, perhaps UTF-16: save it as CSV in UTF-8")
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            rows: list[tuple[int, Sequence[str]]] = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise CifarError(f"Cannot read {table}: {error.strerror or error}") from None
    except csv.Error as error:
        raise UsageError(f"--data-dir: {table} is not a CSV file: {error}") from None
    if not rows:
        raise UsageError(
            f"--data-dir: {table} is empty; its first row should name the columns path and label"
        )
    _, header = rows[0]
    return [name.strip() for name in header], rows[1:]


def _read_parquet(table: Path) -> tuple[list[str], list[tuple[int, Sequence[str]]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with table.open("rb") as content, pyarrow.parquet.ParquetFile(content) as file:
            header = list(file.schema_arrow.names)
            used = [
                name for name in header if name.lower() in (*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS)
            ]
            for name in used:
                kind = file.schema_arrow.field(name).type
                if pyarrow.types.is_nested(kind) or pyarrow.types.is_binary(kind):
                    raise UsageError(
                        f"--data-dir: column {name} of {table} holds {kind}, but should hold text"
                    )
            columns = file.read(columns=used).to_pydict()
    except pyarrow.ArrowException as error:
        raise UsageError(f"--data-dir: {table} is not a Parquet file: {error}") from None
    texts = [["" if value is None else str(value) for value in columns[name]] for name in used]
    return used, list(enumerate(zip(*texts, strict=True), 2))


def _column(table: Path, header: list[str], names: tuple[str, ...]) -> str:
    """Return the column with the best of the names."""
    by_name = {name.lower(): name for name in header}
    for name in names:
        if name in by_name:
            return by_name[name]
    raise UsageError(
        f"--data-dir: {table} has no column {names[0]}; its columns are {listed(header)}. Other names that "
        f"are understood: {', '.join(names[1:])}"
    )


def _rows(table: Path, cells: Iterable[tuple[int, Sequence[str]]]) -> list[_Row]:
    rows, incomplete, unknown = [], [], []
    for number, (path, label, *rest) in cells:
        path, label = path.strip(), label.strip()
        split: SplitName | None = split_of(rest[0].strip()) if rest else "train"
        if not path or not label:
            incomplete.append(str(number))
        elif split is None:
            unknown.append(f"{rest[0]!r} (row {number})")
        else:
            rows.append(_Row(number, path, label, split))
    if incomplete:
        raise UsageError(f"--data-dir: rows without a path or a label in {table}: {listed(incomplete)}")
    if unknown:
        raise UsageError(f"--data-dir: unknown splits in {table}: {listed(unknown)}; use train, val and test")
    return rows


def _without_repetitions(table: Path, rows: list[_Row]) -> tuple[list[_Row], int]:
    """Return each image once, and how many rows were left out.

    Raises:
        UsageError: the rows of an image contradict each other.
    """
    first: dict[str, _Row] = {}
    contradictions = []
    for row in rows:
        known = first.setdefault(os.path.normpath(_locate(table.parent, row.path)), row)
        if (known.label, known.split) != (row.label, row.split):
            contradictions.append(f"{row.path} (rows {known.number} and {row.number})")
    if contradictions:
        raise UsageError(f"--data-dir: images with two labels or splits in {table}: {listed(contradictions)}")
    return list(first.values()), len(rows) - len(first)


def _sorted_classes(labels: set[str]) -> list[str]:
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _locate(folder: Path, path: str) -> Path:
    """Return the file; the path may have been written on Windows."""
    found = folder / path
    if "\\" in path and not found.exists():
        return folder / path.replace("\\", "/")
    return found

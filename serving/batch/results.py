"""The results file: it grows while files are classified, and a later run continues from it."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.files import atomic_write, write_errors
from cifar_mlflow.names import counted
from cifar_mlflow.scorer.phone_formats import BRANDS, can_decode
from serving.batch.formats import (
    Csv,
    JsonLines,
    TextFormat,
    json_tables,
    parquet_tables,
    read_parquet,
    write_parquet,
)
from serving.batch.lock import exclusive_writer
from serving.batch.rows import FileError, Outcome, Row, file_stamp, outcome_of

logger = logging.getLogger("cifar_mlflow.classify")

SUFFIXES = (".csv", ".jsonl", ".parquet")
# Error code of a file that may be readable the next time, with the same size and date.
UNREADABLE = "unreadable"


def missing_decoder(kind: str) -> str:
    """Return the error code of a file of this format that no installed library reads: `no_heic_decoder`."""
    return f"no_{kind.lower()}_decoder"


def may_be_readable(error: FileError) -> bool:
    """Return whether the reason why an unchanged file had no answer may no longer exist."""
    kinds = {missing_decoder(kind): kind for kind in BRANDS}
    return can_decode(kinds[error.code]) if error.code in kinds else error.code == UNREADABLE


class ResultsFile:
    """Rows in a .csv, .jsonl or .parquet file; a context manager that holds the file exclusively.

    A text file is appended to. A Parquet file cannot grow, so its new rows are kept in `<file>.part.jsonl`
    until `finish`. A last row that was truncated when its process was killed is dropped on entry.

    Args:
        model: digest of the model that answers.
        top_k: number of classes in its answers.

    Raises:
        UsageError: the suffix is not known; on entry: the file holds something else, or another model's rows.
        CifarError: on entry or writing: the file cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, model: str, top_k: int) -> None:
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise UsageError(
                f"--output {path}: its name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            )
        self.path = path
        self._model = model
        self._top_k = top_k
        self._parquet = path if suffix == ".parquet" else None
        self._text = path.with_name(f"{path.name}.part.jsonl") if self._parquet else path
        self._format: TextFormat = Csv() if suffix == ".csv" else JsonLines()
        self._latest: dict[str, tuple[int, Outcome]] = {}  # by path: file stamp, and outcome
        self._superseded: Counter[str] = Counter()  # by path: number of rows that a later row replaces

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            lock = self.path.with_name(f".{self.path.name}.lock")
            stack.enter_context(exclusive_writer(self.path, lock))
            if self.path.exists() or self._text.exists():
                logger.info("Continuing from %s", self.path)  # a million rows take half a minute to read
            complete = len(self._format.header)  # bytes up to the end of the last complete record
            for row, record in self._rows():
                self._index(row)
                complete += len(record)
            with write_errors(self.path):
                self._file = stack.enter_context(self._text.open("ab", buffering=0))
                if self._file.tell() < complete:
                    self._file.truncate(0)
                    self._write(self._format.header)
                self._file.truncate(complete)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        if self._parquet and self._text.exists() and not self._text.stat().st_size:
            self._text.unlink()

    def find(self, path: str, stamp: int) -> Outcome | None:
        """Return the outcome for a file in this state; None if it has to be classified."""
        known_stamp, outcome = self._latest.get(path, (None, None))
        if known_stamp != stamp or (outcome and outcome.error and may_be_readable(outcome.error)):
            return None
        return outcome

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows, so that they survive the end of this process."""
        for row in rows:
            if row["path"] in self._latest:
                self._superseded[row["path"]] += 1
        with write_errors(self._text):
            self._write(self._format.encode(rows))

    def finish(self) -> None:
        """Rewrite the file if necessary: one row per path, and the Parquet file with all rows."""
        self._file.close()
        target = self._parquet or self._text
        if not self._superseded and not (self._parquet and self._text.stat().st_size):
            return
        with atomic_write(target) as temporary:
            if self._parquet:
                write_parquet(temporary, self._latest_tables(self._parquet))
            else:
                with temporary.open("wb") as file:
                    file.write(self._format.header)
                    file.writelines(self._latest_records())
        if self._parquet:
            with write_errors(self._text):
                self._text.unlink()

    def _rows(self) -> Iterator[tuple[Row, bytes]]:
        """Yield all complete rows in the order of writing, with their bytes if they are in a text file."""
        source = self._parquet or self._text
        try:
            if self._parquet and self._parquet.exists():
                yield from ((row, b"") for row in read_parquet(self._parquet))
            source = self._text
            if self._text.exists():
                with self._text.open("rb") as file:
                    begin = self._format.header + self._format.start
                    head = file.read(len(begin))
                    if not begin.startswith(head):
                        raise ValueError(f"it does not begin with {begin.decode()[:20]}")
                    file.seek(len(self._format.header))
                    yield from self._format.records(file)
        except ValueError as error:
            raise UsageError(
                f"{source} exists and cannot be continued: it is not a results file, or damaged ({error})\n"
                "choose another --output"
            ) from error
        except OSError as error:
            raise CifarError(f"{source}: cannot be read ({error.strerror or error})") from error

    def _latest_records(self) -> Iterator[bytes]:
        """Yield the records of a text file that no later one replaces."""
        superseded = Counter(self._superseded)
        for row, record in self._rows():
            if superseded[row["path"]]:
                superseded[row["path"]] -= 1
            else:
                yield record

    def _latest_tables(self, parquet: Path) -> Iterator[pa.Table]:
        """Yield the rows of a Parquet file, and of the text beside it, that no later one replaces."""
        superseded = Counter(self._superseded)
        with ExitStack() as stack:
            tables = [parquet_tables(parquet)] if parquet.exists() else []
            tables.append(json_tables(stack.enter_context(self._text.open("rb"))))
            for table in chain(*tables):
                if superseded:
                    latest = []
                    for path in table["path"].to_pylist():
                        latest.append(not superseded[path])
                        if superseded[path]:
                            superseded[path] -= 1
                    table = table.filter(pa.array(latest, pa.bool_()))
                yield table

    def _index(self, row: Row) -> None:
        """Remember a row of an earlier run.

        Raises:
            UsageError: it was written with another model or another `top_k`.
        """
        if row["model"] != self._model:
            raise UsageError(
                f"{self.path} holds answers of another model ({row['model']}, this one is {self._model}): "
                "choose another --output, or remove the file"
            )
        if row["top_k"] is not None and len(row["top_k"]) != self._top_k:
            held = counted(len(row["top_k"]), "class", "classes")
            raise UsageError(
                f"{self.path} holds {held} per file, not {self._top_k}: "
                f"choose another --output, or --top-k {len(row['top_k'])}"
            )
        if row["path"] in self._latest:
            self._superseded[row["path"]] += 1
        self._latest[row["path"]] = file_stamp(row["size"], row["modified"]), outcome_of(row)

    def _write(self, data: bytes) -> None:
        remaining = memoryview(data)
        while remaining:  # on a disk that is almost full, a write may take only a part
            remaining = remaining[self._file.write(remaining) :]

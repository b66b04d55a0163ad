"""The file of results, which grows while files are classified and from which a later run goes on."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.files import temporary_sibling, write_errors
from serving.batch.files import only_writer
from serving.batch.formats import Csv, JsonLines, TextFormat, read_parquet, write_parquet
from serving.batch.rows import Row, Verdict, stamp_of, verdict_of

logger = logging.getLogger("cifar_mlflow.classify")

SUFFIXES = (".csv", ".jsonl", ".parquet")
# A file that could not be read may be readable the next time, with the same size and date.
UNREADABLE = "unreadable"


class Results:
    """Rows in a .csv, .jsonl or .parquet file, for as long as it is entered.

    A text file is appended to. Rows for a Parquet file, which cannot grow, are kept in `<file>.part.jsonl`
    until `finish`. A last row that was cut off when its process was killed is dropped on entering.

    Args:
        model: digest of the model that answers.
        top_k: length of its answers.

    Raises:
        UsageError: another suffix; on entering: there is a file of something else, or of another model.
        CifarError: on entering or writing: the file cannot be written, or another process is writing it.
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
        self._known: dict[str, tuple[int, Verdict]] = {}
        self._stale: Counter[str] = Counter()  # how many rows of a path are followed by another of it

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(only_writer(self.path, self.path.with_name(f".{self.path.name}.lock")))
            if self.path.exists() or self._text.exists():
                logger.info("Going on from %s", self.path)  # reading a million rows takes half a minute
            whole = len(self._format.header)
            for row, record in self._rows():
                self._learn(row)
                whole += len(record)
            with write_errors(self.path):
                self._file = stack.enter_context(self._text.open("ab", buffering=0))
                if self._file.tell() < whole:
                    self._file.truncate(0)
                    self._write(self._format.header)
                self._file.truncate(whole)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        if self._parquet and self._text.exists() and not self._text.stat().st_size:
            self._text.unlink()

    def known(self, path: str, stamp: int) -> Verdict | None:
        """What is known of the file in this state, if trying again would change nothing."""
        stamp_then, verdict = self._known.get(path, (None, None))
        if stamp_then != stamp or (verdict and verdict.problem and verdict.problem.code == UNREADABLE):
            return None
        return verdict

    def append(self, rows: Sequence[Row]) -> None:
        """Rows that are kept from now on, whatever happens to this process."""
        for row in rows:
            if row["path"] in self._known:
                self._stale[row["path"]] += 1
        with write_errors(self._text):
            self._write(self._format.encode(rows))

    def finish(self) -> None:
        """Bring the file into its final form: one row a path, and the Parquet file complete."""
        self._file.close()
        target = self._parquet or self._text
        if not self._stale and not (self._parquet and self._text.stat().st_size):
            return
        with write_errors(target), temporary_sibling(target) as beside:
            if self._parquet:
                write_parquet(beside, (row for row, _ in self._latest_rows()))
            else:
                with beside.open("wb") as file:
                    file.write(self._format.header)
                    file.writelines(record for _, record in self._latest_rows())
            beside.replace(target)
            if self._parquet:
                self._text.unlink()

    def _rows(self) -> Iterator[tuple[Row, bytes]]:
        """All whole rows, in the order in which they were written; with the bytes of those in a text file."""
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
                f"{source} is there already, and cannot be added to: it is no file of results, or damaged "
                f"({error})\nchoose another --output"
            ) from error
        except OSError as error:
            raise CifarError(f"{source}: cannot be read ({error.strerror or error})") from error

    def _latest_rows(self) -> Iterator[tuple[Row, bytes]]:
        left = Counter(self._stale)
        for row, record in self._rows():
            if left[row["path"]]:
                left[row["path"]] -= 1
            else:
                yield row, record

    def _learn(self, row: Row) -> None:
        if row["model"] != self._model:
            raise UsageError(
                f"{self.path} holds answers of another model ({row['model']}, this one is {self._model}): "
                "choose another --output, or remove the file"
            )
        if row["top_k"] is not None and len(row["top_k"]) != self._top_k:
            raise UsageError(
                f"{self.path} holds {len(row['top_k'])} classes for each file, not {self._top_k}: "
                f"choose another --output, or --top-k {len(row['top_k'])}"
            )
        if row["path"] in self._known:
            self._stale[row["path"]] += 1
        self._known[row["path"]] = stamp_of(row["size"], row["modified"]), verdict_of(row)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:  # a write to a disk that is almost full takes only a part
            left = left[self._file.write(left) :]

"""A folder of Parquet files, one for each part of the input; finished parts are never computed again.

`_manifest.parquet` lists the images of each part. The name of a part's file is a digest of these images,
their state and the model. A file appears under its name only when it is complete, so a part that two workers
compute (because one of them seemed to be lost) still exists once.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from cifar_mlflow.errors import UsageError
from serving.batch.find import Found
from serving.batch.formats import PARQUET_SCHEMA
from serving.batch.lock import exclusive_writer
from serving.batch.remote import Stamp, file_system, is_url, local_path, storage_errors
from serving.batch.results import may_be_readable
from serving.batch.rows import Outcome, Row, file_stamp, outcome_of, path_text
from serving.batch.tables import TablePart

MANIFEST = "_manifest.parquet"
PART_FILES = 1_000
_MANIFEST_SCHEMA = pa.schema({"part": pa.string(), "input": pa.string(), "stamp": pa.int64()})


@dataclass(frozen=True)
class Part:
    """The images that one worker classifies at a time.

    Attributes:
        name: digest of the images, their state and the model.
        images: files, or rows of a table.
    """

    name: str
    images: Found


class DamagedFileError(UsageError):
    """A file of the output folder is not Parquet, or is cut short."""


class Input(NamedTuple):
    """A file, or a part of a table, with its state."""

    key: str
    stamp: int
    image: str | TablePart


class Dataset:
    """The output folder, local or at a URL; a context manager that, locally, holds it exclusively.

    Args:
        url: the folder; it is created.
        model: digest of the model that answers.
        top_k: number of classes in its answers.

    Raises:
        UsageError: on entry: the folder holds something else, or answers of another model.
        CifarError: on entry: the folder cannot be written, or another process is writing it.
    """

    def __init__(self, url: str, model: str, top_k: int) -> None:
        self.url = url
        self._settings = {"model": model, "top_k": str(top_k)}
        self._system, self._root = file_system(url)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if not is_url(local_path(self.url)):
                folder = Path(local_path(self.url))
                stack.enter_context(exclusive_writer(folder, folder / ".classify.lock"))
            with storage_errors(self.url):
                self._system.makedirs(self._root, exist_ok=True)
                self._system.invalidate_cache()
                self._planned = self._read_manifest()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def plan(self, found: Found) -> tuple[list[str], list[Part]]:
        """Return the names of the finished parts that are still valid, and the parts to compute.

        A finished part is valid if each of its images is still an input in the same state, and none that had
        no answer may be readable now. The files of other parts are removed, and their images are planned
        again.
        """
        inputs = {entry.key: entry for entry in _inputs(found)}
        existing = finished_parts(self.url)
        kept = [
            name
            for name, stamps in self._planned.items()
            if name in existing
            and all(key in inputs and inputs[key].stamp == stamp for key, stamp in stamps.items())
            and self._is_final(name)
        ]
        planned = {name: self._planned[name] for name in kept}
        for stamps in planned.values():
            for key in stamps:
                del inputs[key]
        parts = []
        for entries in _divide(list(inputs.values())):
            images = Found(
                files=[entry.image for entry in entries if isinstance(entry.image, str)],
                tables=[entry.image for entry in entries if isinstance(entry.image, TablePart)],
                folder=str(Path.cwd()),
            )
            images.stamps = {path: found.stamps[path] for path in images.files if path in found.stamps}
            stamps = {entry.key: entry.stamp for entry in entries}
            name = hashlib.sha256(repr((self._settings, stamps)).encode()).hexdigest()[:16]
            parts.append(Part(name, images))
            planned[name] = stamps
        with storage_errors(self.url):
            for name in existing.difference(kept):
                self._system.rm_file(_part_path(self._root, name))
        self._write_manifest(planned)
        return kept, parts

    def outcomes(self, name: str) -> list[tuple[str, Outcome]]:
        """Return the path and outcome of each row of a finished part.

        Raises:
            DamagedFileError: it is cut short: its machine lost power, for example.
        """
        columns = ["path", "label", "confidence", "uncertain", "error_code", "error_message"]
        rows: list[Any] = self._read_parquet(f"part-{name}.parquet", columns).to_pylist()
        return [(row["path"], outcome_of(row)) for row in rows]

    def _is_final(self, name: str) -> bool:
        """Return whether a finished part is whole, and no image without an answer may be readable now."""
        try:
            outcomes = self.outcomes(name)
        except DamagedFileError:
            return False
        return not any(outcome.error and may_be_readable(outcome.error) for _, outcome in outcomes)

    def _read_manifest(self) -> dict[str, dict[str, int]]:
        """Return the stamps of the inputs of each part."""
        if not self._system.exists(f"{self._root}/{MANIFEST}"):
            names = {path.rpartition("/")[2] for path in self._system.ls(self._root, detail=False)}
            if others := {name for name in names if not name.startswith(".")}:
                raise UsageError(
                    f"{self.url} holds other files ({sorted(others)[0]}): choose another --output"
                )
            return {}
        table = self._read_parquet(MANIFEST)
        known = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if known != self._settings:
            raise UsageError(
                f"{self.url} holds answers of another model or another --top-k "
                f"({_described(known)}; this run has {_described(self._settings)}): choose another --output"
            )
        rows = zip(*(table.column(name).to_pylist() for name in _MANIFEST_SCHEMA.names), strict=True)
        return {
            part: {key: stamp for _, key, stamp in group} for part, group in groupby(rows, lambda row: row[0])
        }

    def _write_manifest(self, planned: dict[str, dict[str, int]]) -> None:
        rows = [(name, key, stamp) for name, stamps in planned.items() for key, stamp in stamps.items()]
        columns: Sequence[Any] = list(zip(*rows, strict=True)) or [[], [], []]
        table = pa.table(dict(zip(_MANIFEST_SCHEMA.names, columns, strict=True)), _MANIFEST_SCHEMA)
        content = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(self._settings), content)
        write_whole(self.url, MANIFEST, content.getvalue())

    def _read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read a file of the folder.

        Raises:
            DamagedFileError: it is not Parquet, or is cut short.
            CifarError: the storage does not answer.
        """
        # From memory: Arrow's threads still hold a Python file when `read_table` has returned. If the process
        # ends at that moment, Python ends such a thread inside of C++, which aborts the process.
        with storage_errors(self.url):
            content = pa.BufferReader(self._system.cat_file(f"{self._root}/{name}"))
        try:
            with pq.ParquetFile(content) as parquet:
                return parquet.read(columns)
        except (pa.ArrowException, OSError) as error:  # OSError: a page that cannot be decompressed
            raise DamagedFileError(
                f"{self.url}: {name} is damaged ({error}): choose another --output, or remove the folder"
            ) from error


def finished_parts(url: str) -> set[str]:
    """Return the names of all parts whose files exist."""
    system, root = file_system(url)
    with storage_errors(url):
        system.invalidate_cache()
        names = [path.rpartition("/")[2] for path in system.ls(root, detail=False)]
    return {
        name.removeprefix("part-").removesuffix(".parquet")
        for name in names
        if name.startswith("part-") and name.endswith(".parquet")
    }


def write_part(url: str, name: str, rows: Iterable[Row]) -> None:
    """Write the rows of a part to the dataset at `url`; the file is complete or absent."""
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), PARQUET_SCHEMA), content)
    write_whole(url, f"part-{name}.parquet", content.getvalue())


def part_exists(url: str, name: str) -> bool:
    system, root = file_system(url)
    return bool(system.exists(_part_path(root, name)))


def write_whole(url: str, name: str, content: bytes) -> None:
    """Write a file beside its place and move it there.

    Raises:
        CifarError: the storage refuses it, or is full.
    """
    system, root = file_system(url)
    temporary = f"{root}/.{uuid4().hex}.tmp"
    with storage_errors(url):
        try:
            system.pipe_file(temporary, content)
            system.mv(temporary, f"{root}/{name}")
        except BaseException:
            if system.exists(temporary):
                system.rm_file(temporary)
            raise


def _part_path(root: str, name: str) -> str:
    return f"{root}/part-{name}.parquet"


def _described(settings: dict[str, str]) -> str:
    return f"model {settings.get('model')}, top_k {settings.get('top_k')}"


def _inputs(found: Found) -> Iterator[Input]:
    for path in found.files:
        stamp = found.stamps.get(path) or _local_stamp(path)
        yield Input(path_text(path), file_stamp(*stamp), path)
    for part in found.tables:
        yield Input(path_text(part.key), file_stamp(*part.stamp), part)


def _local_stamp(path: str) -> Stamp:
    """Return the state of a local file; zeros for a URL from a list of paths, whose state is unknown."""
    if is_url(path):
        return Stamp(0, 0)
    try:
        state = os.stat(path)  # noqa: PTH116 - creating a million Path objects takes seconds
    except OSError:  # reported when a worker reads it
        return Stamp(0, 0)
    return Stamp(state.st_size, state.st_mtime_ns)


def _divide(inputs: list[Input]) -> Iterator[list[Input]]:
    """Divide inputs into parts: PART_FILES files, or one part of a table."""
    files = [entry for entry in inputs if isinstance(entry.image, str)]
    for start in range(0, len(files), PART_FILES):
        yield files[start : start + PART_FILES]
    for entry in inputs:
        if isinstance(entry.image, TablePart):
            yield [entry]

"""Images in a column of Parquet files, locally or at a URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cifar_mlflow.errors import UsageError
from serving.batch.remote import Stamp, file_system, storage_errors, url_stamp

SUFFIX = ".parquet"
# Bytes of image files, base64 text, data URLs, or a struct with the field `bytes` as on the Hugging Face Hub.
COLUMNS = ("image", "img")
ROWS_AT_A_TIME = 64  # in memory
MIN_ROWS = 1_000  # of a part; smaller row groups are combined


class TablePart(NamedTuple):
    """Consecutive row groups of a Parquet file.

    Attributes:
        path: local path or URL.
        stamp: state of the whole file.
        column: name of the column with the images.
        first_row: number of the first row within the file.
        rows: number of rows.
        first_group, groups: the row groups.
    """

    path: str
    stamp: Stamp
    column: str
    first_row: int
    rows: int
    first_group: int
    groups: int

    @property
    def key(self) -> str:
        """Identify the part among all inputs."""
        return f"{self.path}#{self.first_row}-{self.first_row + self.rows - 1}"


def table_parts(path: str) -> list[TablePart]:
    """Divide a Parquet file into parts of at least MIN_ROWS rows, except for the last one.

    Raises:
        UsageError: the file does not exist, is not Parquet or has no column with images.
        CifarError: the storage does not answer.
    """
    with _opened(path) as file:
        column = next((name for name in COLUMNS if name in file.schema_arrow.names), None)
        if column is None:
            raise UsageError(
                f"{path} has no column {' or '.join(COLUMNS)}; it has {', '.join(file.schema_arrow.names)}"
            )
        stamp = url_stamp(path)
        parts: list[TablePart] = []
        first_row = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if parts and parts[-1].rows < MIN_ROWS:
                parts[-1] = parts[-1]._replace(rows=parts[-1].rows + rows, groups=parts[-1].groups + 1)
            else:
                parts.append(TablePart(path, stamp, column, first_row, rows, group, 1))
            first_row += rows
    return [part for part in parts if part.rows]


def read_cells(part: TablePart, path: str) -> Iterator[tuple[int, Any]]:
    """Yield the number of each row within its file, and the content of its image column.

    Args:
        path: where the file is.

    Raises:
        UsageError: the file is damaged or no longer exists.
        CifarError: the storage does not answer.
    """
    row = part.first_row
    with _opened(path) as file:
        groups = list(range(part.first_group, part.first_group + part.groups))
        for batch in file.iter_batches(ROWS_AT_A_TIME, groups, columns=[part.column]):
            for cell in batch.column(0).to_pylist():
                yield row, cell["bytes"] if isinstance(cell, dict) else cell
                row += 1


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    system, inside = file_system(path)
    with storage_errors(path):
        try:
            with system.open(inside, "rb") as content, pq.ParquetFile(content) as file:
                yield file
        except (pa.ArrowException, KeyError) as error:
            raise UsageError(f"{path} cannot be read as Parquet with images: {error}") from error

"""The tables that MLflow's scoring server accepts at /invocations: JSON in four formats, CSV and Parquet."""

import csv
import io
from itertools import islice
from typing import Any, NamedTuple

import pyarrow.parquet
from mlflow.pyfunc.scoring_server import parse_csv_input
from mlflow.types import ColSpec, DataType, Schema
from pydantic import ValidationError

from serving.app.errors import Refusal, bad_json
from serving.app.schemas import DataframeSplit, InvocationsBody, InvocationsParams
from serving.app.uploads import check_json_size

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
COLUMN = "image"
SCHEMA = Schema([ColSpec(DataType.string, COLUMN, required=False)])
MAX_ROWS = 1_000
# Lines plus cells of a CSV: for many small ones, pandas needs far more memory than the text does. Base64 may
# be wrapped into lines of 76 characters.
MAX_CSV_CELLS = 300_000
MAX_TABLE_BYTES = 256 * 2**20
# The footer of a Parquet file, its metadata, becomes objects of many times its size.
MAX_PARQUET_FOOTER = 2**20
MAX_COLUMNS = 100
csv.field_size_limit(MAX_TABLE_BYTES)  # of the whole process; by default 128 kB, less than a photo
# Other codecs turn 100 kB into gigabytes, whatever the metadata says about the size.
PARQUET_CODECS = {"UNCOMPRESSED", "SNAPPY"}

BAD_JSON = (
    "The table must be one of dataframe_split ({columns, data}), dataframe_records (a list of objects), "
    "inputs or instances (a list of images, a list of objects, or an object of columns)."
)


class Table(NamedTuple):
    """The cells of the column `image`, and the parameters of the model."""

    cells: list[Any]
    params: InvocationsParams


def media_type(content_type: str) -> str:
    """Return the type without its parameters.

    Raises:
        Refusal: 415, it is not one of the three, or its charset is not UTF-8.
    """
    kind, *parameters = [part.strip().lower() for part in content_type.split(";")]
    if kind not in (JSON, CSV, PARQUET) or any(each != "charset=utf-8" for each in parameters):
        raise Refusal(415, "unsupported_media_type", f"Send {JSON}, {CSV} or {PARQUET}, in UTF-8.")
    return kind


def read_table(kind: str, body: bytes) -> Table:
    """Return the table in a body of the given media type.

    Raises:
        Refusal: 413 if it has too many rows or would need too much memory, 400 if it is not a table with
            images.
    """
    params = InvocationsParams()
    if kind == JSON:
        cells, params = _read_json(body)
    else:
        cells = _read_csv(body) if kind == CSV else _read_parquet(body)
    if cells is None:
        raise Refusal(400, "no_image_column", f"The table needs a column '{COLUMN}'.")
    if not cells:
        raise Refusal(400, "no_rows", "The table has no rows.")
    if len(cells) > MAX_ROWS:
        raise _too_many_rows()
    return Table(cells, params)


def _read_json(body: bytes) -> tuple[list[Any] | None, InvocationsParams]:
    check_json_size(body)
    try:
        content = InvocationsBody.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["loc"][:1] == ("params",):
            message = "params may have top_k, a whole number from 1, and on_error, 'raise' or 'null'."
            raise Refusal(400, "bad_param", message) from None
        raise bad_json(error, Refusal(400, "bad_table", BAD_JSON)) from None
    tables = (content.dataframe_split, content.dataframe_records, content.inputs, content.instances)
    present = [table for table in tables if table is not None]
    if len(present) != 1:
        raise Refusal(400, "bad_table", BAD_JSON)
    return _cells(present[0]), content.params or InvocationsParams()


def _cells(table: DataframeSplit | list[Any] | dict[str, Any]) -> list[Any] | None:
    """Return the cells of the column `image`, or None if there is no such column."""
    if isinstance(table, DataframeSplit):
        return table.column(COLUMN)
    if isinstance(table, dict):
        column = table.get(COLUMN)
        return column if isinstance(column, list) or column is None else [column]
    if table and all(isinstance(row, dict) for row in table):
        has_column = any(COLUMN in row for row in table)
        return [row.get(COLUMN) for row in table] if has_column else None
    return table


def _read_csv(body: bytes) -> list[Any] | None:
    if sum(map(body.count, (b"\n", b"\r", b","))) > MAX_CSV_CELLS:
        raise _too_many_rows()
    try:
        text = body.decode().lstrip("\ufeff")
        _check_columns(text)
        table = parse_csv_input(io.StringIO(text), SCHEMA)
    except Refusal:
        raise
    except Exception:  # MLflow's exceptions repeat the input and have a traceback
        raise Refusal(400, "bad_table", "The body is not a CSV file in UTF-8.") from None
    return table[COLUMN].tolist() if COLUMN in table else None


def _check_columns(text: str) -> None:
    """Raise Refusal for a CSV with too many columns, whose names pandas compares in quadratic time.

    Pandas takes the columns from the first record, and those of an index from the second one.
    """
    records = (record for record in csv.reader(io.StringIO(text, newline="")) if any(map(str.strip, record)))
    if any(len(record) > MAX_COLUMNS for record in islice(records, 2)):
        raise _too_many_rows()


def _read_parquet(body: bytes) -> list[Any] | None:
    """Read row by row, because many rows may share one value that is stored once."""
    cells: list[Any] = []
    size = 0
    try:
        if body.endswith(b"PAR1") and int.from_bytes(body[-8:-4], "little") > MAX_PARQUET_FOOTER:
            raise _too_many_rows()
        file = pyarrow.parquet.ParquetFile(io.BytesIO(body), thrift_container_size_limit=10 * MAX_ROWS)
        if file.metadata.num_columns > MAX_COLUMNS:
            raise _too_many_rows()
        if COLUMN not in file.schema_arrow.names:
            return None
        _check_parquet(file)
        for batch in file.iter_batches(batch_size=1, columns=[COLUMN], use_threads=False):
            size += batch.nbytes
            if len(cells) == MAX_ROWS or size > MAX_TABLE_BYTES:
                raise _too_many_rows()
            cells += batch.column(COLUMN).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError):
        message = "The body is not a Parquet file with plain columns, uncompressed or compressed with Snappy."
        raise Refusal(400, "bad_table", message) from None
    return cells


def _check_parquet(file: pyarrow.parquet.ParquetFile) -> None:
    """Raise ValueError for what makes a single row huge: a list, or a codec that expands without bound."""
    metadata = file.metadata
    if any(metadata.schema.column(i).max_repetition_level for i in range(metadata.num_columns)):
        raise ValueError("a column of lists")
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            if metadata.row_group(group).column(column).compression not in PARQUET_CODECS:
                raise ValueError("an unsupported codec")


def _too_many_rows() -> Refusal:
    message = f"A request may have at most {MAX_ROWS:,} rows, and a table of limited size."
    return Refusal(413, "too_many_rows", message)

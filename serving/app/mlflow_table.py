"""Tables in the forms that only MLflow's scoring server knows, read by its own parser and schema.

That makes arrays of what it reads, so what would not fit into memory is refused before.
"""

import io
import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pandas as pd
import pyarrow.compute
import pyarrow.parquet
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel, scoring_server

from serving.app.errors import Refusal
from serving.registry.mlflow_model import signature

MAX_ROWS = 1_000
# Lines and cells of a CSV; base64 may be wrapped into lines of 76 characters.
MAX_CSV_PARTS = 300_000
MAX_COLUMNS = 100
MAX_PARQUET_FOOTER = 2**20
MODEST_CODECS = {"UNCOMPRESSED", "SNAPPY"}
MAX_TABLE_BYTES = 256 * 2**20
BYTES_A_CHARACTER = 4

# It warns there of each unknown name in a request, and repeats it.
for _name in ("mlflow.models.utils", "mlflow.pyfunc", "mlflow.pyfunc.scoring_server"):
    logging.getLogger(_name).setLevel(logging.ERROR)

Cells = list[Any] | None


def json_table(content: dict[str, Any], classes: int) -> tuple[Cells, dict[str, Any]]:
    """The cells of the column `image`, None without one, and the params.

    Raises:
        Refusal: the content is no table that the model takes (400), or too large a one (413).
    """
    for key in ("dataframe_split", "dataframe_records", "inputs", "instances"):
        value = content.get(key)
        for part in [value, *(value.values() if isinstance(value, dict) else [])]:
            _check_extent(part)

    def read(model: PyFuncModel) -> Any:
        parsed = scoring_server._parse_json_data(content, model.metadata, model.metadata.get_input_schema())
        return model.predict(parsed.data, params=parsed.params)

    cells, params = _guarded(read, classes)
    return cells, params


def csv_table(body: bytearray, classes: int) -> Cells:
    """The cells of the column `image`; raises as `json_table` does."""
    if sum(map(body.count, (b"\n", b"\r", b","))) > MAX_CSV_PARTS:
        raise _too_many_rows()

    def read(model: PyFuncModel) -> Any:
        text = io.StringIO(body.decode())
        return model.predict(scoring_server.parse_csv_input(text, model.metadata.get_input_schema()))

    cells: Cells = _guarded(read, classes)[0]
    return cells


def parquet_table(body: bytearray, classes: int) -> Cells:
    """The cells of the column `image`; raises as `json_table` does."""

    def check(model: PyFuncModel) -> bool:
        return _parquet_extent(io.BytesIO(body)) <= MAX_TABLE_BYTES

    def read(model: PyFuncModel) -> Any:
        return model.predict(scoring_server.parse_parquet_input(io.BytesIO(body)))

    if not _guarded(check, classes):
        raise _too_many_rows()
    cells: Cells = _guarded(read, classes)[0]
    return cells


def _parquet_extent(file: io.BytesIO) -> float:
    """Bytes that the table will take, infinite for too many rows or columns.

    A value may be in the file once and in every row of the table.

    Raises:
        ValueError: a column has lists, whose length is bounded by nothing; or it is compressed with something
            else than Snappy, by which 100 kB may become gigabytes, whatever the file says of its size.
    """
    length, magic = file.getbuffer()[-8:-4], file.getbuffer()[-4:]
    if magic != b"PAR1":
        raise ValueError("no Parquet")
    if int.from_bytes(length, "little") > MAX_PARQUET_FOOTER:
        return math.inf
    metadata = pyarrow.parquet.ParquetFile(file, thrift_container_size_limit=10_000).metadata
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    if metadata.num_rows > MAX_ROWS or len(columns) > MAX_COLUMNS or sum(sizes) > MAX_TABLE_BYTES:
        return math.inf
    if any(column.max_repetition_level for column in columns):
        raise ValueError("a column of lists")
    codecs = {
        metadata.row_group(i).column(j).compression
        for i in range(metadata.num_row_groups)
        for j in range(metadata.num_columns)
    }
    if not codecs <= MODEST_CODECS:
        raise ValueError(f"compressed with {codecs}")
    of_one_length = sum(
        column.length * metadata.num_rows
        for column in columns
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY"
    )
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    table = pyarrow.parquet.read_table(file, columns=texts, read_dictionary=texts)
    of_any_length = sum(
        pyarrow.compute.sum(
            pyarrow.compute.binary_length(piece.dictionary).take(piece.indices)
            if pyarrow.types.is_dictionary(piece.type)
            else pyarrow.compute.binary_length(piece)
        ).as_py()
        or 0
        for column in table.columns
        for piece in column.chunks
    )
    return of_one_length + BYTES_A_CHARACTER * of_any_length


class _Reader:
    """In place of a model: hands out what MLflow hands to one."""

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        columns = dict(data.items())
        return columns["image"].tolist() if "image" in columns else None, params or {}


@cache
def _reader(classes: int) -> PyFuncModel:
    flavors = {"python_function": {"loader_module": "mlflow.pyfunc.model"}}
    return PyFuncModel(Model(signature=signature(classes), flavors=flavors), _Reader())


def _guarded(read: Callable[[PyFuncModel], Any], classes: int) -> Any:
    try:
        return read(_reader(classes))
    except Exception:  # of MLflow, pandas and pyarrow; they repeat the input, and some have a trace
        raise Refusal(400, "bad_table", "The body is not a table that the model takes.") from None


def _check_extent(values: Any) -> None:
    if not isinstance(values, list):
        return
    longest = max((len(value) for value in values if isinstance(value, str)), default=0)
    if len(values) > MAX_ROWS or len(values) * longest * BYTES_A_CHARACTER > MAX_TABLE_BYTES:
        raise _too_many_rows()


def _too_many_rows() -> Refusal:
    return Refusal(413, "too_many_rows", f"A request may have {MAX_ROWS} rows, and a table of limited size.")

"""MLflow's own way to ask: a table as JSON, CSV or Parquet, in every form that its scoring server takes.

The forms that clients use most are read here without pandas. Whatever else there is goes through MLflow's own
parser and schema, so that what is right for the one is right for the other. It is refused by us.
"""

from typing import Any, NamedTuple

from serving.app.errors import Refusal
from serving.app.mlflow_table import MAX_ROWS, csv_table, json_table, parquet_table
from serving.app.uploads import parsed_json

_CONTENT_TYPES = {"application/json", "text/csv", "application/vnd.apache.parquet"}
CSV_OR_JSON = "Send application/json, text/csv or application/vnd.apache.parquet, in UTF-8."


class Question(NamedTuple):
    """The cells of the column `image`, and the params of the model."""

    cells: list[Any]
    top_k: int
    on_error: str


def question(content_type: str | None, body: bytearray, classes: int) -> Question:
    """What is asked in a body.

    Raises:
        Refusal: 415 for another content type, 413 for too many rows, 400 for whatever else is wrong.
    """
    kind = _checked_type(content_type)
    if kind == "application/json":
        content = parsed_json(body)
        if not isinstance(content, dict):
            raise Refusal(400, "bad_table", "The body is not a table that the model takes.")
        cells, params = _plain(content) or json_table(content, classes)
    elif kind == "text/csv":
        cells, params = csv_table(body, classes), {}
    else:
        cells, params = parquet_table(body, classes), {}
    if cells is None:
        raise Refusal(400, "no_image_column", "The table needs a column 'image'.")
    if not cells:
        raise Refusal(400, "no_rows", "The table has no rows.")
    if len(cells) > MAX_ROWS:
        raise Refusal(413, "too_many_rows", f"A request may have {MAX_ROWS} rows.")
    top_k, on_error = params.get("top_k", min(3, classes)), params.get("on_error", "raise")
    if top_k is None or not 1 <= top_k <= classes:
        raise Refusal(400, "bad_param", f"top_k must be a whole number from 1 to {classes}.")
    if on_error not in ("raise", "null"):
        raise Refusal(400, "bad_param", "on_error must be 'raise' or 'null'.")
    return Question(cells, int(top_k), on_error)


def _checked_type(content_type: str | None) -> str:
    kind, *parameters = [part.strip() for part in (content_type or "").split(";")]
    if kind not in _CONTENT_TYPES or any(each.lower() != "charset=utf-8" for each in parameters):
        raise Refusal(415, "unsupported_media_type", CSV_OR_JSON)
    return kind


def _plain(content: dict[str, Any]) -> tuple[list[Any], dict[str, Any]] | None:
    """Cells and params of a request that is as it usually is; None if it is not."""
    params = content.get("params") or {}
    if not isinstance(params, dict) or type(params.get("top_k", 1)) is not int:
        return None
    if not isinstance(params.get("on_error", ""), str) or len(content) - ("params" in content) != 1:
        return None
    match content:
        case {"dataframe_split": {"columns": ["image"], "data": list(rows), **more}} if not more:
            if not all(isinstance(row, list) and len(row) == 1 for row in rows):
                return None
            cells = [row[0] for row in rows]
        case {"dataframe_records": list(rows)}:
            if not all(isinstance(row, dict) and row.keys() == {"image"} for row in rows):
                return None
            cells = [row["image"] for row in rows]
        case {"inputs": {"image": list(cells), **more}} if not more:
            pass
        case {"inputs": list(cells)} | {"instances": list(cells)}:
            pass
        case _:
            return None
    # Of a column without text MLflow says itself that it is none of pictures.
    plain = all(cell is None or isinstance(cell, str | int | float) for cell in cells)
    return (cells, params) if plain and any(isinstance(cell, str) for cell in cells) else None

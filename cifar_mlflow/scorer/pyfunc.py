"""The MLflow model: takes a table with a column `image`, returns one answer per row.

MLflow runs this file to load the model. Its scoring server answers an ordinary exception with a traceback,
and prints the input before the message of its own exceptions; therefore every error here becomes a
`PlainError`.
"""

import gc
import hashlib
import importlib
import json
import logging
import os
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.pyfunc import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from .predictor import Scorer

MAX_ROWS = 1_000
# MLflow sets this variable to tell its scoring server which model to load.
SERVED_MODEL = "__pyfunc_model_path__"

logger = logging.getLogger(__name__)


class PlainError(MlflowException):
    """An error for the client: a code and a sentence, without traceback or input. Default status: 400."""

    def __init__(self, code: str, message: str, error_code: int = BAD_REQUEST) -> None:
        super().__init__(message, error_code=error_code)
        self._answer = {
            "error_code": self.error_code,
            "message": message,
            "error": {"code": code, "message": message},
        }

    def serialize_as_json(self) -> str:
        return json.dumps(self._answer)  # not self.message, to which the server has added the input


class ImageClassifier(PythonModel):
    """Classify with the scorer folder and the code that are artifacts of the model."""

    def load_context(self, context: PythonModelContext) -> None:
        package = import_under_own_name(Path(context.artifacts["code"]))
        preprocess = importlib.import_module(f"{package}.preprocess")
        self._image_bytes, self._bad_image = preprocess.image_bytes, preprocess.BadImage
        self._in_common_format = importlib.import_module(f"{package}.phone_formats").in_common_format
        scorer = importlib.import_module(f"{package}.predictor")
        self._scorer: Scorer = scorer.Scorer.load(
            Path(context.artifacts["scorer"]), **(_tune_for_scoring_server() if _in_scoring_server() else {})
        )

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return one dict per row: label, class_index, confidence, top_k, uncertain.

        With `on_error` = "null", each also has `error`: for a row with a bad image a code and a message, with
        nulls for the answer; for every other row null.

        Raises:
            PlainError: status 400 if the request is wrong, 500 if the model fails.
        """
        try:
            return self._answers(model_input, params)
        except PlainError:
            raise
        except Exception:
            logger.exception("The model failed")
            message = "The model failed; see the server's log."
            raise PlainError("internal_error", message, INTERNAL_ERROR) from None

    def _answers(self, table: pd.DataFrame, params: dict[str, Any]) -> list[dict[str, Any]]:
        top_k, on_error = self._check(params)
        cells = _cells(table)
        size = self._scorer.image_size
        images = np.empty((len(cells), size, size, 3), np.uint8)
        errors = {}
        for row, cell in enumerate(cells):
            try:
                images[row] = self._scorer.decode(self._in_common_format(self._image_bytes(cell)))
            except self._bad_image as error:
                if on_error == "raise":
                    raise PlainError(error.code, f"row {row}: {error}") from None
                errors[row] = {"code": error.code, "message": str(error)}
        good = [row for row in range(len(cells)) if row not in errors]
        answers = self._scorer.answers(self._scorer.score(images[good]), top_k)
        if on_error == "raise":
            return answers
        answer_of = dict(zip(good, answers, strict=True))
        return [
            {**(answer_of.get(row) or _no_answer()), "error": errors.get(row)} for row in range(len(cells))
        ]

    def _check(self, params: dict[str, Any]) -> tuple[int, str]:
        top_k, on_error = params["top_k"], params["on_error"]
        classes = len(self._scorer.classes)
        if top_k is None or not 1 <= top_k <= classes:
            raise PlainError("bad_param", f"top_k must be a whole number from 1 to {classes}.")
        if on_error not in ("raise", "null"):
            raise PlainError("bad_param", "on_error must be 'raise' or 'null'.")
        return top_k, on_error


def _no_answer() -> dict[str, Any]:
    return {"label": None, "class_index": None, "confidence": None, "top_k": [], "uncertain": None}


def _cells(table: pd.DataFrame) -> list[Any]:
    columns = dict(table.items())  # faster than a lookup by name, which builds an index first
    if "image" not in columns:
        raise PlainError("no_image_column", "The table needs a column 'image'.")
    if not len(table):
        raise PlainError("no_rows", "The table has no rows.")
    if len(table) > MAX_ROWS and _in_scoring_server():  # in Python and Spark, tables have any length
        raise PlainError("too_many_rows", f"The table has {len(table)} rows; a request may have {MAX_ROWS}.")
    cells: list[Any] = columns["image"].tolist()
    return cells


def _in_scoring_server() -> bool:
    return SERVED_MODEL in os.environ


def _tune_for_scoring_server() -> dict[str, int]:
    """Set up this process for MLflow's scoring server and return the fastest settings of the engine.

    A few threads of the server call the engine. They spend more time on JSON and tables than the network
    spends on their images, and share one core, because only one of them holds the interpreter at a time; the
    other cores are for the network.
    """
    # A full garbage collection would scan all objects of the libraries and stop all answers for 0.1 s.
    gc.freeze()
    # MLflow copies the texts of a request from column to column. Arrow would copy and check them each time,
    # which is a tenth of all work on a request.
    pd.set_option("mode.string_storage", "python")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"threads": max(1, cores - 1), "share": 3}


def import_under_own_name(code: Path) -> str:
    """Make the modules in a folder importable as a package named after their content; return its name.

    Each version of a model thereby keeps the code it came with, whichever other versions this process loaded.
    """
    digest = hashlib.sha256()
    for module in sorted(code.glob("*.py")):
        digest.update(module.name.encode() + b"\0" + module.read_bytes() + b"\0")
    package = types.ModuleType(f"scorer_{digest.hexdigest()[:16]}")
    package.__path__ = [str(code)]
    sys.modules.setdefault(package.__name__, package)
    return package.__name__


mlflow.models.set_model(ImageClassifier())

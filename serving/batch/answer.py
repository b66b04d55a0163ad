"""Turn images into rows: by our scorer, or by the registered MLflow model."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pandas as pd
from mlflow.pyfunc import PyFuncModel

from cifar_mlflow.scorer.predictor import Scorer
from serving.batch.read import File
from serving.batch.rows import FileError, Row

BATCH_SIZE = 64


class Answerer(Protocol):
    """A way to classify images."""

    def prepare(self, data: bytes) -> Any:
        """Return the content of an image file in the form that `answers` takes; called in reader threads.

        Raises:
            BadImage: the image cannot be classified.
        """

    def answers(self, images: list[Any]) -> list[dict[str, Any]]:
        """Return one answer per image, like `Scorer.answers`; `error` if the image cannot be classified."""


class ScorerAnswerer:
    """Decode in the reader threads, score in batches."""

    def __init__(self, scorer: Scorer, top_k: int) -> None:
        self._scorer = scorer
        self._top_k = top_k
        self.prepare = scorer.decode

    def answers(self, images: list[np.ndarray]) -> list[dict[str, Any]]:
        return self._scorer.answers(self._scorer.score(np.stack(images)), self._top_k)


class PyfuncAnswerer:
    """Pass the bytes to an MLflow model that `register` made."""

    def __init__(self, model: PyFuncModel, top_k: int) -> None:
        self._model = model
        self._params = {"top_k": top_k, "on_error": "null"}

    def prepare(self, data: bytes) -> bytes:
        return data

    def answers(self, images: list[bytes]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self._model.predict(pd.DataFrame({"image": images}), self._params)
        return answers


def batches(files: Iterable[File], check: Callable[[], None] = lambda: None) -> Iterator[list[File]]:
    """Group the files into batches.

    Args:
        check: is called before each file; it may raise to stop.
    """
    batch: list[File] = []
    for file in files:
        check()
        batch.append(file)
        if len(batch) == BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


def answer_batches(
    batches: Iterable[list[File]], answerer: Answerer, model: str
) -> Generator[tuple[list[File], dict[str, Row]]]:
    """Yield each batch with its rows by path; a thread scores the next one while the caller records this one.

    Args:
        model: digest of the model, for the rows.
    """
    pending: tuple[list[File], Future[dict[str, Row]]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            submitted = batch, thread.submit(_rows, batch, answerer, model)
            if pending:
                yield pending[0], pending[1].result()
            pending = submitted
        if pending:
            yield pending[0], pending[1].result()


def _rows(batch: list[File], answerer: Answerer, model: str) -> dict[str, Row]:
    """Return the rows of the files without an earlier outcome, by path."""
    images = [file.image for file in batch if file.image is not None]
    answers = iter(answerer.answers(images) if images else ())
    rows: dict[str, Row] = {}
    for file in batch:
        if file.earlier is None:
            rows[file.path] = _row(file, {} if file.error else next(answers), model)
    return rows


def _row(file: File, answer: dict[str, Any], model: str) -> Row:
    error = file.error
    if found := answer.get("error"):
        error = FileError(file.text, found["code"], found["message"])
        answer = {}
    return {
        "path": file.text,
        "label": answer.get("label"),
        "class_index": answer.get("class_index"),
        "confidence": answer.get("confidence"),
        "uncertain": answer.get("uncertain"),
        "top_k": answer.get("top_k"),
        "error_code": error and error.code,
        "error_message": error and error.message,
        "size": file.size,
        "modified": file.modified,
        "model": model,
    }

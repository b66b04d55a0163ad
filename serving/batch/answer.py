"""Turn images into rows, batch by batch."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from cifar_mlflow.environment import available_cores
from cifar_mlflow.scorer.phone_formats import in_common_format
from cifar_mlflow.scorer.predictor import Scorer
from serving.batch.overlays import Overlays
from serving.batch.read import File
from serving.batch.rows import FileError, Row

BATCH_SIZE = 64
MAX_PARALLEL = 8  # batches in memory


def threads_per_batch() -> int | None:
    """Return for `load_scorer` how many threads should compute a batch here; None means one per core.

    Threads that share a batch wait for one another, so each core gets a batch of its own, up to MAX_PARALLEL.
    """
    return 1 if available_cores() <= MAX_PARALLEL else None


class Answerer(Protocol):
    """A way to classify images.

    Attributes:
        parallel: the number of threads that may call `answers` at a time.
    """

    parallel: int

    def prepare(self, data: bytes) -> Any:
        """Return the content of an image file in the form that `answers` takes; called in reader threads.

        Raises:
            BadImage: the image cannot be classified.
        """

    def answers(self, images: list[Any]) -> list[dict[str, Any]]:
        """Return one answer per image, like `Scorer.answers`, or one with `error` if it has none."""


class ScorerAnswerer:
    """Decode in the reader threads, score in batches.

    Args:
        explain: add the `class_map` to each answer, float32 (h, w).
        cores: number of cores to use. Default: all.
    """

    def __init__(self, scorer: Scorer, top_k: int, explain: bool = False, cores: int | None = None) -> None:
        threads = scorer.engine.threads
        self.parallel = max(1, (cores or available_cores()) // threads) if threads else 1
        self._scorer = scorer
        self._top_k = top_k
        self._explain = explain

    def prepare(self, data: bytes) -> np.ndarray:
        """Return the input of the network, uint8 (S, S, 3); raise BadImage if the file cannot be read."""
        pixels: np.ndarray = self._scorer.decode(in_common_format(data))
        return pixels

    def answers(self, images: list[np.ndarray]) -> list[dict[str, Any]]:
        """Return one answer per image, uint8 (S, S, 3); `explain` adds the `class_map`."""
        scores = self._scorer.scores(self._scorer.engine.compute(np.stack(images), self._explain))
        answers = self._scorer.answers(scores, self._top_k)
        if self._explain:
            for answer, class_map in zip(answers, scores.class_maps, strict=True):
                answer["class_map"] = class_map
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
    batches: Iterable[list[File]], answerer: Answerer, model: str, overlays: Overlays | None = None
) -> Generator[tuple[list[File], dict[str, Row]]]:
    """Yield each batch with its rows by path; threads score the next ones while the caller records this one.

    Args:
        model: digest of the model, for the rows.
        overlays: draws the images whose answers have a map.
    """
    pending: deque[tuple[list[File], Future[dict[str, Row]]]] = deque()
    with ThreadPoolExecutor(answerer.parallel) as threads:
        for batch in batches:
            pending.append((batch, threads.submit(_rows, batch, answerer, model, overlays)))
            if len(pending) > answerer.parallel:
                answered, rows = pending.popleft()
                yield answered, rows.result()
        for answered, rows in pending:
            yield answered, rows.result()


def _rows(batch: list[File], answerer: Answerer, model: str, overlays: Overlays | None) -> dict[str, Row]:
    """Return the rows of the files without an earlier outcome, by path."""
    images = [file.image for file in batch if file.image is not None]
    answers = iter(answerer.answers(images) if images else ())
    rows: dict[str, Row] = {}
    for file in batch:
        if file.earlier is None:
            answer = {} if file.error else next(answers)
            rows[file.path] = _row(file, answer, model)
            if overlays and "class_map" in answer:
                overlays.write(file.text, file.image, answer["class_map"])
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

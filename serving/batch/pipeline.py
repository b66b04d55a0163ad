"""The path of files through the model: read ahead in threads, scored in batches, recorded batch by batch."""

import hashlib
import json
import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_mlflow.errors import UsageError
from cifar_mlflow.interrupt import Interrupted, StopRequest
from cifar_mlflow.scorer.predictor import Scorer
from cifar_mlflow.scorer.preprocess import MAX_BYTES, BadImage
from serving.batch.find import Found, find_images
from serving.batch.progress import progress
from serving.batch.results import UNREADABLE, ResultsFile
from serving.batch.rows import FileError, Outcome, Row, file_stamp, outcome_of, path_text
from serving.batch.sorting import Sorter, sorter
from serving.batch.summary import Summary

logger = logging.getLogger("cifar_mlflow.classify")

BATCH_SIZE = 64
READER_THREADS = 4
DEFAULT_TOP_K = 3
READ_AHEAD = 2 * BATCH_SIZE


class File(NamedTuple):
    """A file that was read; exactly one of `image`, `error` and `earlier` is set.

    Attributes:
        path: the path for the operating system.
        text: the path in results, see `path_text`.
        image: uint8 (S, S, 3).
        earlier: the outcome of an earlier run that still holds.
    """

    path: str
    text: str
    size: int
    modified: int
    image: np.ndarray | None = None
    error: FileError | None = None
    earlier: Outcome | None = None


def classify(
    paths: Sequence[str],
    scorer: Scorer,
    *,
    output: Path | None = None,
    sort_into: Path | None = None,
    top_k: int | None = None,
) -> Summary:
    """Classify files, the images in folders, and the files that match patterns.

    Args:
        paths: see `find_images`.
        output: a .csv, .jsonl or .parquet file for the answers (see `Row`). Files that it already has rows
            for are not classified again, so the same call continues an interrupted one.
        sort_into: a folder for copies, one sub-folder per class; it is excluded from the search for images.
        top_k: number of most likely classes per file in `output`. Default: 3, or all of fewer classes.

    Raises:
        UsageError: a path, `output` or `top_k` cannot be used.
        CifarError: there are no images, or a place cannot be written. Files that cannot be classified raise
            nothing: they are in the summary.
        Interrupted: a signal came; finished work is in `output`.
    """
    if top_k is None:
        top_k = min(DEFAULT_TOP_K, len(scorer.classes))
    elif not 1 <= top_k <= len(scorer.classes):
        raise UsageError(
            f"--top-k must be from 1 to {len(scorer.classes)}, the number of classes of the model "
            f"(got {top_k})"
        )
    model = hashlib.sha256(json.dumps(scorer.card, sort_keys=True).encode()).hexdigest()[:16]
    results = ResultsFile(output, model, top_k) if output else None
    found = find_images(paths, exclude=sort_into)
    summary = Summary(len(found.files), output, sort_into)
    for folder, reason in found.unreadable.items():
        summary.add_error(FileError(path_text(folder), UNREADABLE, reason))
    with ExitStack() as stack:
        if results:
            stack.enter_context(results)
        copies = stack.enter_context(sorter(sort_into, scorer.classes)) if sort_into else None
        advance = stack.enter_context(progress(len(found.files)))
        stop = stack.enter_context(StopRequest())
        files = stack.enter_context(closing(_read_files(found, scorer.decode, results)))
        score = partial(_score, scorer=scorer, top_k=top_k, model=model)
        try:
            for batch, rows in stack.enter_context(closing(_score_batches(_batches(files, stop), score))):
                _record(batch, rows, summary, copies, results)
                advance(len(batch))
            if results:
                with stop.at_once():
                    results.finish()
        except Interrupted as interruption:
            logger.warning("Stopped by %s after %s", interruption, summary.resume_hint)
            raise
    return summary


def _read_files(
    found: Found, decode: Callable[[bytes], np.ndarray], results: ResultsFile | None
) -> Generator[File]:
    """Yield the files in order; threads read ahead."""
    ahead: deque[Future[File]] = deque()
    pool = ThreadPoolExecutor(READER_THREADS)
    try:
        for path in found.files:
            ahead.append(pool.submit(_read_file, path, decode, results))
            if len(ahead) > READ_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_file(path: str, decode: Callable[[bytes], np.ndarray], results: ResultsFile | None) -> File:
    file = File(path, path_text(path), 0, 0)
    try:
        state = os.stat(path)  # noqa: PTH116 - creating a million Path objects takes seconds
        file = file._replace(size=state.st_size, modified=state.st_mtime_ns)
        if results and (earlier := results.find(file.text, file_stamp(file.size, file.modified))):
            return file._replace(earlier=earlier)
        if not stat.S_ISREG(state.st_mode):  # reading a pipe would block
            return file._replace(error=FileError(file.text, "not_a_file", "It is not a regular file."))
        with open(path, "rb") as opened:  # noqa: PTH123
            data = opened.read(MAX_BYTES + 1)
        return file._replace(image=decode(data))
    except OSError as error:
        reason = f"It cannot be read: {error.strerror or error}."
        return file._replace(error=FileError(file.text, UNREADABLE, reason))
    except BadImage as error:
        return file._replace(error=FileError(file.text, error.code, str(error)))


def _batches(files: Iterator[File], stop: StopRequest) -> Iterator[list[File]]:
    """Group the files into batches.

    Raises:
        Interrupted: a signal came.
    """
    batch: list[File] = []
    for file in files:
        stop.raise_if_asked()
        batch.append(file)
        if len(batch) == BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


def _score_batches(
    batches: Iterator[list[File]], score: Callable[[list[File]], dict[str, Row]]
) -> Generator[tuple[list[File], dict[str, Row]]]:
    """Yield each batch with its rows; a thread scores the next batch while the caller records this one."""
    pending: tuple[list[File], Future[dict[str, Row]]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            submitted = batch, thread.submit(score, batch)
            if pending:
                yield pending[0], pending[1].result()
            pending = submitted
        if pending:
            yield pending[0], pending[1].result()


def _score(batch: list[File], *, scorer: Scorer, top_k: int, model: str) -> dict[str, Row]:
    """Return the rows of the files without an earlier outcome, by path."""
    images = [file.image for file in batch if file.image is not None]
    answers = iter(scorer.answers(scorer.score(np.stack(images)), top_k) if images else ())
    rows: dict[str, Row] = {}
    for file in batch:
        if file.earlier:
            continue
        answer = {} if file.error else next(answers)
        rows[file.path] = {
            "path": file.text,
            "label": answer.get("label"),
            "class_index": answer.get("class_index"),
            "confidence": answer.get("confidence"),
            "uncertain": answer.get("uncertain"),
            "top_k": answer.get("top_k"),
            "error_code": file.error and file.error.code,
            "error_message": file.error and file.error.message,
            "size": file.size,
            "modified": file.modified,
            "model": model,
        }
    return rows


def _record(
    batch: list[File],
    rows: dict[str, Row],
    summary: Summary,
    copies: Sorter | None,
    results: ResultsFile | None,
) -> None:
    for file in batch:
        outcome = file.earlier or outcome_of(rows[file.path])
        if copies and outcome.label is not None:
            copies.copy(file.path, outcome.label, bool(outcome.uncertain))
        summary.add(file.text, outcome, earlier=file.earlier is not None)
    if results:  # after the copies, because a file with a row counts as finished
        results.append(list(rows.values()))

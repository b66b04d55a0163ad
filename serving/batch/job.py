"""The way of files through the model: read ahead in threads, scored in batches, kept batch by batch."""

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
from serving.batch.results import UNREADABLE, Results
from serving.batch.rows import Problem, Row, Verdict, as_text, stamp_of, verdict_of
from serving.batch.sorting import Sorter, sorter
from serving.batch.summary import Summary

logger = logging.getLogger("cifar_mlflow.classify")

BATCH = 64
READERS = 4
READ_AHEAD = 2 * BATCH


class File(NamedTuple):
    """A file that was looked at; one of `image`, `problem` and `known` is there.

    `path` is what the operating system calls it, `text` what it is called in results.
    """

    path: str
    text: str
    size: int
    modified: int
    image: np.ndarray | None = None
    problem: Problem | None = None
    known: Verdict | None = None


def classify(
    paths: Sequence[str],
    scorer: Scorer,
    *,
    output: Path | None = None,
    sort_into: Path | None = None,
    top_k: int = 3,
) -> Summary:
    """Classify files, the images in folders, and what patterns match.

    Args:
        paths: see `find_images`.
        output: a .csv, .jsonl or .parquet file for the answers (see `Row`). What it holds already is not
            classified again, so the same call goes on where an earlier one ended in whatever way.
        sort_into: a folder for copies in one folder a class; it is left out of the search for images.
        top_k: how many of the likeliest classes `output` has for each file, at most.

    Raises:
        UsageError: a path, `output` or `top_k` cannot be used.
        CifarError: no images, or a place that cannot be written. Files that cannot be read or are no images
            are not among the reasons: the summary names them.
        Interrupted: a signal came; what was done is in `output`.
    """
    if top_k < 1:
        raise UsageError(f"--top-k must be at least 1 (got {top_k})")
    top_k = min(top_k, len(scorer.classes))
    model = hashlib.sha256(json.dumps(scorer.card, sort_keys=True).encode()).hexdigest()[:16]
    results = Results(output, model, top_k) if output else None
    found = find_images(paths, sort_into)
    summary = Summary(len(found.files), output, sort_into)
    for folder, reason in found.unreadable.items():
        summary.add_problem(Problem(as_text(folder), UNREADABLE, reason))
    with ExitStack() as stack:
        if results:
            stack.enter_context(results)
        copies = stack.enter_context(sorter(sort_into, scorer.classes)) if sort_into else None
        advance = stack.enter_context(progress(len(found.files)))
        stop = stack.enter_context(StopRequest())
        files = stack.enter_context(closing(_looked_at(found, scorer.decode, results)))
        score = partial(_score, scorer=scorer, top_k=top_k, model=model)
        try:
            for batch, rows in stack.enter_context(closing(_scored(_batches(files, stop), score))):
                _keep(batch, rows, summary, copies, results)
                advance(len(batch))
            if results:
                with stop.at_once():
                    results.finish()
        except Interrupted as interruption:
            logger.warning("Stopped by %s after %s", interruption, summary.resume_hint)
            raise
    return summary


def _looked_at(
    found: Found, decode: Callable[[bytes], np.ndarray], results: Results | None
) -> Generator[File]:
    """The files in order, some of them read ahead of time."""
    ahead: deque[Future[File]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for path in found.files:
            ahead.append(pool.submit(_look_at, path, decode, results))
            if len(ahead) > READ_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at(path: str, decode: Callable[[bytes], np.ndarray], results: Results | None) -> File:
    file = File(path, as_text(path), 0, 0)
    try:
        state = os.stat(path)  # noqa: PTH116 - of a million files, a Path each takes its time
        file = file._replace(size=state.st_size, modified=state.st_mtime_ns)
        if results and (known := results.known(file.text, stamp_of(file.size, file.modified))):
            return file._replace(known=known)
        if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for
            return file._replace(problem=Problem(file.text, "not_a_file", "It is no regular file."))
        with open(path, "rb") as opened:  # noqa: PTH123
            data = opened.read(MAX_BYTES + 1)
        return file._replace(image=decode(data))
    except OSError as error:
        reason = f"It cannot be read: {error.strerror or error}."
        return file._replace(problem=Problem(file.text, UNREADABLE, reason))
    except BadImage as error:
        return file._replace(problem=Problem(file.text, error.code, str(error)))


def _batches(files: Iterator[File], stop: StopRequest) -> Iterator[list[File]]:
    """
    Raises:
        Interrupted: a signal came.
    """
    batch: list[File] = []
    for file in files:
        stop.raise_if_asked()
        batch.append(file)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _scored(
    batches: Iterator[list[File]], score: Callable[[list[File]], dict[str, Row]]
) -> Generator[tuple[list[File], dict[str, Row]]]:
    """Each batch and its rows; the next one is being scored while the caller keeps them."""
    waiting: tuple[list[File], Future[dict[str, Row]]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            begun = batch, thread.submit(score, batch)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = begun
        if waiting:
            yield waiting[0], waiting[1].result()


def _score(batch: list[File], *, scorer: Scorer, top_k: int, model: str) -> dict[str, Row]:
    """Rows of those files that were not known, by path."""
    images = [file.image for file in batch if file.image is not None]
    answers = iter(scorer.answers(scorer.score(np.stack(images)), top_k) if images else ())
    rows: dict[str, Row] = {}
    for file in batch:
        if file.known:
            continue
        answer = {} if file.problem else next(answers)
        rows[file.path] = {
            "path": file.text,
            "label": answer.get("label"),
            "class_index": answer.get("class_index"),
            "confidence": answer.get("confidence"),
            "uncertain": answer.get("uncertain"),
            "top_k": answer.get("top_k"),
            "error_code": file.problem and file.problem.code,
            "error_message": file.problem and file.problem.message,
            "size": file.size,
            "modified": file.modified,
            "model": model,
        }
    return rows


def _keep(
    batch: list[File], rows: dict[str, Row], summary: Summary, copies: Sorter | None, results: Results | None
) -> None:
    for file in batch:
        verdict = file.known or verdict_of(rows[file.path])
        if copies and verdict.label is not None:
            copies.copy(file.path, verdict.label, bool(verdict.uncertain))
        summary.add(file.text, verdict, known=file.known is not None)
    if results:  # after the copies: what is in there counts as done
        results.append(list(rows.values()))

"""Classify images in this process into one file: read ahead, score in batches, record batch by batch."""

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from cifar_mlflow.errors import UsageError
from cifar_mlflow.interrupt import Interrupted, StopRequest
from cifar_mlflow.scorer.predictor import Scorer
from serving.batch.answer import ScorerAnswerer, answer_batches, batches
from serving.batch.find import Found, find_images
from serving.batch.overlays import Overlays
from serving.batch.progress import progress
from serving.batch.read import File, read_images
from serving.batch.remote import is_url
from serving.batch.results import UNREADABLE, ResultsFile
from serving.batch.rows import FileError, Row, outcome_of, path_text
from serving.batch.sorting import Sorter, sorter
from serving.batch.summary import Summary

logger = logging.getLogger("cifar_mlflow.classify")

DEFAULT_TOP_K = 3


def classify(
    paths: Sequence[str],
    scorer: Scorer,
    *,
    output: Path | None = None,
    sort_into: Path | None = None,
    explain: Path | None = None,
    top_k: int | None = None,
) -> Summary:
    """Classify files, the images in folders and tables, and the files that match patterns.

    Args:
        paths: see `find_images`.
        output: a .csv, .jsonl or .parquet file for the answers (see `Row`). Images that it already has rows
            for are not classified again, so the same call continues an interrupted one.
        sort_into: a folder for copies, one subfolder per class; it is excluded from the search for images.
        explain: a folder for pictures that show why an image has its answer (see `Overlays`), excluded too.
        top_k: number of most likely classes per image in `output`. Default: 3, or all of fewer classes.

    Raises:
        UsageError: a path, `output` or `top_k` cannot be used, or the model cannot explain its answers.
        CifarError: there are no images, or a place cannot be written. Images that cannot be classified raise
            nothing: they are in the summary.
        Interrupted: a signal came; finished work is in `output`.
    """
    top_k = check_top_k(top_k, scorer)
    model = model_digest(scorer)
    results = ResultsFile(output, model, top_k) if output else None
    folders = {"--sort-into": sort_into, "--explain": explain}
    written = {option: folder for option, folder in folders.items() if folder}
    overlays = Overlays(explain, scorer) if explain else None
    found = find_images(paths, exclude=written)
    if sort_into and (found.tables or any(map(is_url, found.files))):
        raise UsageError("--sort-into copies local files only, no URLs and no rows of a table")
    summary = start_summary(found, scorer, str(output) if output else None, sort_into, explain)
    with ExitStack() as stack:
        if results:
            stack.enter_context(results)
        copies = stack.enter_context(sorter(sort_into, scorer.classes)) if sort_into else None
        advance = stack.enter_context(progress(found.count))
        stop = stack.enter_context(StopRequest())
        answerer = ScorerAnswerer(scorer, top_k, explain is not None)
        files = read_images(found, answerer.prepare, *([results.find] if results else []))
        stack.enter_context(closing(files))
        answered = answer_batches(batches(files, stop.raise_if_asked), answerer, model, overlays)
        try:
            for batch, rows in stack.enter_context(closing(answered)):
                _record(batch, rows, summary, copies, results)
                advance(len(batch))
            if results:
                with stop.at_once():
                    results.finish()
        except Interrupted as interruption:
            logger.warning("Stopped by %s after %s", interruption, summary.resume_hint)
            raise
    return summary


def check_top_k(top_k: int | None, scorer: Scorer) -> int:
    """Return `top_k`, or its default.

    Raises:
        UsageError: the model does not have that many classes.
    """
    if top_k is None:
        return min(DEFAULT_TOP_K, len(scorer.classes))
    if not 1 <= top_k <= len(scorer.classes):
        raise UsageError(
            f"--top-k must be from 1 to {len(scorer.classes)}, the number of classes of the model "
            f"(got {top_k})"
        )
    return top_k


def model_digest(scorer: Scorer) -> str:
    """Return the digest by which rows identify their model."""
    return hashlib.sha256(json.dumps(scorer.card, sort_keys=True).encode()).hexdigest()[:16]


def start_summary(
    found: Found,
    scorer: Scorer,
    output: str | None,
    sort_into: Path | None = None,
    explain: Path | None = None,
) -> Summary:
    """Return a summary without images, but with the folders that cannot be read."""
    summary = Summary(found.count, output, sort_into, explain)
    summary.confidence_below = scorer.card["uncertain"]["confidence_below"]
    for folder, reason in found.unreadable.items():
        summary.add_error(FileError(path_text(folder), UNREADABLE, reason))
    return summary


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

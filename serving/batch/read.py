"""Read images from files, URLs and tables; threads read and prepare them ahead."""

import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from cifar_mlflow.scorer.phone_formats import MissingDecoder
from cifar_mlflow.scorer.preprocess import MAX_BYTES, BadImage, image_bytes
from serving.batch.find import Found
from serving.batch.remote import Stamp, is_url, read_url, url_stamp
from serving.batch.results import UNREADABLE, missing_decoder
from serving.batch.rows import FileError, Outcome, file_stamp, path_text
from serving.batch.tables import TablePart, read_cells

READER_THREADS = 4
CHUNK = 16  # images per task: handing small images over one by one would cost as much as decoding them
READ_AHEAD = 8  # tasks

Prepare = Callable[[bytes], Any]
# Takes the path and state of a file; returns the outcome of an earlier run if it is still valid.
FindEarlier = Callable[[str, int], Outcome | None]


class File(NamedTuple):
    """An image that was read; exactly one of `image`, `error` and `earlier` is set.

    Attributes:
        path: the path for the operating system, or the URL; for a row of a table, its file and number.
        text: the path in results, see `path_text`.
        size, modified: see `Row`.
        image: the result of `prepare`.
        earlier: the outcome of an earlier run that is still valid.
    """

    path: str
    text: str
    size: int
    modified: int
    image: Any = None
    error: FileError | None = None
    earlier: Outcome | None = None


def read_images(
    found: Found, prepare: Prepare, find_earlier: FindEarlier = lambda path, stamp: None
) -> Generator[File]:
    """Yield the images in order.

    Args:
        prepare: is called in a thread with the bytes of each image; raises BadImage.
        find_earlier: images for which it returns an outcome are neither read nor prepared.

    Raises:
        UsageError: a table is damaged or no longer exists.
        CifarError: its storage does not answer.
    """
    ahead: deque[Future[list[File]]] = deque()
    pool = ThreadPoolExecutor(READER_THREADS)
    tasks = _tasks(found, prepare, find_earlier)
    try:
        while chunk := list(islice(tasks, CHUNK)):
            ahead.append(pool.submit(_run, chunk))
            if len(ahead) > READ_AHEAD:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run(tasks: list[Callable[[], File]]) -> list[File]:
    return [task() for task in tasks]


def _tasks(found: Found, prepare: Prepare, find_earlier: FindEarlier) -> Iterator[Callable[[], File]]:
    for path in found.files:
        file = File(path, path_text(path), 0, 0)
        yield partial(_read_file, file, found.locate(path), found.stamps.get(path), prepare, find_earlier)
    for part in found.tables:
        for row, cell in read_cells(part, found.locate(part.path)):
            yield partial(_read_cell, part, row, cell, prepare, find_earlier)


def _read_file(
    file: File, path: str, stamp: Stamp | None, prepare: Prepare, find_earlier: FindEarlier
) -> File:
    remote = is_url(path)
    try:
        if remote:
            regular, (size, modified) = True, stamp or url_stamp(path)
        else:
            state = os.stat(path)  # noqa: PTH116 - creating a million Path objects takes seconds
            regular, size, modified = stat.S_ISREG(state.st_mode), state.st_size, state.st_mtime_ns
        file = file._replace(size=size, modified=modified)
        if earlier := find_earlier(file.text, file_stamp(size, modified)):
            return file._replace(earlier=earlier)
        if not regular:  # reading a pipe would block
            return file._replace(error=FileError(file.text, "not_a_file", "It is not a regular file."))
        if remote:
            data = read_url(path, MAX_BYTES + 1 if size > MAX_BYTES else None)
        else:
            with open(path, "rb") as opened:  # noqa: PTH123
                # Not always MAX_BYTES: allocating that many takes as long as decoding a small image.
                data = opened.read(min(size, MAX_BYTES) + 1)
    except Exception as error:
        if not remote and not isinstance(error, OSError):
            raise
        # Each remote file system has its own kinds of errors.
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        return file._replace(error=FileError(file.text, UNREADABLE, f"It cannot be read: {reason}."))
    return _prepared(file, data, prepare)


def _read_cell(part: TablePart, row: int, cell: object, prepare: Prepare, find_earlier: FindEarlier) -> File:
    path = f"{part.path}#{row}"
    size = len(cell) if isinstance(cell, bytes | str) else 0
    file = File(path, path_text(path), size, part.stamp.modified)
    if earlier := find_earlier(file.text, file_stamp(size, file.modified)):
        return file._replace(earlier=earlier)
    try:
        data = image_bytes(cell)
    except BadImage as error:
        return file._replace(error=FileError(file.text, error.code, str(error)))
    return _prepared(file, data, prepare)


def _prepared(file: File, data: bytes, prepare: Prepare) -> File:
    try:
        return file._replace(image=prepare(data))
    except MissingDecoder as error:
        return file._replace(error=FileError(file.text, missing_decoder(error.kind), str(error)))
    except BadImage as error:
        return file._replace(error=FileError(file.text, error.code, str(error)))

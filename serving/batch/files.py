"""What writing results and copies has in common: one writer at a time, and no half-written files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from cifar_mlflow.errors import CifarError


@contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Say for a person that `path` could not be written; wrap only what writes."""
    try:
        yield
    except OSError as error:
        raise CifarError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def only_writer(path: Path, lock: Path) -> Iterator[None]:
    """Hold `lock`, a file that is gone afterwards, while `path` is written; its folder is made.

    Raises:
        CifarError: another process holds it.
    """
    with writing_errors(path):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            raise CifarError(
                f"{path} is being written by another process: wait for it, or choose another place"
            ) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before the release: who waits for it notices that it is gone
        held.release()


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` to write to; whatever is still there at the end is removed."""
    beside = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)

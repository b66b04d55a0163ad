"""One process at a time may write a results file or a folder of sorted copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_mlflow.errors import CifarError
from cifar_mlflow.files import write_errors


@contextmanager
def exclusive_writer(path: Path, lock: Path) -> Iterator[None]:
    """Hold the lock file while `path` is written; its folder is created, and the file deleted at the end.

    Raises:
        CifarError: another process holds the lock, or the lock file cannot be created.
    """
    with write_errors(path):
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
        # Before the release: a process that opened the file meanwhile notices that it was deleted.
        lock.unlink(missing_ok=True)
        held.release()

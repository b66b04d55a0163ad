"""One writer at a time for results and copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_mlflow.errors import CifarError
from cifar_mlflow.files import write_errors


@contextmanager
def only_writer(path: Path, lock: Path) -> Iterator[None]:
    """Hold `lock`, a file that is gone afterwards, while `path` is written; its folder is made.

    Raises:
        CifarError: another process holds it.
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
        lock.unlink(missing_ok=True)  # before the release: who waits for it notices that it is gone
        held.release()

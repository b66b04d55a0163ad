"""Files that are complete or absent: written beside their place and renamed into it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cifar_mlflow.errors import CifarError


@contextmanager
def write_errors(path: Path, hint: str = "") -> Iterator[None]:
    """Turn an OSError in the block into a CifarError that names `path`; wrap only the writing.

    Args:
        hint: what the user can do; appended to the message.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of a folder, file by file
            _, _, reason = error.args[0][0]
        raise CifarError(f"{path}: cannot be written ({reason}){hint}") from error


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """Yield a hidden, unused path beside `path`; delete the file there at the end if it still exists.

    Unlike `tempfile`, the file gets the usual permissions.
    """
    # The name does not contain that of `path`, which may already be as long as the file system allows.
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, hint: str = "", *, private: bool = False) -> Iterator[Path]:
    """Yield a path to write to; rename it to `path` at the end of the block. Parent folders are created.

    Args:
        hint: see `write_errors`.
        private: only the user may read the file (mode 0600).

    Raises:
        CifarError: the file cannot be written. Whatever was at `path` before is untouched.
    """
    with write_errors(path, hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_sibling(path) as temporary:
            if private:
                temporary.touch(mode=0o600)
            yield temporary
            temporary.replace(path)

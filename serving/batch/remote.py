"""Files at URLs that fsspec understands, such as s3://bucket/photos or memory://photos."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.extras import import_extra

# File systems name the time of the last change differently.
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class Stamp(NamedTuple):
    """The state of a file: size in bytes, and last change in nanoseconds since 1970 (0 if unknown)."""

    size: int
    modified: int


def is_url(path: str) -> bool:
    """Return whether a path has a protocol; `file://` counts as a local path once it is stripped."""
    return "://" in path


def local_path(path: str) -> str:
    """Return the path without `file://`."""
    return path.removeprefix("file://")


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL or local path, and the path in it.

    Raises:
        UsageError: the protocol is unknown, or its package is not installed.
        CifarError: the storage does not answer; some file systems connect at once.
    """
    core = import_extra("fsspec.core", "pip install fsspec", f"reading or writing {url}")
    with storage_errors(url):
        try:
            system, path = core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{url} cannot be used: {error}") from error
    return system, path


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn errors of a file system in the block into errors for people; each system has its own kinds.

    Raises:
        UsageError: there is no such file.
        CifarError: the storage does not answer or refuses.
    """
    try:
        yield
    except CifarError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"{url}: no such file or folder") from error
    except Exception as error:
        raise CifarError(f"{url}: the storage answered: {error or type(error).__name__}") from error


def list_url(url: str, suffixes: tuple[str, ...]) -> dict[str, Stamp]:
    """Return the files at a URL, by URL, sorted by name.

    Args:
        url: a file, a pattern, or a folder, which stands for the files below it that have one of the suffixes
            and are not hidden.

    Raises:
        UsageError: nothing is there, or the URL cannot be used.
        CifarError: the storage does not answer or refuses.
    """
    system, path = file_system(url)
    with storage_errors(url):
        if glob.has_magic(path):
            found = {name: info for name, info in system.glob(path, detail=True).items() if _is_file(info)}
        elif _is_file(info := system.info(path)):
            found = {path: info}
        else:
            found = {
                name: info
                for name, info in system.find(path, detail=True).items()
                if name.lower().endswith(suffixes) and "/." not in name.removeprefix(path.rstrip("/"))
            }
    if not found:
        raise UsageError(f"{url}: no such file, or no images there")
    return {system.unstrip_protocol(name): _stamp(found[name]) for name in sorted(found)}


def read_url(url: str, end: int | None) -> bytes:
    """Return the bytes of a file, or those before `end`."""
    system, path = file_system(url)
    content: bytes = system.cat_file(path, start=None if end is None else 0, end=end)
    return content


def url_stamp(url: str) -> Stamp:
    """Return the state of a file; this costs a request."""
    system, path = file_system(url)
    return _stamp(system.info(path))


def _is_file(info: dict[str, Any]) -> bool:
    return bool(info["type"] == "file")


def _stamp(info: dict[str, Any]) -> Stamp:
    modified = next((info[name] for name in _MODIFIED if info.get(name)), 0)
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified)
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    return Stamp(int(info["size"] or 0), int(seconds * 1e9))

"""Cache decoded arrays on disk and read them back by memory map.

Decoding 60,000 images takes seconds, mapping them takes none. `CACHE/arrays/DIGEST/SPLIT/` holds
`images.npy`, `labels.npy` and `meta.json`. An entry is complete or absent: one process at a time writes it
into a temporary folder and renames that.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from filelock import FileLock, Timeout

from cifar_mlflow.config import SplitName
from cifar_mlflow.data.dataset import Split
from cifar_mlflow.errors import CifarError
from cifar_mlflow.files import atomic_write, write_errors
from cifar_mlflow.names import printable

FORMAT = 1
CACHE_HINT = ": free some space there or choose another place with --cache-dir (or CIFAR_MLFLOW_CACHE)"
# The coarsest resolution of file times (FAT): a younger file may change again and keep its times.
TIME_RESOLUTION_NS = 2_000_000_000
logger = logging.getLogger(__name__)


def cached_split(
    cache_dir: Path, digest: str, name: SplitName, read: Callable[[SplitName], Iterable[Split]]
) -> Split:
    """Return a split from the cache; `read` decodes it first if the entry is missing, damaged or outdated.

    Raises:
        CifarError: the cache directory is full or cannot be written, or `read` raises it.
    """
    entry = cache_dir / "arrays" / digest / name
    if (split := _load(entry)) is not None:
        return split
    with exclusive(entry):
        # Another process may have written it while this one waited for the lock.
        if (split := _load(entry)) is not None:
            return split
        logger.info("Decoding the %s images once; the arrays are kept in %s", name, printable(str(cache_dir)))
        _store(entry, read(name))
    if (split := _load(entry)) is None:
        raise CifarError(
            f"{entry} was written but cannot be read back: check the disk, or choose another --cache-dir"
        )
    return split


def remembered(cache_dir: Path, purpose: str, files: Mapping[bytes, Path], compute: Callable[[], str]) -> str:
    """Return `compute()`, or its earlier result if nothing that it depends on has changed since.

    This is for digests of contents: hashing 180 MB takes half a second, reading file times takes none.

    Args:
        purpose: identifies `compute` and its parameters other than the files.
        files: the files that are read, by the names that enter the result, in order. A file counts as changed
            when its device, inode, size, modification time or status change time differs. No program can set
            the last one, so new content of equal size with an old modification time is noticed, too.
    """
    stats = {name: path.stat() for name, path in files.items()}
    stamps = [
        (name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for name, stat in stats.items()
    ]
    settled = time.time_ns() - TIME_RESOLUTION_NS
    key = hashlib.sha256(repr((purpose, stamps)).encode()).hexdigest()
    memo = cache_dir / "digests" / key
    if memo.is_file() and (value := memo.read_text().strip()):
        return value
    value = compute()
    if all(stat.st_ctime_ns < settled for stat in stats.values()):
        with atomic_write(memo, CACHE_HINT) as unfinished:
            unfinished.write_text(value)
    return value


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Let one process at a time create `target`; others wait. The parent folder is created."""
    with cache_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is preparing %s; waiting for it", printable(str(target)))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cache_errors(path: Path) -> AbstractContextManager[None]:
    """Return `write_errors` with the hint to choose another cache folder."""
    return write_errors(path, CACHE_HINT)


def _load(entry: Path) -> Split | None:
    try:
        meta = json.loads((entry / "meta.json").read_text())
        if meta != _meta(entry):
            return None
        return Split(np.load(entry / "images.npy", mmap_mode="r"), np.load(entry / "labels.npy"))
    except (OSError, ValueError):  # absent, cut short or overwritten: it is decoded again
        return None


def _meta(entry: Path) -> dict[str, object]:
    sizes = {name: (entry / name).stat().st_size for name in ("images.npy", "labels.npy")}
    # Another version of Pillow may decode and resize the same file to other pixels.
    return {"format": FORMAT, "pillow": PIL.__version__, "sizes": sizes}


def _store(entry: Path, pieces: Iterable[Split]) -> None:
    with cache_errors(entry):
        unfinished = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        labels = _write_images(unfinished / "images.npy", pieces)
        with cache_errors(entry):
            np.save(unfinished / "labels.npy", labels)
            (unfinished / "meta.json").write_text(json.dumps(_meta(unfinished)))
            if entry.exists():  # damaged or outdated; a process that still maps it keeps its files
                shutil.rmtree(entry)
            unfinished.replace(entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_images(path: Path, pieces: Iterable[Split]) -> np.ndarray:
    """Write the images piece by piece, so that they are never all in memory, and return all labels."""
    labels: list[np.ndarray] = []
    with cache_errors(path):
        file = path.open("wb")
    with file:
        for piece in pieces:
            with cache_errors(path):
                if not labels:
                    body = _write_header(file, (0, *piece.images.shape[1:]))
                file.write(np.ascontiguousarray(piece.images).data)
            labels.append(piece.labels)
        if not labels:
            raise ValueError("the source has no images")
        all_labels = np.concatenate(labels)
        with cache_errors(path):
            # The number of images is known only now; numpy pads the header so that it can grow in place.
            file.seek(0)
            if _write_header(file, (len(all_labels), *piece.images.shape[1:])) != body:
                raise ValueError("the header of images.npy changed its length")
    return all_labels


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    descr = np.lib.format.dtype_to_descr(np.dtype(np.uint8))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.tell()

"""Decoded arrays on disk, read back by memory map: decoding 60,000 images takes seconds, mapping them none.

`CACHE/arrays/DIGEST/SPLIT/` holds `images.npy`, `labels.npy` and `meta.json`. An entry appears whole or not
at all: it is written beside its place and moved there, by one process at a time.
"""

import errno
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from cifar_mlflow.data.dataset import SourceSplit, Split
from cifar_mlflow.errors import CifarError

FORMAT = 1
logger = logging.getLogger(__name__)


def cached_split(
    cache_dir: Path, digest: str, name: SourceSplit, read: Callable[[SourceSplit], Iterable[Split]]
) -> Split:
    """The split from the cache, decoded by `read` first where the cache lacks it or holds it damaged.

    Raises:
        CifarError: the cache directory is full or cannot be written, or what `read` raises.
    """
    entry = cache_dir / "arrays" / digest / name
    if (split := _load(entry)) is not None:
        return split
    with exclusive(entry):
        # Another process may have written it while this one waited for the lock.
        if (split := _load(entry)) is not None:
            return split
        logger.info("decoding the %s images once; they are kept in %s", name, cache_dir)
        _store(entry, read(name))
    if (split := _load(entry)) is None:
        raise CifarError(
            f"{entry} was written but cannot be read back: check the disk, or choose another cache_dir"
        )
    return split


def remembered(cache_dir: Path, purpose: str, files: Iterable[Path], compute: Callable[[], str]) -> str:
    """`compute()`, or what it gave for these files before, if none has changed its size or time since.

    For sums over the content: reading 180 MB takes half a second, asking for its date takes nothing.
    """
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(repr((purpose, stamps)).encode()).hexdigest()
    memo = cache_dir / "digests" / key
    if memo.is_file() and (value := memo.read_text().strip()):
        return value
    value = compute()
    with exclusive(memo), disk_errors(memo):
        unfinished = memo.with_suffix(".new")
        unfinished.write_text(value)
        unfinished.replace(memo)
    return value


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Let one process at a time make `target`; its folder is created. The others wait."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is preparing %s; waiting for it", target)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say for a person that `path` could not be written; wrap only what writes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"No space left for {path}: free some, or choose another disk with cache_dir"
        else:
            message = f"Cannot write {path} ({error.strerror or error}): choose a writable cache_dir"
        raise CifarError(f"{message} (or CIFAR_MLFLOW_CACHE).") from None


def _load(entry: Path) -> Split | None:
    try:
        meta = json.loads((entry / "meta.json").read_text())
        sizes = {name: (entry / name).stat().st_size for name in ("images.npy", "labels.npy")}
        if meta != {"format": FORMAT, "sizes": sizes}:
            return None
        return Split(np.load(entry / "images.npy", mmap_mode="r"), np.load(entry / "labels.npy"))
    except (OSError, ValueError):  # absent, cut short or overwritten: it is made again
        return None


def _store(entry: Path, pieces: Iterable[Split]) -> None:
    with disk_errors(entry):
        unfinished = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        labels = _write_images(unfinished / "images.npy", pieces)
        with disk_errors(entry):
            np.save(unfinished / "labels.npy", labels)
            sizes = {file.name: file.stat().st_size for file in unfinished.iterdir()}
            (unfinished / "meta.json").write_text(json.dumps({"format": FORMAT, "sizes": sizes}))
            if entry.exists():  # damaged; a process that still maps it keeps its files
                shutil.rmtree(entry)
            unfinished.replace(entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_images(path: Path, pieces: Iterable[Split]) -> np.ndarray:
    """Write the images one piece at a time, never all in memory. Returns all labels."""
    labels: list[np.ndarray] = []
    with disk_errors(path):
        file = path.open("wb")
    with file:
        for piece in pieces:
            with disk_errors(path):
                if not labels:
                    body = _write_header(file, (0, *piece.images.shape[1:]))
                file.write(np.ascontiguousarray(piece.images).data)
            labels.append(piece.labels)
        if not labels:
            raise ValueError("a source gave no images")
        all_labels = np.concatenate(labels)
        with disk_errors(path):
            # The number of images is known only now; numpy pads the header so that it can grow in place.
            file.seek(0)
            if _write_header(file, (len(all_labels), *piece.images.shape[1:])) != body:
                raise ValueError("the header of images.npy changed its length")
    return all_labels


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    descr = np.lib.format.dtype_to_descr(np.dtype(np.uint8))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.tell()

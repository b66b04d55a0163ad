"""CIFAR-10 as published: the archive `cifar-10-python.tar.gz`, or the folder that it unpacks to."""

import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_mlflow.config import SplitName
from cifar_mlflow.data.cache import cache_errors, remembered
from cifar_mlflow.data.dataset import CIFAR10_CLASSES, Source, Split
from cifar_mlflow.data.download import download, file_md5
from cifar_mlflow.errors import CifarError

FOLDER = "cifar-10-batches-py"
ARCHIVE_NAME = "cifar-10-python.tar.gz"
WITHOUT_DOWNLOAD = (
    "Name a local copy of CIFAR-10 with --data-dir or CIFAR10_DIR: "
    f"the folder {FOLDER}, the archive {ARCHIVE_NAME}, or the Hub's parquet files. "
    "The embedded sample needs no download: train --dataset sample."
)


@dataclass(frozen=True)
class Archive:
    """The md5 sums of the published archive and of the files in it: (file name, md5)."""

    md5: str
    meta: tuple[str, str]
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """Return a hex sha256 of the content; archive and folder have the same, so they share the cache."""
        return hashlib.sha256(repr(("cifar10", self.meta, self.train, self.test)).encode()).hexdigest()


PUBLISHED = Archive(
    md5="c58f30108f718f92721af3b95e74349a",
    meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    train=(
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
)


def batches_source(folder: Path, archive: Archive, cache_dir: Path) -> Source:
    """Return the images of torchvision's folder, with `data_batch_1` and the other files.

    Raises:
        CifarError: a file is missing, cannot be read, or differs from the published one.
    """
    for name, md5 in (archive.meta, *archive.train, *archive.test):
        path = folder / name
        if not path.is_file():
            raise CifarError(f"{folder} is incomplete: {name} is missing. Unpack {ARCHIVE_NAME} again.")
        if _md5_of(path, cache_dir) != md5:
            raise CifarError(f"{path} is damaged (wrong md5). Unpack {ARCHIVE_NAME} again.")

    def read(split: SplitName) -> Iterator[Split]:
        yield _read_with_torchvision(folder, split, archive)

    return _source(archive, read)


def archive_source(path: Path, archive: Archive, cache_dir: Path) -> Source:
    """Return the images of an archive, which is unpacked into the cache only while it is decoded.

    Raises:
        CifarError: the archive cannot be read, or differs from the published one.
    """
    if _md5_of(path, cache_dir) != archive.md5:
        raise CifarError(
            f"{path} is damaged or incomplete (its md5 is not {archive.md5}). Download it again."
        )

    def read(split: SplitName) -> Iterator[Split]:
        yield _read_archive(path, split, archive, cache_dir)

    return _source(archive, read)


def downloaded_source(mirrors: tuple[str, ...], archive: Archive, cache_dir: Path) -> Source:
    """Return the images of the archive in `cache_dir`; download it if it is not there.

    Raises:
        CifarError: the download fails; the text lists the attempts and the alternatives.
    """
    path = cache_dir / ARCHIVE_NAME
    if not path.exists():
        download(mirrors, path, archive.md5, WITHOUT_DOWNLOAD)

    def read(split: SplitName) -> Iterator[Split]:
        # Usually only verifies the file; downloads it again if it was damaged since.
        download(mirrors, path, archive.md5, WITHOUT_DOWNLOAD)
        yield _read_archive(path, split, archive, cache_dir)

    return _source(archive, read)


def _md5_of(path: Path, cache_dir: Path) -> str:
    """Return the md5 of a file, computed once per version; torchvision verifies again what it decodes.

    Raises:
        CifarError: the file cannot be read.
    """
    try:
        return remembered(cache_dir, "md5", {b"": path}, lambda: file_md5(path))
    except OSError as error:
        raise CifarError(f"Cannot read {path}: {error.strerror}") from None


def _source(archive: Archive, read: Callable[[SplitName], Iterator[Split]]) -> Source:
    return Source("cifar10", CIFAR10_CLASSES, 32, archive.digest, read)


def _read_archive(path: Path, split: SplitName, archive: Archive, cache_dir: Path) -> Split:
    files = archive.train if split == "train" else archive.test
    wanted = {f"{FOLDER}/{name}" for name, _ in (archive.meta, *files)}
    with cache_errors(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        unpacked = tempfile.TemporaryDirectory(prefix=".unpacked-", dir=cache_dir)
    with unpacked as directory, tarfile.open(path) as tar:
        for member in tar:
            if member.name in wanted:
                with cache_errors(cache_dir):
                    tar.extract(member, directory, filter="data")
        return _read_with_torchvision(Path(directory) / FOLDER, split, archive)


def _read_with_torchvision(folder: Path, split: SplitName, archive: Archive) -> Split:
    # Imported here because it takes seconds, and a start from the cache does not need it.
    from torchvision.datasets import CIFAR10

    folder = folder.resolve()
    layout: dict[str, Any] = {
        "base_folder": folder.name,
        "meta": {"filename": archive.meta[0], "key": "label_names", "md5": archive.meta[1]},
        # torchvision verifies the files of both lists; reading one split must not depend on the other.
        "train_list": archive.train if split == "train" else (),
        "test_list": archive.test if split == "test" else (),
    }
    try:
        data = type("PublishedFiles", (CIFAR10,), layout)(folder.parent, train=split == "train")
    except (RuntimeError, OSError) as error:
        raise CifarError(f"Cannot read CIFAR-10 in {folder}: {error}") from None
    return Split(data.data, np.asarray(data.targets, dtype=np.int64))

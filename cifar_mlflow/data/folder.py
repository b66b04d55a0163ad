"""A folder of JPEG, PNG, WebP, BMP and GIF images of any size, with one sub-folder per class."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_mlflow.data.cache import remembered
from cifar_mlflow.data.dataset import Source, SourceSplit, Split
from cifar_mlflow.data.split import stratified_split
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.names import printable
from cifar_mlflow.scorer.preprocess import BadImage, decode_image

IMAGES_AT_A_TIME = 256
TEST_SHARE = 0.1
TEST_SEED = 0  # not the seed of a run: the test images are a property of the folder
DECODER = "3"  # increase it when a change of our code gives other pixels for the same file


@dataclass(frozen=True)
class _Files:
    """Image files with their labels, int64 (N,)."""

    paths: list[Path]
    labels: np.ndarray


def folder_source(directory: Path | None, image_size: int, cache_dir: Path) -> Source:
    """Return the images of `directory/train/CLASS/*` and `directory/test/CLASS/*`.

    With neither `train` nor `test`, the class folders are those in `directory`. Without `directory/test`, a
    tenth of each class becomes the test split. Hidden files are ignored. A class is named after its folder;
    bytes that are not UTF-8 are escaped.

    Raises:
        UsageError: there is no such folder, it has `test` without `train` or fewer than two classes, or a
            class has too few images.
        CifarError: a file cannot be read; `read` raises it for a file that is not an image.
    """
    if directory is None:
        raise UsageError("--dataset folder needs --data-dir, a folder with one sub-folder per class")
    if not directory.is_dir():
        raise UsageError(f"data_dir: {directory} is not a folder")
    classes, splits, set_aside = _find(directory)

    def read(split: SourceSplit) -> Iterator[Split]:
        files = splits[split]
        for start in range(0, len(files.paths), IMAGES_AT_A_TIME):
            piece = slice(start, start + IMAGES_AT_A_TIME)
            images = np.stack([_decode(path, image_size) for path in files.paths[piece]])
            yield Split(images, files.labels[piece])

    digest = _digest(directory, splits, image_size, cache_dir)
    return Source(printable(directory.resolve().name), classes, image_size, digest, read, set_aside)


def _find(directory: Path) -> tuple[tuple[str, ...], dict[SourceSplit, _Files], tuple[int, ...]]:
    """Return the classes, the files of each split, and how many of each class were set aside for the test."""
    has_train, has_test = (directory / "train").is_dir(), (directory / "test").is_dir()
    # A folder `test` that holds images, not folders, is a class of that name.
    if has_test and not has_train and any(path.is_dir() for path in (directory / "test").iterdir()):
        raise UsageError(
            f"data_dir: {directory} has a folder test, but no folder train for the other images: move the "
            f"class folders for the training into {directory / 'train'}"
        )
    root = directory / "train" if has_train else directory
    folders = _class_folders(root)
    files = _list(folders)
    if has_train and has_test:
        test_folders = _class_folders(directory / "test")
        if test_folders.keys() != folders.keys():
            odd = ", ".join(sorted(test_folders.keys() ^ folders.keys()))
            raise UsageError(f"data_dir: train and test in {directory} have different classes: {odd}")
        return tuple(folders), {"train": files, "test": _list(test_folders)}, ()
    counts = np.bincount(files.labels)
    if single := [name for name, count in zip(folders, counts, strict=True) if count == 1]:
        small = ", ".join(f"class {name} has 1 image" for name in single)
        raise UsageError(
            f"data_dir: too few images to set some aside for the test split: {small}. Add images, remove the "
            f"class folder, or put test images into {directory / 'test'} and the others into "
            f"{directory / 'train'}"
        )
    train, test = stratified_split(files.labels, TEST_SHARE, TEST_SEED)
    set_aside = tuple(np.bincount(files.labels[test]).tolist())
    return tuple(folders), {"train": _pick(files, train), "test": _pick(files, test)}, set_aside


def _class_folders(root: Path) -> dict[str, Path]:
    """Return the class folders by class name, sorted by name."""
    found = [(printable(path.name), path) for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    folders = dict(sorted(found))
    if len(folders) < len(found):
        twice = sorted({name for name, path in found if folders[name] != path})
        raise UsageError(
            f"data_dir: several folders in {root} stand for class {twice[0]}; rename all but one"
        )
    if len(folders) < 2:
        names = f"only {next(iter(folders))}" if folders else "none"
        raise UsageError(f"data_dir: at least 2 class folders are needed in {root}; found {names}")
    return folders


def _list(folders: dict[str, Path]) -> _Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders.values()):
        found = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
        paths += found
        labels += [label] * len(found)
    if empty := [str(folder) for label, folder in enumerate(folders.values()) if label not in set(labels)]:
        raise UsageError(f"data_dir: class folder {', '.join(empty)} has no images; fill or remove it")
    return _Files(paths, np.array(labels, dtype=np.int64))


def _pick(files: _Files, indices: np.ndarray) -> _Files:
    return _Files([files.paths[i] for i in indices], files.labels[indices])


def _digest(directory: Path, splits: dict[SourceSplit, _Files], image_size: int, cache_dir: Path) -> str:
    """Return a digest of what decides the pixels and labels: decoder, size, split, path and content."""
    header = f"folder {DECODER} {image_size}"
    files = {
        f"{split} ".encode() + os.fsencode(path.relative_to(directory).as_posix()): path
        for split, of_split in splits.items()
        for path in of_split.paths
    }

    def compute() -> str:
        total = hashlib.sha256(header.encode())
        for name, path in files.items():
            try:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise CifarError(f"Cannot read {path}: {error.strerror}") from None
            total.update(b"\n%b %b" % (name, content.encode()))
        return total.hexdigest()

    return remembered(cache_dir, header, files, compute)


def _decode(path: Path, size: int) -> np.ndarray:
    """Return uint8 (size, size, 3) RGB, decoded by the code that also decodes the images of a request."""
    try:
        return decode_image(path.read_bytes(), size)
    except OSError as error:
        raise CifarError(f"Cannot read {path}: {error.strerror}") from None
    except BadImage as error:
        raise CifarError(f"{path} is not an image that can be read; remove or replace it. {error}") from None

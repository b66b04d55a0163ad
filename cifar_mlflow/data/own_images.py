"""Make a source of the image files that `folder.py` or `table.py` found."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL

from cifar_mlflow.config import SplitName
from cifar_mlflow.data.cache import remembered
from cifar_mlflow.data.dataset import Source, Split, UnreadableFile
from cifar_mlflow.data.image_files import decode_file
from cifar_mlflow.data.split import stratified_split
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.names import counted, listed, printable
from cifar_mlflow.scorer.preprocess import BadImage

IMAGES_AT_A_TIME = 256
TEST_SHARE = 0.1
TEST_SEED = 0  # not the seed of a run: the test images are a property of the data
DECODER = "3"  # increase it when a change of our code gives other pixels for the same file
LISTED_FILES = 20  # in a message


@dataclass(frozen=True)
class Files:
    """Image files with their labels, int64 (N,), and their names in the data set."""

    paths: list[Path]
    labels: np.ndarray
    names: list[str]

    def pick(self, indices: np.ndarray) -> "Files":
        """Return the files at these indices, int64 (M,), in this order."""
        positions = indices.tolist()
        return Files(
            [self.paths[i] for i in positions], self.labels[indices], [self.names[i] for i in positions]
        )


@dataclass(frozen=True)
class Found:
    """The content of a folder or a table.

    Attributes:
        kind: for the digest; the labels of a folder follow from the names of its files.
        place: the folder or the table, for messages.
        splits: training images, and validation and test images if there are any.
        notes: see `Source`.
    """

    kind: Literal["folder", "table"]
    place: Path
    name: str
    classes: tuple[str, ...]
    splits: dict[SplitName, Files]
    notes: tuple[str, ...] = ()


def own_source(found: Found, image_size: int, cache_dir: Path, skip_unreadable: bool) -> Source:
    """Return the images; a tenth of each class becomes the test split if there is none.

    Args:
        skip_unreadable: leave out files that are not images or cannot be read.

    Raises:
        UsageError: a class has too few images.
        CifarError: files cannot be read; `read` raises it for files that are not images, or that have changed
            since the digest was computed. The message names the first ones and counts the others.
    """
    splits, notes = found.splits, found.notes
    set_aside: tuple[int, ...] = ()
    left_out: tuple[UnreadableFile, ...] = ()
    if skip_unreadable:
        bad = _unreadable(splits, image_size, cache_dir)
        left_out = tuple(_left_out(found, bad))
        splits = {
            split: files.pick(np.flatnonzero([path not in bad for path in files.paths]))
            for split, files in splits.items()
        }
        if bad:
            files = counted(len(bad), "file")
            notes += (f"Skipped {files} that cannot be read: {listed(map(str, bad), LISTED_FILES)}",)
        _check_classes(found, splits)
    if "test" not in splits:
        kept, held_out = _set_test_images_aside(found, splits["train"])
        set_aside = tuple(np.bincount(held_out.labels, minlength=len(found.classes)).tolist())
        splits = {**splits, "train": kept, "test": held_out}

    def read(split: SplitName) -> Iterator[Split]:
        files = splits[split]
        for start in range(0, len(files.paths), IMAGES_AT_A_TIME):
            piece = slice(start, start + IMAGES_AT_A_TIME)
            try:
                images = np.stack([decode_file(path, image_size) for path in files.paths[piece]])
            except (OSError, BadImage) as error:
                raise _unreadable_error(found.place, splits, image_size, error) from None
            yield Split(images, files.labels[piece])
        # The cache keeps the pixels under the digest for good. This reads files only if the first one could
        # not be remembered, because a file was written less than two seconds before.
        if compute_digest() != digest:
            raise CifarError(
                f"images in {found.place} changed while they were read: run the command again when all are "
                "written"
            )

    def compute_digest() -> str:
        try:
            return _digest(found, splits, image_size, cache_dir)
        except OSError as error:
            raise _unreadable_error(found.place, splits, image_size, error) from None

    digest = compute_digest()
    return Source(
        found.name,
        found.classes,
        image_size,
        digest,
        read,
        set_aside,
        own_val="val" in splits,
        names=lambda split: [printable(name) for name in splits[split].names],
        notes=notes,
        paths=lambda split: splits[split].paths,
        unreadable=left_out,
    )


def _set_test_images_aside(found: Found, files: Files) -> tuple[Files, Files]:
    """Return the training and the test images.

    Raises:
        UsageError: a class has only one image.
    """
    counts = np.bincount(files.labels, minlength=len(found.classes))
    if single := [name for name, count in zip(found.classes, counts, strict=True) if count == 1]:
        small = ", ".join(f"class {name} has 1 image" for name in single)
        needed = 2 if "val" in found.splits else 3
        without = "" if "val" in found.splits else ", or 2 with --val-size 0"
        raise UsageError(
            f"--data-dir: too few images to set some aside for the test split: {small}. Each class needs at "
            f"least {needed} images{without}: add images, remove the class, or provide a test split of your "
            "own beside the training images"
        )
    train, test = stratified_split(files.labels, TEST_SHARE, TEST_SEED)
    return files.pick(train), files.pick(test)


def _check_classes(found: Found, splits: Mapping[SplitName, Files]) -> None:
    """Check that no split has lost all images of a class."""
    for split, files in splits.items():
        lost = set(found.splits[split].labels.tolist()) - set(files.labels.tolist())
        if empty := [found.classes[label] for label in sorted(lost)]:
            raise UsageError(
                f"--skip-unreadable: no image of class {', '.join(empty)} in the {split} split of "
                f"{found.place} can be read: add images or remove the class"
            )


def _digest(found: Found, splits: Mapping[SplitName, Files], image_size: int, cache_dir: Path) -> str:
    """Return a digest of what decides the pixels and labels: decoder, size, split, name and content.

    Raises:
        OSError: a file cannot be read.
    """
    header = f"{found.kind} {DECODER} {image_size}"
    files: dict[bytes, Path] = {}
    for split, of_split in splits.items():
        for path, name, label in zip(of_split.paths, of_split.names, of_split.labels.tolist(), strict=True):
            prefix = f"{split} " if found.kind == "folder" else f"{split} {found.classes[label]}/"
            files[prefix.encode() + os.fsencode(name)] = path

    def compute() -> str:
        total = hashlib.sha256(header.encode())
        for name, path in files.items():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(b"\n%b %b" % (name, content.encode()))
        return total.hexdigest()

    return remembered(cache_dir, header, files, compute)


def _unreadable(splits: Mapping[SplitName, Files], size: int, cache_dir: Path) -> dict[Path, str]:
    """Return the files that cannot be decoded, with the reason; the cache remembers the answer."""
    bad: dict[Path, str] = {}
    present: dict[bytes, Path] = {}
    for path in (path for files in splits.values() for path in files.paths):
        try:
            path.open("rb").close()
            present[os.fsencode(path)] = path
        except OSError as error:
            bad[path] = _reason(error)
    heic = importlib.util.find_spec("pillow_heif") is not None
    purpose = f"unreadable {DECODER} {size} {PIL.__version__} {heic}"
    paths = list(present.values())

    def compute() -> str:
        return json.dumps(dict(_failures(enumerate(paths), size)))

    found = json.loads(remembered(cache_dir, purpose, present, compute))
    return bad | {paths[int(number)]: reason for number, reason in found.items()}


def _left_out(found: Found, bad: Mapping[Path, str]) -> Iterator[UnreadableFile]:
    for split, files in found.splits.items():
        for path, name, label in zip(files.paths, files.names, files.labels.tolist(), strict=True):
            if path in bad:
                yield UnreadableFile(printable(name), split, found.classes[label], bad[path])


def _failures(files: Iterable[tuple[int, Path]], size: int) -> Iterator[tuple[int, str]]:
    for number, path in files:
        try:
            decode_file(path, size)
        except (OSError, BadImage) as error:
            yield number, _reason(error)


def _unreadable_error(
    place: Path, splits: Mapping[SplitName, Files], size: int, error: Exception
) -> CifarError:
    """Return the error that names the unreadable files, after reading failed with `error`."""
    paths = [path for files in splits.values() for path in files.paths]
    bad = {paths[number]: reason for number, reason in _failures(enumerate(paths), size)}
    if not bad:  # the file is readable by now, or the error comes from the cache
        return CifarError(f"Cannot read the images of {place}: {_reason(error)}")
    if len(bad) == 1:
        ((path, reason),) = bad.items()
        return CifarError(
            f"{path} is not an image that can be read; remove or replace it, or leave it out with "
            f"--skip-unreadable. {reason}"
        )
    files = listed((f"{path} ({reason.rstrip('.')})" for path, reason in bad.items()), LISTED_FILES, "\n  ")
    return CifarError(
        f"{len(bad):,} files in {place} are not images that can be read; remove or replace them, or leave "
        f"them out with --skip-unreadable:\n  {files}"
    )


def _reason(error: Exception) -> str:
    return f"{error.strerror or error}." if isinstance(error, OSError) else str(error)

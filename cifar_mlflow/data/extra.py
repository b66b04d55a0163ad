"""Add a folder of further training images to a data set, such as images with feedback from users.

Validation and test images stay the same, so that models trained with and without the folder can be compared.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cifar_mlflow.config import SplitName
from cifar_mlflow.data.cache import cached_split
from cifar_mlflow.data.dataset import ImageDataset, Split
from cifar_mlflow.data.image_files import list_images, name_strays, visible_folders
from cifar_mlflow.data.own_images import Files, Found, own_source
from cifar_mlflow.errors import UsageError
from cifar_mlflow.names import counted, printable

IMAGES_AT_A_TIME = 2_000


def with_extra_images(
    base: ImageDataset, folder: Path, cache_dir: Path, skip_unreadable: bool
) -> ImageDataset:
    """Return `base` with the images of `folder/CLASS/` appended to its training images.

    Images that `base` has already, in any split, are left out, and each image is added once. The digest stays
    that of `base`, which decides the images for validation and test.

    Raises:
        UsageError: there is no such folder, or it has a class that `base` does not have.
        CifarError: files cannot be read.
    """
    found = _find(base, folder)
    source = own_source(found, base.image_size, cache_dir, skip_unreadable)
    digest = hashlib.sha256(f"{base.digest} with {source.digest}".encode()).hexdigest()

    def read(split: SplitName) -> Iterator[Split]:
        known: set[bytes] = set()
        others: list[SplitName] = ["val", "test"] if base.own_val else ["test"]
        for name in others:
            for piece in _pieces(base.split(name)):
                known |= set(map(_fingerprint, piece.images))
        for piece in _pieces(base.split(split)):
            known |= set(map(_fingerprint, piece.images))
            yield piece
        for piece in source.read("train"):
            new = []
            for number, image in enumerate(piece.images):
                if (mark := _fingerprint(image)) not in known:
                    known.add(mark)
                    new.append(number)
            if new:
                yield Split(piece.images[new], piece.labels[new])

    def load(split: SplitName) -> Split:
        return cached_split(cache_dir, digest, split, read) if split == "train" else base.split(split)

    added = len(load("train")) - len(base.split("train"))
    left_out = len(found.splits["train"].paths) - added
    note = f"Added {counted(added, 'image')} of {folder} to the training images"
    if left_out:
        note += f"; left out {left_out:,}: unreadable, repeated or in the data set already"
    return replace(base, split=load, extra_images=added, notes=(*base.notes, *source.notes, note))


def _find(base: ImageDataset, folder: Path) -> Found:
    if not folder.is_dir():
        raise UsageError(f"--extra-dir: {folder} is not a folder with one subfolder per class")
    labels = {name: label for label, name in enumerate(base.classes)}
    paths: list[Path] = []
    numbers: list[int] = []
    strays: list[Path] = []
    folders = {printable(path.name): path for path in visible_folders(folder)}
    if unknown := sorted(folders.keys() - labels.keys()):
        raise UsageError(
            f"--extra-dir: {folder} has classes that {base.name} does not have: {', '.join(unknown)}; rename "
            "or remove their folders"
        )
    for name, path in folders.items():
        images, others = list_images(path)
        paths += images
        numbers += [labels[name]] * len(images)
        strays += others
    if not paths:
        raise UsageError(f"--extra-dir: {folder} has no images in folders named after classes of {base.name}")
    skipped = counted(len(strays), "non-image file")
    notes = (f"Skipped {skipped} in {folder}: {name_strays(strays)}",)
    files = Files(paths, np.array(numbers, dtype=np.int64), [p.relative_to(folder).as_posix() for p in paths])
    nothing = Files([], np.zeros(0, dtype=np.int64), [])
    splits: dict[SplitName, Files] = {"train": files, "test": nothing}
    return Found("folder", folder, folder.name, base.classes, splits, notes if strays else ())


def _pieces(split: Split) -> Iterator[Split]:
    for start in range(0, len(split), IMAGES_AT_A_TIME):
        piece = slice(start, start + IMAGES_AT_A_TIME)
        yield Split(split.images[piece], split.labels[piece])


def _fingerprint(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()

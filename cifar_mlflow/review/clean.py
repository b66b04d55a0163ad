"""Write a cleaned data set: a copy without the images to drop, with the corrected labels."""

import csv
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_mlflow.console import Steps
from cifar_mlflow.data import ImageDataset
from cifar_mlflow.data.parquet import SIDE
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.files import write_errors
from cifar_mlflow.names import counted
from cifar_mlflow.review.images import ReviewedImages

TABLE = "labels.csv"
COLUMNS = ("path", "label", "split", "source", "source_label")


def write_cleaned(
    folder: Path, dataset: ImageDataset, reviewed: ReviewedImages, decisions: Mapping[int, int | None]
) -> str:
    """Copy the images to `folder/SPLIT/CLASS/`, and return a sentence about it with the next command.

    Files are copied as they are; images that are not files become PNG files. `folder/labels.csv` names the
    source and the former label of each. The folder is complete or absent.

    Args:
        decisions: by position, the new class, or None for an image to drop; others keep their labels.

    Raises:
        UsageError: the folder exists, or a class would have no training image left.
        CifarError: an image cannot be copied, or a class has a name that no folder can have.
    """
    labels = [decisions.get(index, label) for index, label in enumerate(reviewed.labels.tolist())]
    kept = [(index, label) for index, label in enumerate(labels) if label is not None]
    _check(folder, dataset.classes, reviewed, kept)
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        rows = []
        with Steps().step("copy", f"Copying {len(kept):,} images", len(kept)) as advance:
            for index, label in kept:
                rows.append(_copy(unfinished, dataset, reviewed, index, dataset.classes[label]))
                advance(1)
        with write_errors(folder):
            # The name of a file may have bytes that are not UTF-8.
            with (unfinished / TABLE).open(
                "w", encoding="utf-8", errors="surrogateescape", newline=""
            ) as file:
                table = csv.writer(file)
                table.writerow(COLUMNS)
                table.writerows(rows)
            unfinished.chmod(0o755)  # a temporary folder is private
            if folder.exists():
                folder.rmdir()
            unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    changed = sum(label != reviewed.labels[index] for index, label in kept)
    left_out = counted(len(dataset.unreadable), "unreadable file")
    unreadable = f", {left_out} left out" if dataset.unreadable else ""
    # A folder has all classes in each split; a table need not.
    complete = {(split, label) for _, label, split, *_ in rows}
    place = folder if len(complete) == len(reviewed.parts) * len(dataset.classes) else folder / TABLE
    size = f" --image-size {dataset.image_size}" if dataset.image_size != SIDE else ""
    return (
        f"{counted(len(kept), 'image')} in {folder}: {changed:,} with another label, "
        f"{len(labels) - len(kept):,} dropped{unreadable}\n"
        f"Train on them: cifar-mlflow train --dataset folder --data-dir {shlex.quote(str(place))}{size}"
    )


def _check(
    folder: Path, classes: tuple[str, ...], reviewed: ReviewedImages, kept: list[tuple[int, int]]
) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--output: {folder} exists; name a new folder for the cleaned data set")
    if unusable := [name for name in classes if "/" in name or "\\" in name or name.startswith(".")]:
        raise CifarError(f"class {unusable[0]!r} cannot be the name of a folder; rename it")
    left = {label for index, label in kept if reviewed.splits[index] == "train"}
    if missing := [name for label, name in enumerate(classes) if label not in left]:
        raise UsageError(
            f"--apply: no training image of class {', '.join(missing)} is left; keep one, or remove the "
            "class from the data set"
        )


def _copy(
    folder: Path, dataset: ImageDataset, reviewed: ReviewedImages, index: int, label: str
) -> tuple[str, ...]:
    """Copy one image, and return its row in the table."""
    split = reviewed.splits[index]
    position = reviewed.position(index)
    source = dataset.paths(split)[position] if dataset.paths else None
    # A table may name hidden files, which a folder of images leaves out.
    name = source.name.lstrip(".") or "image" if source else f"{position:05}.png"
    target = folder / split / label / name
    number = 1
    while target.exists():  # files of the same name in different folders
        number += 1
        target = target.with_name(f"{Path(name).stem}-{number}{Path(name).suffix}")
    try:
        original = source.open("rb") if source else nullcontext()
    except OSError as error:
        raise CifarError(f"{source}: cannot be read ({error.strerror}); no data set was written") from error
    with original as file, write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if file:
            with target.open("wb") as copy:
                shutil.copyfileobj(file, copy)
        else:
            Image.fromarray(reviewed.images(np.array([index]))[0]).save(target)
    former = dataset.classes[reviewed.labels[index]]
    return target.relative_to(folder).as_posix(), label, split, reviewed.names[index], former

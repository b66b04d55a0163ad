"""A folder of image files of any size, with one subfolder per class."""

import re
from pathlib import Path

import numpy as np

from cifar_mlflow.config import SplitName
from cifar_mlflow.data.dataset import SOURCE_SPLITS
from cifar_mlflow.data.image_files import images_directly_in, list_images, name_strays, visible_folders
from cifar_mlflow.data.own_images import Files, Found
from cifar_mlflow.errors import UsageError
from cifar_mlflow.names import counted, data_name, printable

# Usual names of the folders of a split, such as Training, valid, test_set, seg_train and val2017.
_SPLIT = re.compile(
    r"(?:seg|images?|data)?[ _.-]*(?:(train|training)|(val|valid|validation|dev)|(test|testing))"
    r"[ _.-]*(?:set|split|data|dataset|images?|imgs)?[ _.-]*\d*",
    re.IGNORECASE,
)
_SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}


def find_in_folder(directory: Path) -> Found:
    """Return the images of `directory/train/CLASS`, `directory/val/CLASS` and `directory/test/CLASS`.

    The folders of the splits may have other usual names. Without one for training, the class folders are
    those in `directory`. The images of a class may lie at any depth below its folder. A class is named after
    its folder; bytes that are not UTF-8 are escaped. The notes list everything that is left out, except
    hidden files and folders outside of the class folders.

    Raises:
        UsageError: there are fewer than two classes, a class has no images, the splits have different
            classes, or there are folders for validation or test but none for training.
        CifarError: a folder cannot be read.
    """
    roots, notes = _split_roots(directory)
    found: dict[SplitName, Files] = {}
    classes: tuple[str, ...] = ()
    strays: list[Path] = []
    for split, root in roots.items():
        folders = _class_folders(root)
        if classes and tuple(folders) != classes:
            odd = ", ".join(sorted(set(folders) ^ set(classes)))
            raise UsageError(
                f"--data-dir: train and {split} in {directory} have different classes: {odd}. Give each "
                "split the same class folders"
            )
        if not classes:
            notes += _notes_on_splits_below(folders)
        classes = tuple(folders)
        found[split] = _list(directory, folders, strays)
    if unsorted := sum(len(images_directly_in(folder)) for folder in {directory, *roots.values()}):
        notes.append(f"Skipped {counted(unsorted, 'image')} outside of the class folders in {directory}")
    if strays:
        skipped = counted(len(strays), "non-image file")
        notes.append(f"Skipped {skipped} in {directory}: {name_strays(strays)}")
    return Found("folder", directory, data_name("folder", directory), classes, found, tuple(notes))


def split_of(name: str) -> SplitName | None:
    """Return the split that a folder or a label of a table names in one of the usual ways."""
    if match := _SPLIT.fullmatch(name):
        return next(split for split, word in zip(SOURCE_SPLITS, match.groups(), strict=True) if word)
    return None


def _split_roots(directory: Path) -> tuple[dict[SplitName, Path], list[str]]:
    """Return the folders that hold the class folders, by split, and notes for the user."""
    folders = visible_folders(directory)
    # A folder `test` that holds images, not folders, is a class of that name.
    named = {path: split for path in folders if (split := split_of(path.name)) and visible_folders(path)}
    by_split: dict[SplitName, list[Path]] = {}
    for path, split in named.items():
        by_split.setdefault(split, []).append(path)
    if "train" not in by_split:
        _check_that_they_are_classes(directory, folders, by_split)
        return {"train": directory}, []
    for split, paths in by_split.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise UsageError(
                f"--data-dir: {directory} has several folders of {_SPLIT_WORDS[split]} images: {names}; keep "
                "or merge into one"
            )
    notes = [
        f"Skipped {counted(len(images), 'image')} in {path}, which "
        + ("has no class folders" if split_of(path.name) else "is not named like a split, such as val")
        for path in folders
        if path not in named and (images := list_images(path)[0])
    ]
    if "val" in by_split:
        (val,) = by_split["val"]
        notes.append(f"The validation split is {val}; --val-size does not apply")
    return {
        split: _innermost(by_split[split][0], split) for split in SOURCE_SPLITS if split in by_split
    }, notes


def _innermost(folder: Path, split: SplitName) -> Path:
    """Return the folder with the classes: some archives have `training_set/training_set/cats`."""
    while len(inside := visible_folders(folder)) == 1 and split_of(inside[0].name) == split:
        (folder,) = inside
    return folder


def _check_that_they_are_classes(
    directory: Path, folders: list[Path], by_split: dict[SplitName, list[Path]]
) -> None:
    """Refuse folders for validation or test that hold the same classes as the folders beside them."""
    for paths in by_split.values():
        for path in paths:
            inside = {folder.name for folder in visible_folders(path)}
            beside = {folder.name for folder in folders if folder != path}
            for others in by_split.values():
                beside |= {
                    folder.name for other in others if other != path for folder in visible_folders(other)
                }
            if len(folders) == 1 or inside & beside:
                raise UsageError(
                    f"--data-dir: {directory} has a folder {path.name}, but no folder train for the other "
                    f"images: move the class folders for the training into {directory / 'train'}"
                )


def _class_folders(root: Path) -> dict[str, Path]:
    """Return the class folders by class name, sorted by name."""
    found = [(printable(path.name), path) for path in visible_folders(root)]
    folders = dict(sorted(found))
    if len(folders) < len(found):
        twice = sorted({name for name, path in found if folders[name] != path})
        raise UsageError(
            f"--data-dir: several folders in {root} stand for class {twice[0]}; rename all but one"
        )
    if len(folders) < 2:
        names = f"only {next(iter(folders))}" if folders else "none"
        raise UsageError(
            f"--data-dir: at least 2 class folders are needed in {root}; found {names}{_hint(root, folders)}"
        )
    return folders


def _hint(root: Path, folders: dict[str, Path]) -> str:
    """Return advice for a folder with too few class folders; empty if there is none."""
    for folder in folders.values():
        if len(visible_folders(folder)) > 1:
            return f". If the class folders are in it, give --data-dir {folder}"
    if images := len(images_directly_in(root)):
        return (
            f", but {counted(images, 'image')} without a class. Sort the images into one folder per class, "
            "or give a CSV or Parquet file with the columns path and label as --data-dir"
        )
    return ""


def _notes_on_splits_below(folders: dict[str, Path]) -> list[str]:
    """Return a note if there are folders `cat/train` and `cat/test` instead of `train/cat` and `test/cat`."""
    below = [path for folder in folders.values() for path in visible_folders(folder) if split_of(path.name)]
    if not below:
        return []
    return [f"{below[0]} is below a class, so it is not a split: all images of the class are mixed"]


def _list(directory: Path, folders: dict[str, Path], strays: list[Path]) -> Files:
    """Return the images in the class folders; add other files to `strays`."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders.values()):
        images, others = list_images(folder)
        paths += images
        strays += others
        labels += [label] * len(images)
    filled = set(labels)
    if empty := [str(folder) for label, folder in enumerate(folders.values()) if label not in filled]:
        raise UsageError(f"--data-dir: class folder {', '.join(empty)} has no images; fill or remove it")
    names = [path.relative_to(directory).as_posix() for path in paths]
    return Files(paths, np.array(labels, dtype=np.int64), names)

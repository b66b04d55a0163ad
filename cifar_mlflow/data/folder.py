"""A folder of JPEG, PNG, WebP, BMP and GIF images with one sub-folder a class, as they were photographed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_mlflow.data.cache import remembered
from cifar_mlflow.data.dataset import Source, SourceSplit, Split
from cifar_mlflow.data.split import train_val_indices
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.scorer.preprocess import BadImage, decode_image

IMAGES_AT_A_TIME = 256
TEST_SHARE = 0.1
TEST_SEED = 0  # not the seed of a run: the test images are a property of the folder
DECODER = "2"  # changes whenever the same file would give other pixels


@dataclass(frozen=True)
class _Files:
    """Paths with the label of each."""

    paths: list[Path]
    labels: np.ndarray


def folder_source(directory: Path | None, image_size: int, cache_dir: Path) -> Source:
    """`directory/train/CLASS/*` and `directory/test/CLASS/*`; without `test` a tenth of each class.

    Without `directory/train` the classes are looked for in `directory` itself. Hidden files are ignored.

    Raises:
        UsageError: no such folder, fewer than two classes, or a class without images.
        CifarError: a file cannot be read; `read` raises it for a file that is no image.
    """
    if directory is None:
        raise UsageError("--dataset folder needs --data-dir, a folder with one sub-folder a class")
    if not directory.is_dir():
        raise UsageError(f"data_dir: {directory} is not a folder")
    classes, splits = _find(directory)

    def read(split: SourceSplit) -> Iterator[Split]:
        files = splits[split]
        for start in range(0, len(files.paths), IMAGES_AT_A_TIME):
            piece = slice(start, start + IMAGES_AT_A_TIME)
            images = np.stack([_decode(path, image_size) for path in files.paths[piece]])
            yield Split(images, files.labels[piece])

    digest = _digest(directory, splits, image_size, cache_dir)
    return Source(directory.resolve().name, classes, image_size, digest, read)


def _find(directory: Path) -> tuple[tuple[str, ...], dict[SourceSplit, _Files]]:
    has_train, has_test = (directory / "train").is_dir(), (directory / "test").is_dir()
    root = directory / "train" if has_train else directory
    classes = _class_names(root)
    files = _list(root, classes)
    if has_train and has_test:
        if (others := _class_names(directory / "test")) != classes:
            odd = ", ".join(sorted(set(others) ^ set(classes)))
            raise UsageError(f"data_dir: train and test in {directory} have different classes: {odd}")
        return classes, {"train": files, "test": _list(directory / "test", classes)}
    try:
        train, test = train_val_indices(files.labels, TEST_SHARE, TEST_SEED)
    except UsageError:
        counts = np.bincount(files.labels)
        name = classes[int(counts.argmin())]
        raise UsageError(
            f"data_dir: class {name} has {counts.min()} image, too few to set some aside for the test"
        ) from None
    return classes, {"train": _pick(files, train), "test": _pick(files, test)}


def _class_names(root: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."))
    if len(names) < 2:
        found = f"only {names[0]}" if names else "none"
        raise UsageError(f"data_dir: at least 2 class folders are needed in {root}; found {found}")
    return names


def _list(root: Path, classes: tuple[str, ...]) -> _Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (root / name).iterdir() if path.is_file() and path.name[0] != ".")
        if not found:
            raise UsageError(f"data_dir: class folder {root / name} has no images; fill or remove it")
        paths += found
        labels += [label] * len(found)
    return _Files(paths, np.array(labels, dtype=np.int64))


def _pick(files: _Files, indices: np.ndarray) -> _Files:
    return _Files([files.paths[i] for i in indices], files.labels[indices])


def _digest(directory: Path, splits: dict[SourceSplit, _Files], image_size: int, cache_dir: Path) -> str:
    every = [(split, path) for split, files in splits.items() for path in files.paths]
    header = f"folder {DECODER} {image_size}"

    def compute() -> str:
        total = hashlib.sha256(header.encode())
        for split, path in every:
            try:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise CifarError(f"Cannot read {path}: {error.strerror}") from None
            total.update(f"\n{split} {path.relative_to(directory).as_posix()} {content}".encode())
        return total.hexdigest()

    purpose = f"{header} {len(splits['train'].paths)}"
    return remembered(cache_dir, purpose, [path for _, path in every], compute)


def _decode(path: Path, size: int) -> np.ndarray:
    """uint8 (size, size, 3) RGB, from the very code that prepares what a served model is asked about."""
    try:
        return decode_image(path.read_bytes(), size)
    except OSError as error:
        raise CifarError(f"Cannot read {path}: {error.strerror}") from None
    except BadImage as error:
        raise CifarError(f"{path} is not an image that can be read; remove or replace it. {error}") from None

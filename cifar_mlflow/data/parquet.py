"""CIFAR-10 in the Hub's parquet layout: `img` (struct of bytes and path) and `label`, one row per image."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_mlflow.config import SplitName
from cifar_mlflow.data.dataset import CIFAR10_CLASSES, Source, Split
from cifar_mlflow.errors import CifarError

ROWS_AT_A_TIME = 2_000
SIDE = 32


def parquet_source(name: str, directory: Path) -> Source:
    """Return the images of `directory/train-*.parquet` and `directory/test-*.parquet`.

    Raises:
        CifarError: a file cannot be read; `read` raises it for a wrong column, label, size or image.
    """

    def read(split: SplitName) -> Iterator[Split]:
        for path in parquet_files(directory, split):
            yield from _read_file(path)

    return Source(name, CIFAR10_CLASSES, SIDE, _digest(directory), read)


def parquet_files(directory: Path, split: SplitName) -> list[Path]:
    """Return the files of a split, in order."""
    return sorted(directory.glob(f"{split}-*.parquet"))


def _digest(directory: Path) -> str:
    total = hashlib.sha256(b"cifar10 parquet 1")
    for split in ("train", "test"):
        total.update(split.encode())
        for path in parquet_files(directory, split):
            try:
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise CifarError(f"Cannot read {path}: {error.strerror}") from None
    return total.hexdigest()


def _read_file(path: Path) -> Iterator[Split]:
    # Imported here because it takes longer than a whole start from the cache.
    import pyarrow
    import pyarrow.parquet

    try:
        # An open file, because pyarrow accepts only paths in UTF-8.
        with path.open("rb") as content, pyarrow.parquet.ParquetFile(content) as file:
            start = 0
            for rows in file.iter_batches(ROWS_AT_A_TIME, columns=["img", "label"]):
                encoded = rows.column("img").field("bytes").to_pylist()
                # No thread pool: for images this small, handing them over costs more than decoding.
                images = np.stack([_decode(image) for image in encoded])
                yield Split(
                    images, _checked_labels(rows.column("label").to_numpy(zero_copy_only=False), start)
                )
                start += len(encoded)
    except (KeyError, OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise CifarError(f"{path} is not CIFAR-10 in the Hub's parquet layout: {error}") from None


def _decode(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        if image.size != (SIDE, SIDE):
            raise ValueError(f"an image has {image.width}x{image.height} pixels, not {SIDE}x{SIDE}")
        return np.asarray(image.convert("RGB"))


def _checked_labels(labels: np.ndarray, start: int) -> np.ndarray:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CIFAR10_CLASSES)))
    if len(wrong):
        raise ValueError(f"row {start + wrong[0]} has label {labels[wrong[0]]}; labels are 0 to 9")
    return labels.astype(np.int64)

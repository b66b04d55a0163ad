"""Near-duplicates: copies that people make are found, other photos are not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.review.duplicates import SMALLEST_SIMILARITY, find_duplicates, pixel_similarity
from cifar_mlflow.review.images import ReviewedImages


def recompressed(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=60)
    return np.asarray(Image.open(file))


def resized(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image).resize((24, 24), Image.Resampling.LANCZOS)
    return np.asarray(small.resize((32, 32), Image.Resampling.LANCZOS))


def brighter(image: np.ndarray) -> np.ndarray:
    return (image * 0.7 + 60).astype(np.uint8)


def mirrored(image: np.ndarray) -> np.ndarray:
    return image[:, ::-1]


def shifted(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((2, 0), (0, 3), (0, 0)), mode="edge")[:32, 3:]


@pytest.mark.parametrize("change", [recompressed, resized, brighter, mirrored, shifted])
def test_copies_are_similar(change: Callable[[np.ndarray], np.ndarray]) -> None:
    images = np.array(load_dataset(DataConfig(dataset="sample")).split("test").images[:200])
    changed = np.stack([change(image) for image in images])
    assert (pixel_similarity(images, changed) >= SMALLEST_SIMILARITY).mean() > 0.9


def test_other_photos_and_plain_colours_are_not() -> None:
    images = np.array(load_dataset(DataConfig(dataset="sample")).split("test").images)
    assert (pixel_similarity(images[:500], images[500:]) < SMALLEST_SIMILARITY).all()
    plain = np.full((2, 32, 32, 3), 100, np.uint8)
    assert pixel_similarity(plain, plain).tolist() == [1, 1]
    assert pixel_similarity(plain, plain + 1).tolist() == [0, 0]


def test_every_copy_of_a_test_image_is_a_leak_although_the_copies_are_more_alike(photos: Path) -> None:
    """Frames of a video, for example: the five images most alike are all in the same split."""
    names = {f"train/red/copy-{number}.jpg" for number in range(10)}
    with Image.open(photos / "test/red/00.png") as original:
        for name in names:
            original.save(photos / name, quality=90, subsampling=0)
    reviewed = ReviewedImages(load_dataset(DataConfig(dataset="folder", data_dir=photos)))
    pixels = reviewed.images(np.arange(len(reviewed))).reshape(len(reviewed), -1).astype(np.float32)
    pairs = find_duplicates(pixels / np.linalg.norm(pixels, axis=1, keepdims=True), reviewed)
    leaks = [pair for pair in pairs if reviewed.splits[pair.first] != reviewed.splits[pair.second]]
    assert {reviewed.names[pair.first] for pair in leaks} == names
    assert {reviewed.names[pair.second] for pair in leaks} == {"test/red/00.png"}

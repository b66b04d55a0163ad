"""Further training images are added to a data set; its validation and test images stay the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.split import divide, divide_lazily
from cifar_mlflow.data.summary import summarize
from cifar_mlflow.errors import UsageError
from tests.data.test_folder import BLUE, GREEN, save


def config(cache: Path, **settings: Any) -> DataConfig:
    return DataConfig(**{"dataset": "sample", "cache_dir": cache, **settings})


def add(folder: Path, name: str, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def parts(dataset: ImageDataset, settings: DataConfig) -> list[np.ndarray]:
    train, val = divide(dataset, settings)
    return [np.asarray(train.images), val.images, np.asarray(dataset.split("test").images)]


def test_validation_and_test_stay_the_same(tmp_path: Path, shared_cache: Path) -> None:
    plain = config(shared_cache)
    base = load_dataset(plain)
    before = parts(base, plain)
    more = tmp_path / "more"
    save(more / "cat/1.png", BLUE)
    save(more / "cat/deep/2.jpg", GREEN)
    save(more / "dog/again.png", BLUE)  # as cat/1.png
    save(more / "dog/3.png", (9, 9, 9))
    for split, name in ((1, "of validation"), (2, "of test"), (0, "of training")):
        add(more / "frog", f"{name}.png", before[split][7])
    settings = config(shared_cache, dataset=f"sample+{more}")
    assert (settings.dataset, settings.extra_dir) == ("sample", more)
    dataset = load_dataset(settings)
    after = parts(dataset, settings)
    assert dataset.digest == base.digest
    for split in (1, 2):
        np.testing.assert_array_equal(before[split], after[split])
    assert len(after[0]) == len(before[0]) + 3
    np.testing.assert_array_equal(before[0], after[0][:-3])
    added = [tuple(pixel) for pixel in after[0][-3:, 16, 16].tolist()]
    assert added[0] == BLUE
    assert (9, 9, 9) in added
    lazily, _ = divide_lazily(dataset, settings)
    np.testing.assert_array_equal(lazily.images[-3:], after[0][-3:])
    table = summarize(dataset, settings) - summarize(base, plain)
    assert table.loc[["cat", "dog", "frog"], "train"].tolist() == [2, 1, 0]
    assert table[["val", "test"]].to_numpy().sum() == 0
    (note,) = dataset.notes
    assert note == (
        f"Added 3 images of {more} to the training images; left out 4: unreadable, repeated or in "
        "the data set already"
    )
    save(more / "cat/1.png", (1, 2, 3))
    changed = load_dataset(settings)
    assert (changed.split("train").images[len(before[0]) + len(before[1]), 16, 16] == (1, 2, 3)).all()


def test_all_images_of_the_folder_are_used_without_a_validation_split(
    tmp_path: Path, shared_cache: Path
) -> None:
    save(tmp_path / "more/cat/1.png", BLUE)
    settings = config(shared_cache, extra_dir=tmp_path / "more", val_size=0)
    train, val = divide(load_dataset(settings), settings)
    assert (len(train), len(val)) == (5001, 0)


def test_a_wrong_folder_is_refused_with_the_reason(tmp_path: Path, shared_cache: Path) -> None:
    with pytest.raises(UsageError, match=r"--extra-dir: .*more is not a folder"):
        load_dataset(config(shared_cache, extra_dir=tmp_path / "more"))
    (tmp_path / "more/cat").mkdir(parents=True)
    with pytest.raises(UsageError, match="has no images in folders named after classes of cifar10-sample"):
        load_dataset(config(shared_cache, extra_dir=tmp_path / "more"))
    save(tmp_path / "more/fox/1.png", BLUE)
    with pytest.raises(UsageError, match="classes that cifar10-sample does not have: fox"):
        load_dataset(config(shared_cache, extra_dir=tmp_path / "more"))

from pathlib import Path

import numpy as np

from cifar_mlflow.config import DataConfig, TrainConfig
from cifar_mlflow.data import ImageDataset, Split, load_dataset
from cifar_mlflow.data.split import divide
from cifar_mlflow.data.summary import channel_stats, describe_training, mean_std, summarize
from tests.data.test_folder import fill

NOTHING = Split(np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int64))


def test_counts_per_class_and_split() -> None:
    config = DataConfig(dataset="sample", val_size=0.2)
    dataset = load_dataset(config)
    table = summarize(dataset, config)
    assert list(table.columns) == ["train", "val", "test"]
    assert table.sum().tolist() == [4_000, 1_000, 1_000]
    assert list(table.index) == list(dataset.classes)
    assert (table["train"] + table["val"]).tolist() == np.bincount(dataset.split("train").labels).tolist()
    assert table["test"].tolist() == np.bincount(dataset.split("test").labels).tolist()


def test_the_summary_before_a_training(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", count=60)
    fill(tmp_path / "photos", "dog", "fox", count=10)
    config = TrainConfig(
        dataset="folder", data_dir=tmp_path / "photos", val_size=0.2, batch_size=16, cache_dir=tmp_path
    )
    dataset = load_dataset(config)
    train, val = divide(dataset, config)
    first, second, third = describe_training(dataset, config, train.labels, val.labels)
    assert first == (
        "photos: 57 training and 15 validation images of 3 classes. Training images per class: "
        "cat 43, dog 7, fox 7"
    )
    assert second == (
        "4 steps per epoch. Always answering cat, the largest class, would be right on 73.3% of the "
        "validation images"
    )
    assert third.startswith("The largest class has 6 times as many images as the smallest: --class-weights")
    balanced = config.model_copy(update={"sampling": "balanced"})
    assert len(describe_training(dataset, balanced, train.labels, val.labels)) == 2


def test_many_classes_are_summarized_before_a_training() -> None:
    dataset = ImageDataset("many", tuple(f"c{i}" for i in range(300)), 32, "", lambda name: NOTHING)
    labels = np.repeat(np.arange(300), np.arange(301, 1, -1))
    line = describe_training(dataset, TrainConfig(), labels, labels[:0])[0]
    assert line.endswith("class: c0 301, c1 300, c2 299, ..., c297 4, c298 3, c299 2")


def test_mean_and_std_are_those_of_all_pixels() -> None:
    images = np.random.default_rng(0).integers(10, 200, (1_201, 8, 8, 3), dtype=np.uint8)
    images[..., 2] //= 2
    mean, std = mean_std(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-9)


def test_range_of_channels() -> None:
    images = np.full((3, 4, 4, 3), 51, dtype=np.uint8)
    images[0, 0, 0] = (0, 255, 51)
    stats = channel_stats(images)
    assert stats["min"].tolist() == [0, 0.2, 0.2]
    assert stats["max"].tolist() == [0.2, 1, 0.2]

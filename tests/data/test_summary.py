import numpy as np

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.data.summary import channel_stats, mean_std, summarize


def test_counts_per_class_and_split() -> None:
    config = DataConfig(dataset="sample", val_size=0.2)
    dataset = load_dataset(config)
    table = summarize(dataset, config)
    assert list(table.columns) == ["train", "val", "test"]
    assert table.sum().tolist() == [4_000, 1_000, 1_000]
    assert list(table.index) == list(dataset.classes)
    assert (table["train"] + table["val"]).tolist() == np.bincount(dataset.split("train").labels).tolist()
    assert table["test"].tolist() == np.bincount(dataset.split("test").labels).tolist()


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

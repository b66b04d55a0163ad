"""From settings to a data set: which source is meant, and where its files are."""

from pathlib import Path

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data.cache import cached_split
from cifar_mlflow.data.dataset import ImageDataset, Source, SourceSplit, Split
from cifar_mlflow.data.parquet import SIDE, parquet_files, parquet_source
from cifar_mlflow.errors import UsageError

SAMPLE_DIR = Path(__file__).with_name("sample")


def load_dataset(config: DataConfig) -> ImageDataset:
    """The data set that `config` names; its splits are decoded (or mapped from the cache) when asked for.

    Raises:
        UsageError: settings that do not fit together, or a data_dir without the images it should hold.
        CifarError: files that are damaged or cannot be read, downloaded or cached.
    """
    if config.dataset != "folder" and config.image_size != SIDE:
        raise UsageError(
            f"image_size: {config.dataset} has images of {SIDE} pixels (got {config.image_size}); "
            "other sizes are for --dataset folder"
        )
    source = _source(config)

    def load(split: SourceSplit) -> Split:
        return cached_split(config.cache_dir, source.digest, split, source.read)

    return ImageDataset(source.name, source.classes, source.image_size, source.digest, load)


def _source(config: DataConfig) -> Source:
    if config.dataset == "sample":
        return parquet_source("cifar10-sample", SAMPLE_DIR)
    if config.dataset == "cifar10" and config.data_dir is not None:
        return _cifar10_in(config.data_dir)
    raise NotImplementedError(config.dataset)


def _cifar10_in(directory: Path) -> Source:
    # The Hub keeps the files of this data set in a folder named after its configuration.
    for folder in (directory, directory / "plain_text"):
        if parquet_files(folder, "train") and parquet_files(folder, "test"):
            return parquet_source("cifar10", folder)
    raise UsageError(f"data_dir: no CIFAR-10 in {directory}")

"""Find the data set that the settings name."""

from pathlib import Path

from cifar_mlflow.config import DataConfig, SplitName
from cifar_mlflow.data.cache import cached_split
from cifar_mlflow.data.dataset import ImageDataset, Source, Split
from cifar_mlflow.data.extra import with_extra_images
from cifar_mlflow.data.folder import find_in_folder
from cifar_mlflow.data.original import (
    ARCHIVE_NAME,
    FOLDER,
    PUBLISHED,
    Archive,
    archive_source,
    batches_source,
    downloaded_source,
)
from cifar_mlflow.data.own_images import own_source
from cifar_mlflow.data.parquet import SIDE, parquet_files, parquet_source
from cifar_mlflow.data.table import find_in_table
from cifar_mlflow.errors import UsageError
from cifar_mlflow.names import SAMPLE_NAME, TABLE_SUFFIXES

SAMPLE_DIR = Path(__file__).with_name("sample")


def load_dataset(config: DataConfig, archive: Archive = PUBLISHED) -> ImageDataset:
    """Return the data set that `config` names; its splits are decoded, or mapped from the cache, on request.

    Args:
        archive: the md5 sums that CIFAR-10 must have.

    Raises:
        UsageError: settings contradict each other, or data_dir does not hold the images it should.
        CifarError: files are damaged or cannot be read, downloaded or cached.
    """
    if config.dataset != "folder" and config.image_size != SIDE:
        raise UsageError(
            f"--image-size: {config.dataset} has images of {SIDE} pixels (got {config.image_size}); "
            "other sizes are for --dataset folder"
        )
    source = _source(config, archive)

    def load(split: SplitName) -> Split:
        return cached_split(config.cache_dir, source.digest, split, source.read)

    dataset = ImageDataset(
        source.name,
        source.classes,
        source.image_size,
        source.digest,
        load,
        source.set_aside,
        source.own_val,
        source.names,
        source.notes,
        paths=source.paths,
        unreadable=source.unreadable,
    )
    if config.extra_dir is None:
        return dataset
    return with_extra_images(dataset, config.extra_dir, config.cache_dir, config.skip_unreadable)


def _source(config: DataConfig, archive: Archive) -> Source:
    if config.dataset == "sample":
        return parquet_source(SAMPLE_NAME, SAMPLE_DIR)
    if config.dataset == "folder":
        return _own_images(config)
    if config.data_dir is None:
        return downloaded_source(config.mirrors, archive, config.cache_dir)
    return _cifar10_in(config.data_dir, archive, config.cache_dir)


def _own_images(config: DataConfig) -> Source:
    place = config.data_dir
    if place is None:
        raise UsageError("--dataset folder needs --data-dir, a folder with one subfolder per class")
    if place.is_file() and place.suffix.lower() in TABLE_SUFFIXES:
        found = find_in_table(place)
    elif place.is_dir():
        found = find_in_folder(place)
    else:
        raise UsageError(
            f"--data-dir: {place} is not a folder, nor a .csv, .tsv or .parquet file with the columns path "
            "and label"
        )
    return own_source(found, config.image_size, config.cache_dir, config.skip_unreadable)


def _cifar10_in(directory: Path, archive: Archive, cache_dir: Path) -> Source:
    for folder in (directory / FOLDER, directory):
        if (folder / archive.train[0][0]).is_file():
            return batches_source(folder, archive, cache_dir)
    for path in (directory / ARCHIVE_NAME, directory):
        if path.is_file():
            return archive_source(path, archive, cache_dir)
    # The Hub keeps the files of this data set in a folder named after its configuration.
    for folder in (directory, directory / "plain_text"):
        if parquet_files(folder, "train") and parquet_files(folder, "test"):
            return parquet_source("cifar10", folder)
    raise UsageError(
        f"--data-dir: no CIFAR-10 in {directory} (from --data-dir or CIFAR10_DIR). It should hold {FOLDER}, "
        f"{ARCHIVE_NAME}, or train-*.parquet with test-*.parquet. For your own images, add --dataset folder."
    )

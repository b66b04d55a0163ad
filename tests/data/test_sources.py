import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import CIFAR10_CLASSES, load_dataset
from cifar_mlflow.data.original import ARCHIVE_NAME, FOLDER, PUBLISHED
from cifar_mlflow.data.sources import SAMPLE_DIR
from cifar_mlflow.data.split import stratified_split
from cifar_mlflow.errors import CifarError, UsageError
from tests.data.conftest import Mirrors, Published


def test_the_sample_has_the_documented_content() -> None:
    dataset = load_dataset(DataConfig(dataset="sample"))
    train, test = dataset.split("train"), dataset.split("test")
    assert (dataset.name, dataset.classes, dataset.image_size) == ("cifar10-sample", CIFAR10_CLASSES, 32)
    assert train.images.shape == (5_000, 32, 32, 3)
    assert test.images.shape == (1_000, 32, 32, 3)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert train.labels.min() == 0
    assert np.bincount(train.labels).min() >= 450
    assert np.bincount(test.labels).min() >= 85
    with pytest.raises(ValueError, match="read-only"):
        train.images[0] = 0


def test_labels_of_the_sample_are_in_the_standard_order() -> None:
    # The first batch of the original begins with a frog, two trucks, a deer and an automobile.
    labels = load_dataset(DataConfig(dataset="sample")).split("train").labels
    assert [CIFAR10_CLASSES[i] for i in labels[:5]] == ["frog", "truck", "truck", "deer", "automobile"]


def test_the_published_sums_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR10

    assert CIFAR10.tgz_md5 == PUBLISHED.md5
    assert tuple(map(tuple, CIFAR10.train_list)) == PUBLISHED.train
    assert tuple(map(tuple, CIFAR10.test_list)) == PUBLISHED.test
    assert (CIFAR10.meta["filename"], CIFAR10.meta["md5"]) == PUBLISHED.meta


@pytest.fixture(params=["folder", "its parent", "archive", "archive file", "download"])
def layout(
    request: pytest.FixtureRequest, tmp_path: Path, published: Published, mirrors: Mirrors
) -> DataConfig:
    data = tmp_path / "data"
    data.mkdir()
    places = {"folder": data / "renamed", "its parent": data, "archive": data, "archive file": data / "a.tgz"}
    if request.param == "folder":
        shutil.copytree(published.folder, data / "renamed")
    elif request.param == "its parent":
        shutil.copytree(published.folder, data / FOLDER)
    elif request.param == "archive":
        shutil.copy(published.path, data / ARCHIVE_NAME)
    elif request.param == "archive file":
        shutil.copy(published.path, data / "a.tgz")
    return DataConfig(
        data_dir=places.get(request.param), mirrors=(mirrors.url("good"),), cache_dir=tmp_path / "cache"
    )


def test_every_layout_has_the_published_images(layout: DataConfig, published: Published) -> None:
    dataset = load_dataset(layout, published.archive)
    train, test = dataset.split("train"), dataset.split("test")
    np.testing.assert_array_equal(train.images, published.train_images)
    np.testing.assert_array_equal(train.labels, published.train_labels)
    np.testing.assert_array_equal(test.images, published.test_images)
    np.testing.assert_array_equal(test.labels, published.test_labels)
    assert dataset.digest == published.archive.digest
    assert not list(layout.cache_dir.glob(".unpacked-*"))


def test_the_training_split_does_not_need_the_test_split(tmp_path: Path, published: Published) -> None:
    shutil.copytree(published.folder, tmp_path / FOLDER)
    dataset = load_dataset(DataConfig(data_dir=tmp_path, cache_dir=tmp_path / "cache"), published.archive)
    (tmp_path / FOLDER / "test_batch").unlink()
    assert len(dataset.split("train")) == 100
    with pytest.raises(CifarError):
        dataset.split("test")


def test_a_damaged_archive_is_not_used(tmp_path: Path, published: Published) -> None:
    (tmp_path / ARCHIVE_NAME).write_bytes(published.path.read_bytes()[:-1])
    with pytest.raises(CifarError, match="damaged or incomplete"):
        load_dataset(DataConfig(data_dir=tmp_path, cache_dir=tmp_path / "cache"), published.archive)


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_a_file_that_cannot_be_read_is_named(form: str, tmp_path: Path, published: Published) -> None:
    memory = Path("/proc/self/mem")  # not even root may read its first byte
    if not memory.exists():
        pytest.skip("needs /proc/self/mem, which only Linux has")
    if form == "archive":
        file = tmp_path / ARCHIVE_NAME
    else:
        file = shutil.copytree(published.folder, tmp_path / FOLDER) / "data_batch_2"
        file.unlink()
    file.symlink_to(memory)
    with pytest.raises(CifarError) as caught:
        load_dataset(DataConfig(data_dir=tmp_path), published.archive)
    assert str(caught.value) == f"Cannot read {file}: Input/output error"


def test_a_file_damaged_after_its_check_is_noticed(tmp_path: Path, published: Published) -> None:
    folder = shutil.copytree(published.folder, tmp_path / FOLDER)
    config = DataConfig(data_dir=tmp_path, cache_dir=tmp_path / "cache")
    load_dataset(config, published.archive)
    batch = folder / "data_batch_3"
    content = bytearray(batch.read_bytes())
    content[5_000] ^= 1
    batch.write_bytes(content)
    with pytest.raises(CifarError, match="data_batch_3 is damaged"):
        load_dataset(config, published.archive)


def test_a_missing_file_of_the_folder_is_named(tmp_path: Path, published: Published) -> None:
    folder = shutil.copytree(published.folder, tmp_path / FOLDER)
    (folder / "data_batch_4").unlink()
    with pytest.raises(CifarError, match="data_batch_4 is missing"):
        load_dataset(DataConfig(data_dir=tmp_path, cache_dir=tmp_path / "cache"), published.archive)


def test_a_download_damaged_in_the_cache_is_downloaded_again(
    tmp_path: Path, published: Published, mirrors: Mirrors
) -> None:
    config = DataConfig(mirrors=(mirrors.url("good"),), cache_dir=tmp_path)
    dataset = load_dataset(config, published.archive)
    (tmp_path / ARCHIVE_NAME).write_bytes(b"damaged")
    assert len(dataset.split("train")) == 100
    assert mirrors.count("good") == 2


def write_parquet(folder: Path, labels: list[int], image: bytes | None = None, column: str = "img") -> None:
    if image is None:
        rows = pq.read_table(SAMPLE_DIR / "test-00000-of-00001.parquet").slice(0, 1)
        image = rows.column("img")[0].as_py()["bytes"]
    for split in ("train", "test"):
        table = pa.table({column: [{"bytes": image, "path": "a.png"}] * len(labels), "label": labels})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def test_parquet_is_found_in_the_folder_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "plain_text").mkdir()
    write_parquet(tmp_path / "plain_text", [3, 8])
    dataset = load_dataset(DataConfig(data_dir=tmp_path, cache_dir=tmp_path / "cache"))
    assert dataset.name == "cifar10"
    assert dataset.split("train").labels.tolist() == [3, 8]


def test_paths_that_are_not_utf8_are_read(tmp_path: Path, published: Published) -> None:
    data = tmp_path / os.fsdecode(b"K\xe4tzchen")
    (tmp_path / "parquet").mkdir()
    write_parquet(tmp_path / "parquet", [3, 8])
    shutil.copytree(tmp_path / "parquet", data / "parquet")
    shutil.copytree(published.folder, data / FOLDER)
    for folder, labels in ((data / "parquet", [3, 8]), (data, published.train_labels)):
        config = DataConfig(data_dir=folder, cache_dir=data / "cache")
        assert list(load_dataset(config, published.archive).split("train").labels) == list(labels)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ({"labels": [1, 10]}, "row 1 has label 10"),
        ({"labels": [-1]}, "row 0 has label -1"),
        ({"labels": [1], "image": b"no image"}, "cannot identify image"),
        ({"labels": [1], "column": "picture"}, "img"),
    ],
)
def test_wrong_parquet_is_named(tmp_path: Path, rows: dict, complaint: str) -> None:
    write_parquet(tmp_path, **rows)
    dataset = load_dataset(DataConfig(data_dir=tmp_path, cache_dir=tmp_path / "cache"))
    with pytest.raises(CifarError, match=f"train-00000.*Hub's parquet layout.*{complaint}"):
        dataset.split("train")


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path, [1])
    file = tmp_path / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    dataset = load_dataset(DataConfig(data_dir=tmp_path, cache_dir=tmp_path / "cache"))
    with pytest.raises(CifarError, match="train-00000"):
        dataset.split("train")


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    config = DataConfig(data_dir=tmp_path, cache_dir=tmp_path / "cache")
    digests = []
    for labels in ([3, 8], [3, 9], [3, 8]):
        write_parquet(tmp_path, labels)
        digests.append(load_dataset(config).digest)
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]
    assert int(digests[0], 16) >= 0
    assert len(digests[0]) == 64


@pytest.mark.parametrize("dataset", ["cifar10", "sample"])
def test_image_size_is_only_for_folders(dataset: str, tmp_path: Path) -> None:
    config = DataConfig.model_validate({"dataset": dataset, "image_size": 64, "data_dir": tmp_path})
    with pytest.raises(UsageError, match=f"--image-size: {dataset} has images of 32 pixels"):
        load_dataset(config)


def test_the_error_for_a_wrong_data_dir_lists_the_accepted_content(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no CIFAR-10 in .*CIFAR10_DIR.*cifar-10-batches-py"):
        load_dataset(DataConfig(data_dir=tmp_path))


def test_a_start_from_the_cache_imports_no_slow_library(shared_cache: Path) -> None:
    load_dataset(DataConfig(dataset="sample")).split("train")
    program = (
        "import sys\n"
        "from cifar_mlflow.config import DataConfig\n"
        "from cifar_mlflow.data import load_dataset\n"
        "load_dataset(DataConfig(dataset='sample')).split('train')\n"
        "print({'torch', 'pandas', 'pyarrow', 'mlflow'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.slow
@pytest.mark.real_data
def test_real_cifar10(real_data_dir: Path) -> None:
    dataset = load_dataset(DataConfig(data_dir=real_data_dir))
    train, test = dataset.split("train"), dataset.split("test")
    assert np.bincount(train.labels).tolist() == [5_000] * 10
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    kept, held_out = stratified_split(train.labels, 0.1, seed=0)
    assert np.bincount(train.labels[held_out]).tolist() == [500] * 10
    assert len(kept) == 45_000

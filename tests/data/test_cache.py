import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from cifar_mlflow.config import SplitName
from cifar_mlflow.data.cache import cache_errors, cached_split, remembered
from cifar_mlflow.data.dataset import ImageDataset, Split
from cifar_mlflow.errors import CifarError

DIGEST = "0" * 64


def pieces(_: SplitName) -> Iterator[Split]:
    rng = np.random.default_rng(0)
    for size in (7, 5):
        yield Split(rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8), np.arange(size, dtype=np.int64))


def must_not_read(_: SplitName) -> Iterator[Split]:
    raise AssertionError("decoded again")


def get(cache_dir: Path) -> Split:
    return cached_split(cache_dir, DIGEST, "train", pieces)


def test_the_cache_returns_the_decoded_arrays(tmp_path: Path) -> None:
    expected = list(pieces("train"))
    for split in (get(tmp_path), cached_split(tmp_path, DIGEST, "train", must_not_read)):
        np.testing.assert_array_equal(split.images, np.concatenate([piece.images for piece in expected]))
        np.testing.assert_array_equal(split.labels, np.concatenate([piece.labels for piece in expected]))
        assert isinstance(split.images, np.memmap)
        assert not split.images.flags.writeable


def test_each_digest_and_split_has_its_own_entry(tmp_path: Path) -> None:
    get(tmp_path)
    for digest, name in ((DIGEST, "test"), ("1" * 64, "train")):
        with pytest.raises(AssertionError, match="decoded again"):
            cached_split(tmp_path, digest, name, must_not_read)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["cut images", "cut labels", "no meta", "broken meta", "old format"])
def test_a_damaged_entry_is_decoded_again(tmp_path: Path, damage: str) -> None:
    before = get(tmp_path)
    entry = tmp_path / "arrays" / DIGEST / "train"
    if damage == "cut images":
        os.truncate(entry / "images.npy", 1_000)
    elif damage == "cut labels":
        os.truncate(entry / "labels.npy", 130)
    elif damage == "no meta":
        (entry / "meta.json").unlink()
    elif damage == "broken meta":
        (entry / "meta.json").write_text("{")
    else:
        text = (entry / "meta.json").read_text()
        (entry / "meta.json").write_text(text.replace('"format": 1', '"format": 0'))
    with pytest.raises(AssertionError, match="decoded again"):
        cached_split(tmp_path, DIGEST, "train", must_not_read)
    after = get(tmp_path)
    np.testing.assert_array_equal(after.labels, before.labels)
    assert len(after.images) == 12


def test_an_entry_of_another_version_of_pillow_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(tmp_path)
    monkeypatch.setattr("PIL.__version__", "999.0")
    with pytest.raises(AssertionError, match="decoded again"):
        cached_split(tmp_path, DIGEST, "train", must_not_read)
    get(tmp_path)
    assert len(cached_split(tmp_path, DIGEST, "train", must_not_read)) == 12


def test_a_failed_decoding_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails_midway(name: SplitName) -> Iterator[Split]:
        yield next(pieces(name))
        raise CifarError("a corrupt image")

    with pytest.raises(CifarError, match="a corrupt image"):
        cached_split(tmp_path, DIGEST, "train", fails_midway)
    assert [path.name for path in (tmp_path / "arrays" / DIGEST).iterdir()] == ["train.lock"]
    assert len(get(tmp_path)) == 12


def _count_decodings(cache_dir: Path, counter: Path, start: Barrier) -> None:
    def counted(name: SplitName) -> Iterator[Split]:
        with counter.open("a") as file:
            file.write("x")
        time.sleep(0.5)  # so that the other process usually arrives while the lock is held
        yield from pieces(name)

    start.wait(30)
    assert len(cached_split(cache_dir, DIGEST, "train", counted)) == 12


def test_processes_that_start_together_decode_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "cache", tmp_path / "counter", spawn.Barrier(2))
    processes = [spawn.Process(target=_count_decodings, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "counter").read_text() == "x"


def test_an_unwritable_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CifarError,
        match=r"cannot be written .*choose another place with --cache-dir \(or CIFAR_MLFLOW_CACHE\)",
    ):
        get(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CifarError, match=r"No space left.*free some"), cache_errors(tmp_path):
        Path("/dev/full").write_text("x")


class Digest:
    """A digest of files that counts how often it was computed; the files are old enough to be remembered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.files = {b"a": folder / "a", b"b": folder / "b"}
        for path in self.files.values():
            path.write_text("content")
        self.count = itertools.count(1)

    def __call__(self, purpose: str = "sum") -> str:
        return remembered(self.cache, purpose, self.files, lambda: str(next(self.count)))


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Digest:
    monkeypatch.setattr("cifar_mlflow.data.cache.TIME_RESOLUTION_NS", -(10**9))
    return Digest(tmp_path)


def test_a_digest_of_unchanged_files_is_computed_once(digest: Digest) -> None:
    assert digest() == digest() == "1"


def test_each_purpose_has_its_own_digest(digest: Digest) -> None:
    assert digest("sum") != digest("other sum")


def test_renamed_and_reordered_files_have_another_digest(digest: Digest) -> None:
    first = digest()
    digest.files = {b"a": digest.files[b"a"], b"c": digest.files[b"b"]}
    second = digest()
    digest.files = dict(reversed(digest.files.items()))
    assert len({first, second, digest()}) == 3


def test_a_link_to_another_file_has_another_digest(digest: Digest, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("a")
    digest.files = {b"link": link}
    first = digest()
    stat = digest.folder.joinpath("a").stat()
    os.utime(tmp_path / "b", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    link.unlink()
    link.symlink_to("b")
    assert digest() != first


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_new_content_of_the_same_size_and_date_has_another_digest(digest: Digest, how: str) -> None:
    first = digest()
    path = digest.files[b"a"]
    stat = path.stat()
    if how == "replaced":
        path.unlink()
    path.write_text("CONTENT")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert digest() != first


def test_files_that_were_just_written_are_not_remembered(tmp_path: Path) -> None:
    """They could change again within the resolution of the file system's clock."""
    digest = Digest(tmp_path)
    assert digest() != digest()


def test_a_split_is_loaded_only_on_request() -> None:
    def load(name: SplitName) -> Split:
        if name == "test":
            raise AssertionError("read the test split")
        return next(pieces(name))

    dataset = ImageDataset("tiny", ("a", "b"), 16, DIGEST, load)
    assert len(dataset.split("train")) == 7
    with pytest.raises(AssertionError, match="read the test split"):
        dataset.split("test")

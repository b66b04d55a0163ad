import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_mlflow.config import DataConfig, SplitName
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.summary import summarize
from cifar_mlflow.errors import CifarError, UsageError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def fill(root: Path, *classes: str, count: int = 10) -> None:
    for name in classes:
        for i in range(count):
            save(root / name / f"{i}.png", (i, 0, 0))


def load(tmp_path: Path, folder: Path | None = None, image_size: int = 32) -> ImageDataset:
    config = DataConfig(
        dataset="folder",
        data_dir=folder or tmp_path / "photos",
        image_size=image_size,
        cache_dir=tmp_path / "cache",
    )
    return load_dataset(config)


def decoded(tmp_path: Path, image_size: int = 32) -> np.ndarray:
    """Return the only training image of class `a` in tmp_path/photos/train."""
    save(tmp_path / "photos/train/b/0.png")
    save(tmp_path / "photos/test/a/0.png")
    save(tmp_path / "photos/test/b/0.png")
    return np.asarray(load(tmp_path, image_size=image_size).split("train").images[0])


def test_classes_are_the_sorted_folder_names(tmp_path: Path) -> None:
    fill(tmp_path / "photos/train", "wolf", "ant", "Bee", count=3)
    fill(tmp_path / "photos/test", "wolf", "ant", "Bee", count=2)
    dataset = load(tmp_path)
    assert dataset.name == "photos"
    assert dataset.classes == ("Bee", "ant", "wolf")
    assert dataset.split("train").labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.split("test").labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("root", ["photos", "photos/train"])
def test_without_a_test_folder_a_tenth_of_each_class_becomes_the_test_split(
    tmp_path: Path, root: str
) -> None:
    fill(tmp_path / root, "a", "b", count=20)
    dataset = load(tmp_path)
    train, test = dataset.split("train"), dataset.split("test")
    assert train.labels.tolist() == [0] * 18 + [1] * 18
    assert test.labels.tolist() == [0, 0, 1, 1]
    # Each image of a class has its own red value: together the splits hold each value once.
    for label in (0, 1):
        reds = [split.images[split.labels == label][:, 0, 0, 0] for split in (train, test)]
        assert sorted(np.concatenate(reds).tolist()) == list(range(20))


def test_images_are_cropped_to_the_middle_square_and_resized(tmp_path: Path) -> None:
    image = Image.new("RGB", (120, 60), RED)
    image.paste(BLUE, (30, 0, 90, 60))
    save(tmp_path / "photos/train/a/0.png")
    image.save(tmp_path / "photos/train/a/0.png")
    pixels = decoded(tmp_path, image_size=48)
    assert pixels.shape == (48, 48, 3)
    assert (pixels == BLUE).all()


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    save(tmp_path / "photos/train/a/0.png")
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "photos/train/a/0.png")
    pixels = decoded(tmp_path)
    assert np.abs(pixels[4:-4, 4:-4].astype(int) - 127).max() < 16


def test_images_of_the_right_size_are_unchanged(tmp_path: Path) -> None:
    save(tmp_path / "photos/train/a/0.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos/train/a/0.png")
    np.testing.assert_array_equal(decoded(tmp_path), noise)


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), RED)
    image.paste(BLUE, (32, 0, 64, 64))  # blue on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    save(tmp_path / "photos/train/a/0.png")
    image.save(tmp_path / "photos/train/a/0.png", exif=exif)
    pixels = decoded(tmp_path)
    assert (pixels[2] == RED).all()
    assert (pixels[-3] == BLUE).all()


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGBA", (0, 0, 255, 0), "png", (255, 255, 255)),
        ("LA", (0, 255), "png", (0, 0, 0)),
        ("L", 100, "png", (100, 100, 100)),
        ("P", 0, "gif", (0, 0, 0)),
        ("I;16", 0x8000, "png", (128, 128, 128)),
        ("CMYK", (0, 0, 0, 255), "jpg", (0, 0, 0)),
        ("RGB", GREEN, "webp", GREEN),
        ("RGB", (8, 16, 24), "bmp", (8, 16, 24)),
    ],
)
def test_any_kind_of_image_becomes_rgb(
    tmp_path: Path, mode: str, colour: int | tuple, suffix: str, expected: tuple
) -> None:
    (tmp_path / "photos/train/a").mkdir(parents=True)
    Image.new(mode, (32, 32), colour).save(tmp_path / f"photos/train/a/0.{suffix}", lossless=True)
    assert (decoded(tmp_path) == expected).all()


def test_a_large_jpeg_keeps_its_content(tmp_path: Path) -> None:
    image = Image.new("RGB", (1600, 1200), RED)
    image.paste(BLUE, (0, 600, 1600, 1200))
    (tmp_path / "photos/train/a").mkdir(parents=True)
    image.save(tmp_path / "photos/train/a/0.jpg", quality=95)
    pixels = decoded(tmp_path).astype(int)
    assert np.abs(pixels[:14] - RED).max() < 10
    assert np.abs(pixels[-14:] - BLUE).max() < 10


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a", "b")
    (tmp_path / "photos/.git").mkdir()
    (tmp_path / "photos/a/.DS_Store").write_bytes(b"\0")
    (tmp_path / "photos/notes.txt").write_text("not a class")
    dataset = load(tmp_path)
    assert dataset.classes == ("a", "b")
    assert len(dataset.split("train")) + len(dataset.split("test")) == 20


def test_the_digest_follows_content_names_and_size(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    fill(photos, "a", "b")
    first = load(tmp_path).digest
    assert load(tmp_path).digest == first
    assert load(tmp_path, image_size=64).digest != first
    save(photos / "a/0.png", GREEN)
    second = load(tmp_path).digest
    (photos / "a").rename(photos / "c")
    assert len({first, second, load(tmp_path).digest}) == 3


def test_a_copied_folder_has_the_same_digest(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a", "b")
    fill(tmp_path / "copy", "a", "b")
    assert load(tmp_path).digest == load(tmp_path, tmp_path / "copy").digest


def link_into_store(photos: Path, linked: Path, store: Path) -> None:
    """Copy each image into a store by its number and link to it, as DVC, git-annex and the HF cache do."""
    store.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        link = linked / path.relative_to(photos)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shutil.copy(path, store / f"{number}"))


def labels_by_red(dataset: ImageDataset, split: SplitName = "train") -> list[tuple[int, int]]:
    """Return (red value, label) of each image."""
    images = dataset.split(split)
    return sorted(zip(images.images[:, 0, 0, 0].tolist(), images.labels.tolist(), strict=True))


def test_links_that_move_to_another_class_have_the_label_of_that_class(
    tmp_path: Path, old_files: None
) -> None:
    for split in ("train", "test"):
        for label, name in enumerate(("car", "truck", "van")):
            for i in range(6):
                save(tmp_path / "plain" / split / name / f"{10 * label + i:02}.png", (10 * label + i, 0, 0))
    photos = tmp_path / "photos"
    link_into_store(tmp_path / "plain", photos, tmp_path / "store")
    first = load(tmp_path)
    assert labels_by_red(first)[5] == (5, 0)
    (photos / "train/car/05.png").rename(photos / "train/truck/05.png")
    second = load(tmp_path)
    assert second.digest != first.digest
    assert labels_by_red(second)[5] == (5, 1)

    for split in ("train", "test"):  # merge two classes
        for path in (photos / split / "van").iterdir():
            path.rename(photos / split / "truck" / path.name)
        (photos / split / "van").rmdir()
    merged = load(tmp_path)
    assert merged.classes == ("car", "truck")
    assert merged.split("train").labels.max() == merged.split("test").labels.max() == 1


def test_new_content_of_the_same_size_and_date_is_decoded(tmp_path: Path, old_files: None) -> None:
    photos = tmp_path / "photos"
    for name in ("a", "b"):
        for i in range(4):
            save((photos / name / f"{i}.bmp"), (i, 0, 0))
    assert max(red for red, _ in labels_by_red(load(tmp_path))) < 200
    for path in photos.rglob("*.bmp"):
        stat = path.stat()
        save(path, (200, 0, 0))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
    assert {red for red, _ in labels_by_red(load(tmp_path))} == {200}


def test_a_file_that_changes_before_it_is_decoded_is_not_cached_as_what_it_was(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    fill(photos, "a", "b")
    dataset = load(tmp_path)
    content = {path: path.read_bytes() for path in photos.rglob("*.png")}
    for path in content:
        save(path, (200, 0, 0))
    with pytest.raises(CifarError, match=r"images in .*photos changed while they were read"):
        dataset.split("train")
    for path, data in content.items():
        path.write_bytes(data)
    again = load(tmp_path)
    assert again.digest == dataset.digest
    assert max(red for red, _ in labels_by_red(again)) < 200


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let digests of files that were just written be remembered."""
    monkeypatch.setattr("cifar_mlflow.data.cache.TIME_RESOLUTION_NS", -(10**9), raising=False)


LATIN1 = os.fsdecode(b"K\xe4tzchen")


def test_a_file_name_that_is_not_utf8_is_used(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a", "b")
    (tmp_path / "photos/a/0.png").rename(tmp_path / "photos/a" / f"{LATIN1}.png")
    dataset = load(tmp_path)
    assert len(dataset.split("train")) + len(dataset.split("test")) == 20


def test_a_file_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a", "b")
    shutil.copytree(tmp_path / "photos", tmp_path / "sorted/train")
    shutil.copytree(tmp_path / "photos", tmp_path / "sorted/test")
    (tmp_path / "sorted/train/a" / f"{LATIN1}.png").write_bytes(b"not an image")
    dataset = load(tmp_path, tmp_path / "sorted")
    with pytest.raises(CifarError, match=r"a/K\\xe4tzchen\.png is not an image that can be read") as caught:
        dataset.split("train")
    str(caught.value).encode()


def test_folders_that_are_not_utf8_give_escaped_names(tmp_path: Path) -> None:
    photos = tmp_path / f"{LATIN1}en"
    fill(photos, LATIN1, "dog")
    dataset = load(tmp_path, photos)
    assert dataset.name == "K\\xe4tzchenen"
    assert dataset.classes == ("K\\xe4tzchen", "dog")
    assert dataset.split("train").labels.tolist() == [0] * 9 + [1] * 9


def test_two_folders_with_the_same_escaped_name_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "photos", LATIN1, "K\\xe4tzchen")
    with pytest.raises(UsageError, match=r"several folders in .* stand for class K\\xe4tzchen"):
        load(tmp_path)


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "photos/train", "a", "b")
    fill(tmp_path / "photos/test", "a", "b")
    bad = tmp_path / "photos/train/b/4.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(
        CifarError, match=r"train/b/4\.png is not an image that can be read.*remove or replace"
    ):
        load(tmp_path).split("train")


def test_errors_name_the_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    with pytest.raises(UsageError, match="--data-dir"):
        load_dataset(DataConfig(dataset="folder"))
    with pytest.raises(UsageError, match="photos is not a folder"):
        load(tmp_path)
    photos.mkdir()
    with pytest.raises(UsageError, match=r"at least 2 class folders .*found none"):
        load(tmp_path)
    fill(photos, "a")
    with pytest.raises(UsageError, match=r"at least 2 class folders .*found only a"):
        load(tmp_path)
    (photos / "b").mkdir()
    with pytest.raises(UsageError, match=r"class folder .*photos/b has no images"):
        load(tmp_path)
    save(photos / "b/0.png")
    save(photos / "c/0.png")
    with pytest.raises(UsageError, match=r"for the test split: class b has 1 image, class c has 1 image\."):
        load(tmp_path)


def test_a_test_folder_without_a_train_folder_is_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    fill(photos, "cat", "dog")
    fill(photos / "test", "cat", "dog")
    with pytest.raises(UsageError, match=r"has a folder test, but no folder train .*photos/train"):
        load(tmp_path)


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", "test")
    assert load(tmp_path).classes == ("cat", "test")


def test_every_class_without_images_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a", "b")
    for name in ("x", "y"):
        (tmp_path / "photos" / name).mkdir()
    with pytest.raises(UsageError, match=r"class folder \S+photos/x, \S+photos/y has no images"):
        load(tmp_path)


def test_a_class_of_two_images_is_named_with_its_count_and_a_hint(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", "dog", "zebra")
    fill(tmp_path / "photos", "rare", count=2)
    dataset = load(tmp_path)
    with pytest.raises(UsageError, match=r"class rare has 2 images \(1 of them in .*--val-size 0"):
        summarize(dataset, DataConfig())
    table = summarize(dataset, DataConfig(val_size=0))
    assert list(table.loc["rare"]) == [1, 0, 1]


def test_a_class_of_one_training_image_is_named_with_a_hint(tmp_path: Path) -> None:
    for split in ("train", "test"):
        fill(tmp_path / "photos" / split, "cat", "dog")
        fill(tmp_path / "photos" / split, "rare", count=1)
    dataset = load(tmp_path)
    with pytest.raises(UsageError, match=r"class rare has 1 image\. .*--val-size 0"):
        summarize(dataset, DataConfig())
    assert list(summarize(dataset, DataConfig(val_size=0)).loc["rare"]) == [1, 0, 1]


def test_train_and_test_must_have_the_same_classes(tmp_path: Path) -> None:
    fill(tmp_path / "photos/train", "a", "b")
    fill(tmp_path / "photos/test", "a", "c")
    with pytest.raises(UsageError, match="different classes: b, c"):
        load(tmp_path)

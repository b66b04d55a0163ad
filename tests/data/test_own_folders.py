"""Folders as users have them: nested, with stray and damaged files, and split in various ways."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.data.split import divide, divide_lazily
from cifar_mlflow.data.summary import summarize
from cifar_mlflow.errors import CifarError, UsageError
from tests.data.test_folder import BLUE, RED, fill, save


def load(tmp_path: Path, **settings: Any) -> ImageDataset:
    return load_dataset(config(tmp_path, **settings))


def config(tmp_path: Path, **settings: Any) -> DataConfig:
    places = {"data_dir": tmp_path / "photos", "cache_dir": tmp_path / "cache"}
    return DataConfig(dataset="folder", **{**places, **settings})


def count(dataset: ImageDataset) -> int:
    return len(dataset.split("train")) + len(dataset.split("test"))


def test_images_at_any_depth_belong_to_the_class_above(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    fill(photos, "cat", "dog", "cat/2023", "cat/2024/a summer", "dog/from-kaggle")
    dataset = load(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert count(dataset) == 50
    assert not dataset.notes


def test_a_link_to_a_folder_above_ends_the_search(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", "dog")
    (tmp_path / "photos/cat/again").symlink_to(tmp_path / "photos/cat")
    (tmp_path / "photos/cat/all").symlink_to("..")  # with the dogs
    dataset = load(tmp_path)
    assert count(dataset) == 20
    assert "all" in " ".join(dataset.notes)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Training", "Validation", "Testing"),
        ("train2017", "val2017", "test2017"),
        ("seg_train/seg_train", "dev_set", "seg_test/seg_test"),
        ("training_set/training_set", "validation-images", "test_set/test_set"),
    ],
)
def test_splits_have_any_usual_name(tmp_path: Path, train: str, val: str, test: str) -> None:
    photos = tmp_path / "photos"
    for folder, size in ((train, 8), (val, 3), (test, 2)):
        fill(photos / folder, "cat", "dog", count=size)
    dataset = load(tmp_path)
    assert summarize(dataset, config(tmp_path)).to_numpy().tolist() == [[8, 3, 2]] * 2
    for parts in (divide(dataset, config(tmp_path)), divide_lazily(dataset, config(tmp_path, val_size=0))):
        assert [len(part) for part in parts] == [16, 6]
        assert parts[0].images[:].shape == (16, 32, 32, 3)
    (note,) = dataset.notes
    assert f"validation split is {photos / Path(val).parts[0]}" in note
    assert "--val-size does not apply" in note


def test_with_a_validation_folder_and_no_test_folder_a_tenth_is_set_aside(tmp_path: Path) -> None:
    fill(tmp_path / "photos/train", "cat", "dog", count=20)
    fill(tmp_path / "photos/val", "cat", "dog", count=5)
    table = summarize(load(tmp_path), config(tmp_path))
    assert table.to_numpy().tolist() == [[18, 5, 2]] * 2


def test_the_digest_follows_the_validation_images(tmp_path: Path) -> None:
    fill(tmp_path / "photos/train", "cat", "dog", count=20)
    fill(tmp_path / "photos/val", "cat", "dog", count=5)
    first = load(tmp_path)
    first.split("val")
    save(tmp_path / "photos/val/cat/0.png", BLUE)
    second = load(tmp_path)
    assert second.digest != first.digest
    assert (second.split("val").images[0] == BLUE).all()


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "bus", "car", "train", "valid/2023", "dev")
    assert load(tmp_path).classes == ("bus", "car", "dev", "train", "valid")


def test_splits_below_the_classes_are_mentioned(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat/train", "cat/test", "dog/train", "dog/test")
    (note,) = load(tmp_path).notes
    assert note.startswith(f"{tmp_path / 'photos/cat/test'} is below a class, so it is not a split")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for folder in ("train", "val", "valid"):
        fill(tmp_path / "photos" / folder, "cat", "dog")
    with pytest.raises(UsageError, match=r"several folders of validation images: val, valid; keep"):
        load(tmp_path)


@pytest.mark.parametrize("folders", [("val", "cat", "dog"), ("val", "test")])
def test_validation_or_test_folders_without_a_training_folder_are_refused(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    for folder in folders:
        inside = ("cat", "dog") if folder in ("val", "test") else ("2023",)
        fill(tmp_path / "photos" / folder, *inside)
    with pytest.raises(UsageError, match=r"has a folder (val|test), but no folder train .*photos/train"):
        load(tmp_path)


def test_validation_must_have_the_classes_of_the_training(tmp_path: Path) -> None:
    fill(tmp_path / "photos/train", "cat", "dog")
    fill(tmp_path / "photos/val", "cat", "fox")
    with pytest.raises(UsageError, match=r"train and val in .* different classes: dog, fox"):
        load(tmp_path)


def test_images_that_are_not_used_are_mentioned(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    fill(photos / "train", "cat", "dog")
    fill(photos / "extra", "cat", "fox")
    save(photos / "train/IMG_1.jpg")
    save(photos / "test/1.jpg")
    notes = "\n".join(load(tmp_path).notes)
    assert f"Skipped 20 images in {photos / 'extra'}, which is not named like a split, such as val" in notes
    assert f"Skipped 1 image in {photos / 'test'}, which has no class folders" in notes
    assert f"Skipped 1 image outside of the class folders in {photos}" in notes


def test_a_wrong_level_is_refused_with_what_to_do(tmp_path: Path) -> None:
    fill(tmp_path / "photos/unzipped", "cat", "dog")
    with pytest.raises(UsageError, match=r"found only unzipped\. .*--data-dir .*photos/unzipped$"):
        load(tmp_path)
    for i in range(3):
        save(tmp_path / f"flat/{i}.png")
    with pytest.raises(
        UsageError, match=r"found none, but 3 images without a class\. .*columns path and label"
    ):
        load(tmp_path, data_dir=tmp_path / "flat")


def test_stray_files_are_skipped_counted_and_named_once(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    fill(photos, "cat", "dog")
    (photos / "cat/Thumbs.db").write_bytes(b"junk")
    (photos / "dog/Thumbs.db").write_bytes(b"junk")
    (photos / "dog/.DS_Store").write_bytes(b"\0")
    (photos / "dog/notes.txt").write_text("BM, a text that begins like a bitmap")
    save(photos / "cat/@eaDir/thumbnail.jpg")
    dataset = load(tmp_path)
    assert count(dataset) == 20
    (note,) = dataset.notes
    assert note.startswith(f"Skipped 5 non-image files in {photos}: Thumbs.db (2), ")
    assert all(name in note for name in (".DS_Store", "notes.txt", "@eaDir"))


def test_an_image_without_a_suffix_is_used(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    fill(photos, "cat", "dog")
    for i, name in enumerate(("0", "1.original")):
        (photos / f"cat/{i}.png").rename(photos / "cat" / name)
    Image.new("RGB", (40, 40)).save(photos / "dog/bitmap", "BMP")
    dataset = load(tmp_path)
    assert count(dataset) == 21
    assert not dataset.notes


def with_bad_files(photos: Path) -> list[str]:
    """Add five files that cannot be read, and return their names."""
    (photos / "cat/zero.jpg").touch()
    (photos / "dog/cut.png").write_bytes((photos / "dog/0.png").read_bytes()[:60])
    (photos / "dog/page.jpg").write_text("<html>")
    (photos / "cat/gone.jpg").symlink_to(photos / "store/1.jpg")
    (photos / "cat/deep").mkdir()
    (photos / "cat/deep/video.heic").write_bytes(b"\0\0\0\x20ftypmp42" + bytes(100))
    return ["cat/zero.jpg", "dog/cut.png", "dog/page.jpg", "cat/gone.jpg", "cat/deep/video.heic"]


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", "dog")
    bad = with_bad_files(tmp_path / "photos")
    with pytest.raises(
        CifarError, match=r"^5 files in .*photos are not images .*--skip-unreadable"
    ) as caught:
        load(tmp_path).split("train")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + len(bad)
    for name in bad:
        assert any(f"photos/{name} (" in line for line in lines), name
    # Without the broken link, the digest can be computed, and decoding the first split reports all bad files.
    (tmp_path / "photos/cat/gone.jpg").unlink()
    for split in ("train", "test"):
        with pytest.raises(CifarError, match=r"^4 files in "):
            load(tmp_path).split(split)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", "dog")
    (tmp_path / "photos/cat/0.png").chmod(0)
    if os.access(tmp_path / "photos/cat/0.png", os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(CifarError, match=r"cat/0\.png is not an image that can be read.*Permission denied"):
        load(tmp_path)


def test_skip_unreadable_leaves_them_out_and_names_them(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", "dog")
    clean = load(tmp_path)
    bad = with_bad_files(tmp_path / "photos")
    for _ in range(2):  # the second time, the cache knows the answer
        dataset = load(tmp_path, skip_unreadable=True)
        assert count(dataset) == 20
        (note,) = dataset.notes
        assert note.startswith("Skipped 5 files that cannot be read: ")
        assert all(name in note for name in bad)
    assert dataset.digest == clean.digest
    np.testing.assert_array_equal(dataset.split("train").images, clean.split("train").images)
    shutil.copy(tmp_path / "photos/cat/0.png", tmp_path / "photos/cat/zero.jpg")
    assert count(load(tmp_path, skip_unreadable=True)) == 21


def test_skip_unreadable_does_not_lose_a_class(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", "dog")
    fill(tmp_path / "photos", "fox", count=1)
    (tmp_path / "photos/fox/0.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no image of class fox in the train split"):
        load(tmp_path, skip_unreadable=True)


def test_one_image_in_a_class_is_refused_with_the_smallest_number_that_works(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "cat", "dog", count=1)
    with pytest.raises(UsageError, match=r"class cat has 1 image.*at least 3 images, or 2 with --val-size 0"):
        load(tmp_path)
    fill(tmp_path / "photos", "cat", "dog", count=3)
    assert summarize(load(tmp_path), config(tmp_path)).to_numpy().tolist() == [[1, 1, 1]] * 2
    for split in ("train", "val"):
        fill(tmp_path / "divided" / split, "cat", "dog", count=1)
    with pytest.raises(UsageError, match=r"class cat has 1 image.*at least 2 images: add images"):
        load(tmp_path, data_dir=tmp_path / "divided")


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", RED, RED),
        ("L", 100, (100,) * 3),
        ("I;16", 0x8000, (128,) * 3),
        ("RGBA", (0, 0, 0, 0), (255,) * 3),
    ],
)
def test_tiff_is_read(tmp_path: Path, mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    fill(tmp_path / "photos/train", "cat", "dog", count=1)
    fill(tmp_path / "photos/test", "cat", "dog", count=1)
    Image.new(mode, (60, 40), colour).save(tmp_path / "photos/train/cat/0.tif")
    (tmp_path / "photos/train/cat/0.png").unlink()
    assert (load(tmp_path).split("train").images[0] == expected).all()


def as_avif(image: Image.Image) -> bytes:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    file = io.BytesIO()
    image.save(file, "AVIF", quality=95)
    return file.getvalue()


def as_heic(image: Image.Image) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    file = io.BytesIO()
    image.save(file, "HEIF", quality=95)
    return file.getvalue()


def as_mpo(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[Image.new("RGB", image.size)], quality=95)
    return file.getvalue()


@pytest.mark.parametrize(("encode", "suffix"), [(as_avif, "avif"), (as_heic, "HEIC"), (as_mpo, "mpo")])
def test_phone_photos_are_read(tmp_path: Path, encode: Any, suffix: str) -> None:
    fill(tmp_path / "photos/train", "cat", "dog", count=1)
    fill(tmp_path / "photos/test", "cat", "dog", count=1)
    (tmp_path / f"photos/train/cat/0.{suffix}").write_bytes(encode(Image.new("RGB", (80, 60), (200, 60, 30))))
    (tmp_path / "photos/train/cat/0.png").unlink()
    pixels = load(tmp_path).split("train").images[0].astype(int)
    assert np.abs(pixels - (200, 60, 30)).max() < 12


def test_files_above_the_limits_of_a_request_are_used(tmp_path: Path) -> None:
    fill(tmp_path / "photos/train", "cat", "dog", count=1)
    fill(tmp_path / "photos/test", "cat", "dog", count=1)
    photo = Image.new("L", (9_000, 6_000), 90)
    photo.paste(200, (0, 3_000, 9_000, 6_000))
    photo.save(tmp_path / "photos/train/cat/0.jpg", quality=60)
    photo.save(tmp_path / "photos/train/cat/1.png", compress_level=1)
    with (tmp_path / "photos/train/cat/2.png").open("wb") as scan:  # 17 MB
        Image.new("RGB", (64, 64), RED).save(scan, "PNG")
        scan.write(bytes(17 * 2**20))
    images = load(tmp_path).split("train").images.astype(int)
    for image in images[[0, 2]]:  # 0.png is small
        assert np.abs(image[:14] - 90).max() < 10
        assert np.abs(image[-14:] - 200).max() < 10
    assert (images[3] == RED).all()

"""The folder of images that clients sent."""

import hashlib
from pathlib import Path

import pytest

from cifar_mlflow.errors import CifarError
from serving.monitoring.images import ImageFolder
from tests.serving.monitoring.request_logs import wait_until


def open_folder(path: Path) -> ImageFolder:
    return ImageFolder(path, days=1000, mb=1000)


def test_images_are_named_by_their_digest(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "images")
    images = [b"one", b"two", b"two"]
    for data in images:
        folder.put(hashlib.sha256(data).hexdigest(), "JPEG", data)
    folder.put("../../elsewhere", "JPEG", b"")
    folder.close()
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == {
        f"{hashlib.sha256(data).hexdigest()}.jpg": data for data in images
    }
    assert (folder.dropped, folder.failing) == (1, None)


def test_a_folder_that_cannot_be_written_is_reported_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CifarError, match="file/images: cannot be written"):
        open_folder(tmp_path / "file" / "images")


def test_a_failure_ends_with_the_next_image_that_is_stored(tmp_path: Path) -> None:
    path, away = tmp_path / "images", tmp_path / "away"
    folder = open_folder(path)
    known = "ab" * 32
    folder.put(known, "JPEG", b"known")
    wait_until((path / f"{known}.jpg").exists, "the image is stored")
    path.rename(away)
    folder.put("cd" * 32, "JPEG", b"new")
    wait_until(lambda: folder.failing is not None, "the failure is reported")
    away.rename(path)
    folder.put(known, "JPEG", b"known")
    wait_until(lambda: folder.failing is None, "the failure is over")
    folder.close()
    assert folder.dropped == 1


def test_a_failure_ends_without_another_image_when_the_folder_is_back(tmp_path: Path) -> None:
    path, away = tmp_path / "images", tmp_path / "away"
    folder = open_folder(path)
    path.rename(away)
    folder.put("ab" * 32, "JPEG", b"new")
    wait_until(lambda: folder.failing is not None, "the failure is reported")
    away.rename(path)
    wait_until(lambda: folder.failing is None, "the failure is over")
    folder.close()
    assert list(path.iterdir()) == []


def test_images_that_do_not_fit_into_the_queue_are_counted(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "images")
    folder.put("ab" * 32, "PNG", bytes(33_000_000))
    folder.close()
    assert folder.dropped == 1
    assert list((tmp_path / "images").iterdir()) == []

"""Retention: rows and images that are too old or too many are deleted."""

import hashlib
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from serving.monitoring.images import ImageFolder
from tests.serving.monitoring.request_logs import open_log, record, rows, wait_until

DAY = 86_400


def put(url: str, times: list[float]) -> None:
    log = open_log(url)
    for item, arrival in enumerate(times):
        log.put(record("r", item=item, time=arrival, label="cat"))
    log.close()
    assert log.dropped == 0


def test_old_rows_are_deleted(url: str) -> None:
    now = time.time()
    put(url, [now - 3 * DAY] * 2500 + [now - DAY / 2] * 700)
    log = open_log(url, retention_days=1)
    wait_until(lambda: len(rows(url)) == 700, "the old rows are gone")
    log.put(record("new"))
    log.close()
    table = rows(url)
    assert len(table) == 701
    assert table["time"].min() > now - DAY


def test_the_newest_rows_are_kept(url: str) -> None:
    put(url, [time.time()] * 3000)
    log = open_log(url, retention_rows=1200)
    wait_until(lambda: len(rows(url)) == 1200, "the oldest rows are gone")
    log.close()
    assert sorted(rows(url)["item"]) == list(range(1800, 3000))


def test_a_file_becomes_smaller_when_rows_are_deleted(sqlite_url: str, tmp_path: Path) -> None:
    put(sqlite_url, [time.time()] * 6000)
    before = pages(tmp_path / "requests.db")
    log = open_log(sqlite_url, retention_rows=1000)
    wait_until(lambda: pages(tmp_path / "requests.db") < before / 4, "the space is returned to the disk")
    log.close()


def pages(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        count: int = connection.execute("PRAGMA page_count").fetchone()[0]
        return count


def test_several_logs_may_delete_at_once(url: str) -> None:
    now = time.time()
    put(url, [now - 3 * DAY] * 3000 + [now] * 10)
    logs = [open_log(url, retention_days=1) for _ in range(3)]
    wait_until(lambda: len(rows(url)) == 10, "the old rows are gone")
    assert [log.failing for log in logs] == [None] * 3
    for log in logs:
        log.close()


@pytest.mark.parametrize(("days", "mb", "kept"), [(2.5, 1000, 2), (1000, 0.0025, 2), (1000, 1000, 4)])
def test_outdated_images_are_deleted(tmp_path: Path, days: float, mb: float, kept: int) -> None:
    path = tmp_path / "images"
    images = [bytes([age]) * 1000 for age in range(5)]
    digests = [hashlib.sha256(data).hexdigest() for data in images]
    folder = ImageFolder(path, days=1000, mb=1000)
    for digest, data in zip(digests[1:], images[1:], strict=True):
        folder.put(digest, "PNG", data)
    folder.close()
    for age in range(1, 5):
        modified = time.time() - age * DAY
        os.utime(path / f"{digests[age]}.png", (modified, modified))
    folder = ImageFolder(path, days=days, mb=mb)
    wait_until(lambda: len(list(path.iterdir())) == kept, "the outdated images are gone")
    folder.put(digests[1], "PNG", images[1])  # sent again, so it counts as new
    folder.close()
    assert {file.name for file in path.iterdir()} == {f"{digest}.png" for digest in digests[1 : kept + 1]}
    assert (path / f"{digests[1]}.png").stat().st_mtime > time.time() - DAY / 2


def test_other_files_in_the_folder_of_images_are_kept(tmp_path: Path) -> None:
    """The folder may have held the user's own photos before."""
    path = tmp_path / "photos"
    (path / "album").mkdir(parents=True)
    outdated = f"{hashlib.sha256(b'old').hexdigest()}.png"
    unfinished = f".{'ab' * 16}.tmp"
    others = {"holiday.jpg", "notes.txt", outdated.replace(".png", ".txt")}
    for name in (outdated, unfinished, *others):
        (path / name).write_bytes(b"old")
        os.utime(path / name, (0, 0))
    folder = ImageFolder(path, days=1, mb=1000)
    wait_until(lambda: not (path / outdated).exists(), "the outdated image is gone")
    folder.close()
    assert {file.name for file in path.iterdir()} == {"album", *others}

"""What is too old or too much is forgotten."""

import hashlib
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.serving.monitoring.request_logs import open_log, record, rows, wait_until

DAY = 86_400


def put(url: str, times: list[float]) -> None:
    log = open_log(url)
    for i, when in enumerate(times):
        digest = hashlib.sha256(str(i).encode()).hexdigest()
        log.put(record(digest[:32], item=i, time=when, image_sha256=digest, label="cat", confidence=0.5))
    log.close()
    assert log.dropped == 0


def test_old_rows_are_forgotten(url: str) -> None:
    now = time.time()
    put(url, [now - 3 * DAY] * 2500 + [now - DAY / 2] * 700)
    log = open_log(url, retention_days=1)
    wait_until(lambda: len(rows(url)) == 700, "the old ones are gone")
    log.put(record("new"))
    log.close()
    table = rows(url)
    assert len(table) == 701
    assert table["time"].min() > now - DAY


def test_a_file_is_kept_within_its_size(sqlite_url: str, tmp_path: Path) -> None:
    put(sqlite_url, [time.time() - 20_000 + i for i in range(15_000)])
    file = tmp_path / "requests.db"
    fitting = 15_000 * 2e6 / file.stat().st_size
    assert fitting < 10_000
    log = open_log(sqlite_url, retention_mb=2)
    wait_until(lambda: pages(file) * 4096 <= 2e6, "the oldest are deleted, and their room is given back")
    log.close()
    assert file.stat().st_size <= 2e6
    items = list(rows(sqlite_url)["item"])
    assert items == list(range(15_000 - len(items), 15_000))
    assert 0.8 * fitting < len(items)


def pages(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        count: int = connection.execute("PRAGMA page_count").fetchone()[0]
        return count


def test_a_table_is_kept_within_its_size(postgres_url: str) -> None:
    put(postgres_url, [time.time() - 20_000 + i for i in range(15_000)])
    log = open_log(postgres_url, retention_mb=2)
    size = 2e6
    with sa.create_engine(
        postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    ).connect() as connection:

        def bytes_in_use() -> int:
            connection.exec_driver_sql("VACUUM FULL request_log")  # else the dead rows count
            return int(
                connection.exec_driver_sql("SELECT pg_total_relation_size('request_log')").scalar_one()
            )

        assert bytes_in_use() > 2 * size
        wait_until(lambda: bytes_in_use() < 1.2 * size, "the oldest are deleted")
        log.close()
        assert bytes_in_use() > 0.7 * size
    items = list(rows(postgres_url)["item"])
    assert items == list(range(15_000 - len(items), 15_000))


def test_several_logs_may_forget_at_once(url: str) -> None:
    now = time.time()
    put(url, [now - 3 * DAY] * 3000 + [now] * 10)
    logs = [open_log(url, retention_days=1) for _ in range(3)]
    wait_until(lambda: len(rows(url)) == 10, "the old ones are gone")
    assert [log.failing for log in logs] == [None] * 3
    for log in logs:
        log.close()


@pytest.mark.parametrize(("days", "mb", "left"), [(2.5, 1000, 2), (1000, 0.0025, 2), (1000, 1000, 4)])
def test_pictures_are_forgotten_too(
    sqlite_url: str, tmp_path: Path, days: float, mb: float, left: int
) -> None:
    folder = tmp_path / "pictures"
    pictures = [bytes([age]) * 1000 for age in range(5)]
    names = [f"{hashlib.sha256(data).hexdigest()}.png" for data in pictures]
    log = open_log(sqlite_url, images_dir=folder)
    for data, name in zip(pictures[1:], names[1:], strict=True):
        log.put_image(name.removesuffix(".png"), "PNG", data)
    log.close()
    for age in range(1, 5):
        os.utime(folder / names[age], (when := time.time() - age * DAY, when))
    log = open_log(sqlite_url, images_dir=folder, retention_days=days, retention_mb=mb)
    wait_until(lambda: len(list(folder.iterdir())) == left, "the old ones are gone")
    log.put_image(names[1].removesuffix(".png"), "PNG", pictures[1])  # came again: counts as new
    log.close()
    assert {path.name for path in folder.iterdir()} == set(names[1 : left + 1])
    assert (folder / names[1]).stat().st_mtime > time.time() - DAY / 2

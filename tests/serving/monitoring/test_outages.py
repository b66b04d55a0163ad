"""The request log when processes are killed and databases fail."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from cifar_mlflow.errors import CifarError
from tests.end_to_end.postgres import Postgres
from tests.serving.monitoring.request_logs import open_log, record, rows, wait_until

pytestmark = pytest.mark.slow

PROCESS = (sys.executable, "-m", "tests.serving.monitoring.request_logs")
PAGES_WITH_ROOTS = 8 * 4096  # the schema, and the first page of each table and index


@pytest.fixture
def start() -> Iterator[list[subprocess.Popen[str]]]:
    """Return a list for processes; kill them at the end of the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def run(*arguments: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([*PROCESS, *arguments], stdin=pipe, stdout=pipe, text=True)


def test_a_killed_process_loses_no_row_that_was_written(url: str, start: list[subprocess.Popen[str]]) -> None:
    open_log(url).close()
    start.append(process := run("put_until_killed", url))
    wait_until(lambda: len(rows(url)) >= 300, "rows are written while others are queued")
    seen = len(rows(url))
    process.kill()
    process.wait()
    written = rows(url)["request_id"]
    assert len(written) >= seen
    assert list(written) == [f"row-{i}" for i in range(len(written))]  # no gaps
    log = open_log(url)  # the log can be continued
    log.put(record("later"))
    log.close()
    assert len(rows(url)) == len(written) + 1


def test_processes_that_start_at_the_same_time_share_a_database(
    url: str, start: list[subprocess.Popen[str]]
) -> None:
    start += [run("put_many", url, f"process{i}", "1500") for i in range(4)]
    assert [process.wait(300) for process in start] == [0, 0, 0, 0]
    assert set(rows(url)["request_id"]) == {f"process{i}-{n}" for i in range(4) for n in range(1500)}


def test_feedback_waits_for_an_answer_that_another_process_has_yet_to_write(
    url: str, start: list[subprocess.Popen[str]]
) -> None:
    log = open_log(url, flush_seconds=5)
    start.append(process := run("put_one", url, "theirs"))
    assert process.stdout
    assert process.stdout.readline() == "put\n"
    assert log.feedback("theirs", 0, correct=True, label=None)
    log.close()
    assert list(rows(url)["feedback_correct"]) == [True]


def test_rows_wait_for_a_locked_file(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url)
    other = sqlite3.connect(tmp_path / "requests.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    log.put(record("a"))
    wait_until(lambda: log.failing is not None, "it is reported")
    assert log.failing == "database is locked"
    log.put(record("b"))
    assert log.feedback("a", 0, correct=True, label=None)
    assert log.feedback("unknown", 0, correct=True, label=None)  # cannot be checked now
    assert len(rows(sqlite_url)) == 0
    other.execute("ROLLBACK")
    wait_until(lambda: log.failing is None, "the log is written again")
    log.close()
    table = rows(sqlite_url)
    assert list(table["request_id"]) == ["a", "b"]
    assert list(table["feedback_correct"].fillna(False)) == [True, False]
    assert log.dropped == 0


def test_rows_wait_for_a_server_that_comes_back(postgres: Postgres, postgres_url: str) -> None:
    log = open_log(postgres_url)
    log.put(record("a"))
    wait_until(lambda: len(rows(postgres_url)) == 1, "the first row")
    postgres.stop()
    try:
        log.put(record("b"))
        wait_until(lambda: log.failing is not None, "it is reported")
        assert log.feedback("b", 0, correct=True, label=None)
        log.put(record("c"))
    finally:
        postgres.start()
    wait_until(lambda: log.failing is None, "the log is written again")
    log.close()
    assert list(rows(postgres_url)["request_id"]) == ["a", "b", "c"]
    assert log.dropped == 0


def test_rows_wait_for_a_locked_table(postgres_url: str) -> None:
    log = open_log(postgres_url)
    with sa.create_engine(postgres_url, poolclass=sa.NullPool).connect() as other:
        other.execute(sa.text("LOCK TABLE request_log IN ACCESS EXCLUSIVE MODE"))
        log.put(record("a"))
        wait_until(lambda: log.failing is not None, "the failure is reported")
    wait_until(lambda: log.failing is None, "the log is written again")
    log.close()
    assert list(rows(postgres_url)["request_id"]) == ["a"]


@pytest.mark.thorough
def test_a_server_that_hangs_blocks_neither_feedback_nor_the_end(postgres_url: str) -> None:
    log = open_log(postgres_url)
    log.put(record("a"))
    wait_until(lambda: len(rows(postgres_url)) == 1, "the first row")
    # Without a transaction, in which the list would not change.
    engine = sa.create_engine(postgres_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as other:
        backends = sa.text(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )
        # The process of a connection that has just been closed may still exist.
        wait_until(lambda: len(other.scalars(backends).all()) == 1, "only the log is connected")
        (pid,) = other.scalars(backends)
    os.kill(pid, signal.SIGSTOP)
    try:
        log.put(record("b"))
        wait_until(lambda: log.failing == "the database does not answer", "the failure is reported")
        assert log.feedback("a", 0, correct=True, label=None)
        log.close()
        assert log.dropped == 2
    finally:
        os.kill(pid, signal.SIGCONT)


def test_rows_that_do_not_fit_into_the_queue_are_counted(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url)
    other = sqlite3.connect(tmp_path / "requests.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for i in range(25_000):
        log.put(record(f"row-{i}"))
    assert 4_000 < log.dropped <= 5_000  # a first batch may have left the queue
    other.execute("ROLLBACK")
    wait_until(lambda: len(rows(sqlite_url)) == 25_000 - log.dropped, "the others are written")
    log.close()
    assert list(rows(sqlite_url)["request_id"].iloc[[0, 19_999]]) == ["row-0", "row-19999"]


@pytest.mark.thorough
def test_the_end_does_not_wait_forever_for_a_locked_file(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url)
    other = sqlite3.connect(tmp_path / "requests.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    log.put(record("a"))
    log.close()
    assert log.dropped == 1
    other.close()


def test_rows_wait_for_room_on_a_full_disk(sqlite_url: str, start: list[subprocess.Popen[str]]) -> None:
    start.append(process := run("put_on_a_full_disk", sqlite_url))
    output, _ = process.communicate(timeout=300)
    count, reason = output.strip().split(" ", 1)
    assert re.search(r"disk", reason)
    assert len(rows(sqlite_url)) == int(count)


def damaged(url: str, file: Path, kept: int) -> None:
    """Write a log, and overwrite all but its first bytes."""
    log = open_log(url)
    for i in range(1000):
        log.put(record(f"row-{i}"))
    log.close()
    content = file.read_bytes()
    file.write_bytes(content[:kept] + b"\xa5" * (len(content) - kept))


@pytest.mark.parametrize("kept", [0, 100])
def test_a_damaged_file_is_reported_at_the_start(sqlite_url: str, tmp_path: Path, kept: int) -> None:
    damaged(sqlite_url, tmp_path / "requests.db", kept)
    message = r"requests.db cannot be used: .*(not a database|malformed).*; move the file away"
    with pytest.raises(CifarError, match=message):
        open_log(sqlite_url)
    with pytest.raises(CifarError, match=message):
        rows(sqlite_url)


def test_rows_wait_for_a_new_file_after_the_file_was_damaged(sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "requests.db"
    damaged(sqlite_url, file, kept=PAGES_WITH_ROOTS)
    log = open_log(sqlite_url)
    log.put(record("a"))
    wait_until(lambda: log.failing is not None, "it is reported")
    assert log.failing == "database disk image is malformed"
    for part in tmp_path.glob("requests.db*"):
        part.rename(tmp_path / f"damaged-{part.name}")
    wait_until(lambda: log.failing is None, "a new file")
    log.close()
    assert list(rows(sqlite_url)["request_id"]) == ["a"]


def test_a_file_that_was_removed_is_created_again(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url)
    log.put(record("a"))
    wait_until(lambda: len(rows(sqlite_url)) == 1, "the first row")
    for file in tmp_path.glob("requests.db*"):
        file.unlink()
    log.put(record("b"))
    wait_until((tmp_path / "requests.db").exists, "a new file")
    log.close()
    assert list(rows(sqlite_url)["request_id"]) == ["b"]
    assert log.dropped == 0


def test_a_file_that_is_moved_away_has_all_its_rows(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url)
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    for number in range(400):
        log.put(record(f"old-{number}"))
    wait_until(lambda: len(rows(sqlite_url)) == 400, "the rows")
    file.rename(tmp_path / "moved.db")
    log.put(record("new"))
    log.close()
    assert list(rows(sqlite_url)["request_id"]) == ["new"]
    assert len(rows(f"sqlite:///{tmp_path / 'moved.db'}")) == 400

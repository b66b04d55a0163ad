"""The request log as the service uses it, on SQLite and on PostgreSQL."""

import dataclasses
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from cifar_mlflow.errors import CifarError, UsageError
from serving.monitoring.database import Database
from serving.monitoring.records import Record
from tests.serving.monitoring.request_logs import open_log, record, rows, wait_until


def test_a_row_is_read_back_as_it_was_written(url: str) -> None:
    full = record(
        "a",
        item=3,
        time=1_700_000_000.123456,
        status=422,
        error_code="too_large",
        model_version="cifar10/3",
        image_sha256="ab" * 32,
        image_bytes=5_000_000_000,
        image_format="PNG",
        label="cat",
        confidence=0.123456789,
        uncertain=False,
        ood=-3.5,
        brightness=0.5,
        contrast=0.25,
        decode_ms=0.5,
        score_ms=1.5,
    )
    sparse = record("b")
    log = open_log(url)
    log.put(full)
    log.put(sparse)
    log.close()
    table = rows(url)
    for row, expected in zip((0, 1), (full, sparse), strict=True):
        known = {name: value for name, value in dataclasses.asdict(expected).items() if value is not None}
        assert table.iloc[row].dropna().to_dict() == known


def test_a_row_identifies_neither_the_client_nor_the_content_of_the_image(url: str) -> None:
    open_log(url).close()
    columns = {
        column["name"]
        for column in sa.inspect(sa.create_engine(url, poolclass=sa.NullPool)).get_columns("request_log")
    }
    feedback = {"feedback_time", "feedback_correct", "feedback_label"}
    assert columns == {field.name for field in dataclasses.fields(Record)} | feedback | {"id"}


def test_a_log_of_an_earlier_version_is_read_and_continued(url: str) -> None:
    """The statements are those of the version that still stored a format number."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    is_sqlite = engine.dialect.name == "sqlite"
    number = "INTEGER NOT NULL" if is_sqlite else "BIGSERIAL NOT NULL"
    real = "DOUBLE" if is_sqlite else "DOUBLE PRECISION"
    with engine.begin() as connection:
        for statement in (
            f"CREATE TABLE request_log (id {number}, request_id TEXT NOT NULL, item INTEGER NOT NULL, "
            f"time {real} NOT NULL, route TEXT NOT NULL, status INTEGER NOT NULL, error_code TEXT, "
            "model_version TEXT, image_sha256 TEXT, image_bytes BIGINT, image_format TEXT, label TEXT, "
            f"confidence {real}, uncertain BOOLEAN, ood {real}, brightness {real}, contrast {real}, "
            f"decode_ms {real}, score_ms {real}, total_ms {real} NOT NULL, feedback_time {real}, "
            "feedback_correct BOOLEAN, feedback_label TEXT, PRIMARY KEY (id), "
            "UNIQUE (request_id, item, time))",
            "CREATE INDEX ix_request_log_time ON request_log (time)",
            "CREATE INDEX request_log_feedback ON request_log (feedback_time) "
            "WHERE feedback_time IS NOT NULL",
            "CREATE TABLE request_log_version (version INTEGER NOT NULL, PRIMARY KEY (version))",
            "INSERT INTO request_log_version VALUES (1)",
            "INSERT INTO request_log (request_id, item, time, route, status, label, total_ms) "
            "VALUES ('old', 0, 1.5, '/predict', 200, 'cat', 2.5)",
        ):
            connection.exec_driver_sql(statement)
    assert list(rows(url)["request_id"]) == ["old"]
    log = open_log(url)
    log.put(record("new"))
    assert log.feedback("old", 0, correct=True, label=None)
    log.close()
    table = rows(url)
    assert list(table["request_id"]) == ["old", "new"]
    assert list(table["feedback_correct"].fillna(False)) == [True, False]


def test_rows_are_written_while_the_service_runs(url: str) -> None:
    log = open_log(url)
    log.put(record("a"))
    wait_until(lambda: len(rows(url)) == 1, "the row is written")
    log.close()


def test_a_row_that_the_database_rejects_is_counted_and_the_others_are_written(url: str) -> None:
    log = open_log(url)
    for request_id in ("a", "half a character: \ud800", "b"):
        log.put(record(request_id))
    log.close()
    assert list(rows(url)["request_id"]) == ["a", "b"]
    assert (log.dropped, log.failing) == (1, None)


def test_a_row_that_is_written_again_is_stored_once(url: str) -> None:
    """This happens when the connection breaks during a commit."""
    log = open_log(url)
    twice = record("a")
    log.put(twice)
    wait_until(lambda: len(rows(url)) == 1, "the row is written")
    log.put(twice)
    log.put(record("b"))
    log.close()
    assert list(rows(url)["request_id"]) == ["a", "b"]
    assert log.dropped == 0


def test_rows_after_the_end_are_counted_as_dropped(url: str) -> None:
    log = open_log(url)
    log.close()
    log.put(record("a"))
    log.close()
    assert log.dropped == 1


def test_the_latest_feedback_counts(url: str) -> None:
    log = open_log(url)
    log.put(record("a", label="cat"))
    log.put(record("a", item=1, label="dog"))
    wait_until(lambda: len(rows(url)) == 2, "the rows are written")
    assert log.feedback("a", 0, correct=True, label=None)
    assert log.feedback("a", 0, correct=False, label="dog")
    log.close()
    log = open_log(url)
    assert log.feedback("a", 1, correct=True, label=None)
    log.close()
    table = rows(url)
    assert list(table["feedback_correct"]) == [False, True]
    assert table.loc[0, "feedback_label"] == "dog"
    assert table["feedback_time"].between(time.time() - 600, time.time()).all()


def test_feedback_is_accepted_for_an_answer_that_is_still_queued(sqlite_url: str) -> None:
    log = open_log(sqlite_url, flush_seconds=600)
    log.put(record("a", label="cat"))
    assert log.feedback("a", 0, correct=True, label=None)
    assert len(rows(sqlite_url)) == 0
    log.close()
    assert list(rows(sqlite_url)["feedback_correct"]) == [True]


@pytest.mark.parametrize(("request_id", "item"), [("b", 0), ("a", 1), ("\0", 0), ("a", 2**70)])
def test_feedback_on_an_unknown_answer_is_refused(url: str, request_id: str, item: int) -> None:
    log = open_log(url)
    log.put(record("a"))
    assert not log.feedback(request_id, item, correct=True, label=None)
    log.close()
    assert rows(url)["feedback_time"].isna().all()
    assert log.dropped == 0


def test_feedback_belongs_to_the_last_answer_with_its_id(url: str) -> None:
    log = open_log(url)
    log.put(record("a", time=1.0))
    log.put(record("a", time=2.0))
    assert log.feedback("a", 0, correct=True, label=None)
    log.close()
    assert list(rows(url)["feedback_correct"].notna()) == [False, True]


def test_requests_and_feedback_are_read_by_their_own_times(url: str) -> None:
    log = open_log(url)
    for second in range(5):
        log.put(record(f"at-{second}", time=float(second)))
    log.feedback("at-0", 0, correct=True, label=None)
    log.close()
    records, feedback = Database(url).read(1.0, 3.0)
    assert list(records["request_id"]) == ["at-1", "at-2"]
    assert feedback.empty
    records, feedback = Database(url).read(time.time() - 600, time.time() + 1)
    assert records.empty
    assert list(feedback["request_id"]) == ["at-0"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("requests.db", "requests.db is not a database URL; for example sqlite:///requests.db"),
        ("mysql://me:secret@host/x", r"SQLite or PostgreSQL, not mysql \(mysql://me:\*\*\*@host/x\)"),
        ("sqlite://", "names no file"),
        ("postgresql+nothing://host/x", "needs a driver"),
    ],
)
def test_a_url_that_cannot_be_used_is_reported(wrong: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_log(wrong)


@pytest.mark.parametrize(
    "url_with_password",
    [
        "postgresql://me:secret@127.0.0.1:9/x",
        "postgresql://me@127.0.0.1:9/x?password=secret",
        "postgresql://me:p@secret@127.0.0.1:9/x",
        "postgresql://me:secret@127.0.0.1:port/x",
        "postgresql://me:p?secret=1@127.0.0.1:9/x",
        "postgresql://me:secret@127.0.0.1:9/x?connect_timeout=secret",
        "postgresql:/me:secret@127.0.0.1:9/x",
        "mysql://me@host/x?password=secret",
        "sqlite://me:secret@/x.db",
    ],
)
def test_a_password_is_in_no_message(url_with_password: str) -> None:
    with pytest.raises(CifarError) as raised:
        open_log(url_with_password)
    assert "secret" not in str(raised.value)
    with pytest.raises(CifarError) as raised:
        rows(url_with_password)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("unreachable", "message"),
    [
        ("sqlite:////no/such/folder/requests.db", "unable to open database file"),
        ("postgresql://me:secret@127.0.0.1:9/x", r"postgresql://me:\*\*\*@127.0.0.1:9/x.*refused"),
    ],
)
def test_a_database_that_cannot_be_reached_is_reported_at_the_start(unreachable: str, message: str) -> None:
    with pytest.raises(CifarError, match=message):
        open_log(unreachable)


def test_a_table_of_another_format_is_reported(url: str) -> None:
    open_log(url).close()
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("ALTER TABLE request_log RENAME COLUMN ood TO energy"))
    with pytest.raises(CifarError, match="lacks the columns ood: name another database"):
        open_log(url)
    with pytest.raises(CifarError, match="lacks the columns ood"):
        rows(url)


def test_a_table_of_an_earlier_version_gets_the_new_column(url: str) -> None:
    log = open_log(url)
    log.put(record("old"))
    log.close()
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("ALTER TABLE request_log DROP COLUMN live"))
    assert rows(url)["live"].isna().tolist() == [True]  # reading changes nothing
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        assert "live" not in {column["name"] for column in sa.inspect(connection).get_columns("request_log")}

    logs = [open_log(url) for _ in range(2)]
    logs[0].put(record("photo"))
    logs[1].put(record("frame", live=True))
    for log in logs:
        log.close()
    assert rows(url).set_index("request_id")["live"].fillna(False).to_dict() == {
        "old": False, "photo": False, "frame": True,
    }  # fmt: skip


def test_a_file_of_another_program_is_not_changed(sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "requests.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(CifarError, match=r"has tables of another program \(runs\)"):
        open_log(sqlite_url)
    with pytest.raises(CifarError, match="is not a request log"):
        rows(sqlite_url)
    assert file.read_bytes() == before


def test_reading_creates_no_log(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(CifarError, match="there is no request log"):
        rows(sqlite_url)
    assert list(tmp_path.iterdir()) == []

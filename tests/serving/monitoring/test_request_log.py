"""The request log as the service uses it, on SQLite and on PostgreSQL."""

import dataclasses
import hashlib
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from cifar_mlflow.errors import CifarError, UsageError
from serving.monitoring.read_log import read_log
from serving.monitoring.records import Record
from tests.serving.monitoring.request_logs import open_log, record, rows, wait_until


def test_a_row_comes_back_as_it_was_put(url: str) -> None:
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
    log = open_log(url)
    log.put(full)
    log.put(record("b"))
    log.close()
    table = rows(url)
    assert table.iloc[0].dropna().to_dict() == dataclasses.asdict(full)
    assert table.iloc[1].dropna().to_dict() == {
        name: value for name, value in dataclasses.asdict(record("b")).items() if value is not None
    } | {"time": table.iloc[1]["time"]}


def test_a_row_says_nothing_of_the_client_nor_of_the_picture_but_its_digest(url: str) -> None:
    open_log(url).close()
    columns = {
        column["name"]
        for column in sa.inspect(sa.create_engine(url, poolclass=sa.NullPool)).get_columns("request_log")
    }
    said = {"feedback_time", "feedback_correct", "feedback_label"}
    assert columns == {field.name for field in dataclasses.fields(Record)} | said | {"id"}


def test_numbers_of_numpy_are_numbers_in_the_database(url: str) -> None:
    log = open_log(url)
    log.put(record("a", confidence=np.float32(0.5), uncertain=np.bool_(True), image_bytes=np.int64(7)))
    log.close()
    row = rows(url).iloc[0]
    assert (row["confidence"], row["uncertain"], row["image_bytes"]) == (0.5, True, 7)


def test_rows_are_written_while_the_service_goes_on(url: str) -> None:
    log = open_log(url)
    log.put(record("a"))
    wait_until(lambda: len(rows(url)) == 1, "the row is written")
    log.close()


def test_a_row_that_the_database_refuses_is_counted_and_the_others_are_written(url: str) -> None:
    log = open_log(url)
    for request_id in ("a", "half a character: \ud800", "b"):
        log.put(record(request_id))
    log.close()
    assert list(rows(url)["request_id"]) == ["a", "b"]
    assert (log.dropped, log.failing) == (1, None)


def test_a_row_that_is_written_twice_is_there_once(url: str) -> None:
    """As after a connection that broke while the commit was under way."""
    log = open_log(url)
    twice = record("a")
    log.put(twice)
    wait_until(lambda: len(rows(url)) == 1, "the row is written")
    log.put(twice)
    log.put(record("b"))
    log.close()
    assert list(rows(url)["request_id"]) == ["a", "b"]
    assert log.dropped == 0


def test_what_is_put_after_the_end_is_counted(url: str) -> None:
    log = open_log(url)
    log.close()
    log.put(record("a"))
    log.close()
    assert log.dropped == 1


def test_the_latest_feedback_counts(url: str) -> None:
    log = open_log(url)
    log.put(record("a", label="cat"))
    log.put(record("a", item=1, label="dog"))
    assert log.feedback("a", 0, correct=True, label=None)  # not written yet
    wait_until(lambda: len(rows(url)) == 2, "the rows are written")
    assert log.feedback("a", 0, correct=False, label="dog")
    log.close()
    log = open_log(url)
    assert log.feedback("a", 1, correct=True, label=None)
    log.close()
    table = rows(url)
    assert list(table["feedback_correct"]) == [False, True]
    assert table.loc[0, "feedback_label"] == "dog"
    assert table["feedback_time"].between(time.time() - 600, time.time()).all()


@pytest.mark.parametrize(("request_id", "item"), [("b", 0), ("a", 1), ("\0", 0), ("a", 2**70)])
def test_feedback_on_what_was_never_answered_is_refused(url: str, request_id: str, item: int) -> None:
    log = open_log(url)
    log.put(record("a"))
    assert not log.feedback(request_id, item, correct=True, label=None)
    log.close()
    assert rows(url)["feedback_time"].isna().all()
    assert log.dropped == 0


def test_feedback_belongs_to_the_last_answer_of_an_id(url: str) -> None:
    log = open_log(url)
    log.put(record("a", time=1.0))
    log.put(record("a", time=2.0))
    assert log.feedback("a", 0, correct=True, label=None)
    log.close()
    assert list(rows(url)["feedback_correct"].notna()) == [False, True]


def test_a_report_reads_the_requests_and_the_feedback_of_its_time(url: str) -> None:
    log = open_log(url)
    for second in range(5):
        log.put(record(f"at-{second}", time=float(second)))
    log.feedback("at-0", 0, correct=True, label=None)
    log.close()
    records, feedback = read_log(url, 1.0, 3.0)
    assert list(records["request_id"]) == ["at-1", "at-2"]
    assert feedback.empty
    records, feedback = read_log(url, time.time() - 600, time.time() + 1)
    assert records.empty
    assert list(feedback["request_id"]) == ["at-0"]


def test_pictures_are_kept_under_the_name_of_their_content(sqlite_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    log = open_log(sqlite_url, images_dir=folder)
    pictures = [b"one", b"two", b"two"]
    for data in pictures:
        log.put_image(hashlib.sha256(data).hexdigest(), "JPEG", data)
    log.put_image("../../elsewhere", "JPEG", b"")
    log.close()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        f"{hashlib.sha256(data).hexdigest()}.jpg": data for data in pictures
    }
    assert (log.dropped, log.failing) == (1, None)


def test_no_picture_is_kept_unless_asked_for(sqlite_url: str, tmp_path: Path) -> None:
    log = open_log(sqlite_url)
    log.put_image("ab" * 32, "PNG", b"picture of somebody")
    log.close()
    assert [path.name for path in tmp_path.iterdir() if b"somebody" in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("requests.db", "requests.db is not a database URL; for example sqlite:///requests.db"),
        ("mysql://me:secret@host/x", r"SQLite or PostgreSQL, not mysql \(mysql://me:\*\*\*@host/x\)"),
        ("sqlite://", "names no file"),
        ("postgresql+nothing://host/x", "needs a driver"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_mistake_of_the_caller(wrong: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_log(wrong)


@pytest.mark.parametrize(
    ("unreachable", "message"),
    [
        ("sqlite:////no/such/folder/requests.db", "unable to open database file"),
        ("postgresql://me:secret@127.0.0.1:9/x", r"postgresql://me:\*\*\*@127.0.0.1:9/x.*refused"),
    ],
)
def test_a_database_that_cannot_be_reached_is_said_at_the_start(unreachable: str, message: str) -> None:
    with pytest.raises(CifarError, match=message) as raised:
        open_log(unreachable)
    assert "secret" not in str(raised.value)


def test_a_format_that_is_not_known_is_refused(url: str) -> None:
    open_log(url).close()
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("UPDATE request_log_version SET version = 7"))
    with pytest.raises(CifarError, match=r"has format 7, this version of cifar-mlflow knows 1"):
        open_log(url)
    with pytest.raises(CifarError, match=r"has format 7"):
        rows(url)


def test_the_file_of_another_program_stays_as_it_is(sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "requests.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(CifarError, match=r"has tables of something else \(runs\)"):
        open_log(sqlite_url)
    with pytest.raises(CifarError, match="is no request log"):
        rows(sqlite_url)
    assert file.read_bytes() == before


def test_a_report_makes_no_log(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(CifarError, match="there is no request log"):
        rows(sqlite_url)
    assert list(tmp_path.iterdir()) == []

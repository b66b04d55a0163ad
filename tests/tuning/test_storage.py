"""The storage of a study: URLs without passwords, locks, outages, and a study that is deleted."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from cifar_mlflow.errors import CifarError, UsageError
from tuning.storage import Storage, StudyLostError, absolute_url, grace_seconds, redact_password


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("sqlite:///optuna.db", "sqlite:///optuna.db"),
        ("postgresql+psycopg://u:secret@host:5/db", "postgresql+psycopg://u:***@host:5/db"),
        (
            "postgresql://u:secr@et:sec/ret@host/db?sslmode=require",
            "postgresql://u:***@host/db?sslmode=require",
        ),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("postgresql://host/db?user=u&password=secret", "postgresql://host/db?user=u&password=***"),
        ("mysql+pymysql://host/db?PASSWD=secret&a=b", "mysql+pymysql://host/db?PASSWD=***&a=b"),
        ("postgresql://u:it's a \"secret@host/db", "postgresql://u:***@host/db"),
        ("no scheme://u:secret@host", "no scheme://u:***@host"),
    ],
)
def test_a_printed_url_has_no_password(url: str, redacted: str) -> None:
    assert redact_password(url) == redacted


def test_an_absolute_url_has_no_password_and_is_valid_in_every_folder(folder: Path) -> None:
    assert absolute_url("postgresql://u:secret@host/db?password=secret") == "postgresql://u@host/db"
    (folder / "optuna.db").touch()
    assert absolute_url("sqlite:///optuna.db") == f"sqlite:///{folder}/optuna.db"


@pytest.mark.parametrize("url", ["nowhere", "postgresql://u:sec@ret@host/db"])
def test_a_malformed_url_is_refused_without_its_password(url: str, folder: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        Storage(url, "a", folder, "cifar10")
    assert "ret" not in str(refusal.value)


def test_the_locks_do_not_depend_on_where_the_password_comes_from(folder: Path) -> None:
    """A search that is continued with PGPASSWORD must see the locks of one with the password in its URL."""
    url = "postgresql+psycopg://u{}@host/db"
    folders = {
        Storage(url.format(password), "a", folder, "cifar10").folder for password in ("", ":one", ":two")
    }
    assert len(folders) == 1


@pytest.mark.parametrize("text", ["abc", "", "-1", "0", "1.5"])
def test_a_wrong_grace_period_is_refused_with_a_reason(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_GRACE", text)
    with pytest.raises(UsageError, match=r"CIFAR_MLFLOW_GRACE must be .* \(got"):
        grace_seconds()


# Outages and losses


@pytest.fixture
def study(folder: Path) -> tuple[Storage, optuna.Study]:
    storage = Storage("sqlite:///optuna.db", "mine", folder / "cache", "cifar10")
    study = optuna.create_study(study_name="mine", storage=storage.open())
    study.enqueue_trial({})
    return storage, study


def test_a_call_is_repeated_until_the_storage_is_back(
    study: tuple[Storage, optuna.Study], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program holds SQLite's lock for longer than SQLite waits."""
    storage, _ = study
    other = sqlite3.connect(folder / "optuna.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    engine = sqlalchemy.create_engine("sqlite:///optuna.db", connect_args={"timeout": 0})

    def write() -> int:
        with engine.begin() as connection:
            return connection.execute(sqlalchemy.text("DELETE FROM trial_values")).rowcount

    class Release(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if other.in_transaction:
                other.execute("ROLLBACK")

    logger = logging.getLogger("cifar_mlflow.tuning")
    release = Release()
    logger.addHandler(release)
    try:
        assert storage.retry_on_outage(write) == 0
    finally:
        logger.removeHandler(release)
    assert "The storage of the study does not answer (" in caplog.text


def test_an_outage_that_lasts_is_an_error_that_says_that_nothing_is_lost(
    study: tuple[Storage, optuna.Study], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0")
    storage, _ = study
    other = sqlite3.connect(folder / "optuna.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    engine = sqlalchemy.create_engine("sqlite:///optuna.db", connect_args={"timeout": 0})
    with pytest.raises(CifarError, match=r"database is locked\nNothing is lost: run the same command"):
        storage.retry_on_outage(lambda: engine.connect().execute(sqlalchemy.text("DELETE FROM trial_values")))
    other.close()


def delete_file(folder: Path) -> None:
    (folder / "optuna.db").unlink()


def move_file(folder: Path) -> None:
    (folder / "optuna.db").rename(folder / "elsewhere.db")


def empty_file(folder: Path) -> None:
    (folder / "optuna.db").write_bytes(b"")


def overwrite_file(folder: Path) -> None:
    (folder / "optuna.db").write_bytes(b"something else " * 1000)


def delete_study(folder: Path) -> None:
    optuna.delete_study(study_name="mine", storage="sqlite:///optuna.db")


def drop_tables(folder: Path) -> None:
    with sqlite3.connect(folder / "optuna.db") as connection:
        connection.execute("DROP TABLE trials")


@pytest.mark.parametrize(
    "lose", [delete_file, move_file, empty_file, overwrite_file, delete_study, drop_tables]
)
def test_a_study_that_is_deleted_is_reported_as_lost_without_waiting(
    lose: Callable[[Path], None],
    study: tuple[Storage, optuna.Study],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage, its_study = study
    lose(folder)

    def use() -> None:
        its_study.set_user_attr("a", 1)
        its_study.get_trials(deepcopy=False)

    with pytest.raises(StudyLostError) as loss:
        storage.retry_on_outage(use)
    message = str(loss.value)
    assert "Nothing is lost" not in message
    assert f"study mine no longer exists in {folder / 'optuna.db'}" in message
    assert "--warm-start cifar10" in message
    assert "next attempt" not in caplog.text


def test_another_key_error_is_not_taken_for_a_loss(study: tuple[Storage, optuna.Study]) -> None:
    storage, _ = study
    with pytest.raises(KeyError):
        storage.retry_on_outage(lambda: {"a": 1}["missing"])

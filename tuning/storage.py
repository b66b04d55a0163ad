"""The Optuna storage of a study: connection, locks, retries after an outage, URLs without passwords."""

import hashlib
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from cifar_mlflow.environment import patience_seconds
from cifar_mlflow.errors import CifarError, UsageError, first_line
from cifar_mlflow.redact import redact
from cifar_mlflow.tracking.local_state import STUDY_COMMAND, RunDirectory
from cifar_mlflow.tracking.retry import outage_policy
from tuning.optuna_output import ignore_optuna_warnings

logger = logging.getLogger("cifar_mlflow.tuning")

T = TypeVar("T")

# Each machine renews the heartbeats of its trials; without one for the grace period, others restart them.
MAX_HEARTBEAT_SECONDS = 30
DEFAULT_GRACE_SECONDS = 600
# Query parameters of a database URL that hold a password.
PASSWORD_PARAMETERS = ("password", "passwd", "pwd", "sslpassword")
# Arbitrary number for PostgreSQL's advisory lock; other applications in the database must not use it.
ADVISORY_LOCK = 0x63696661
STORAGE_ERRORS = (StorageInternalError, sqlalchemy.exc.OperationalError)
# Messages of SQLite, PostgreSQL, MySQL and Optuna when the tables or the study no longer exist.
_DELETED = re.compile(
    r"no such table|file is not a database|malformed|Record does not exist"
    r"|(relation|database) \S+ does not exist|doesn't exist|Unknown database"
)


class StudyLostError(CifarError):
    """The study was deleted while the search ran."""


class Storage:
    """The Optuna storage of one study, and the folder in which this machine keeps its locks and plots.

    Args:
        url: SQLAlchemy URL of the database.
        study: name of the study.
        cache_dir: folder below which locks, deferred plots and checkpoints are kept.
        experiment: name of the MLflow experiment of the trials, for error messages.
    """

    def __init__(self, url: str, study: str, cache_dir: Path, experiment: str) -> None:
        self.url = url
        self.study = study
        self.cache_dir = cache_dir
        self.experiment = experiment
        self.host = socket.gethostname()
        self._dialect = _dialect(url)
        self._file = Path(url.removeprefix("sqlite:///")).absolute() if _is_sqlite_file(url) else None
        # Without the password, so that a command that takes it from elsewhere finds the same locks.
        key = hashlib.sha256(f"{self._file or absolute_url(url)}\n{study}".encode()).hexdigest()[:16]
        self.folder = cache_dir / "studies" / key
        self.plots = self.folder / "pictures"
        try:
            self.plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CifarError(
                f"{self.folder} cannot be written ({error.strerror}); choose another --cache-dir"
            ) from error

    @ignore_optuna_warnings()
    def open(self) -> RDBStorage:
        """Connect to the database and create missing tables.

        Raises:
            CifarError: the database does not exist or refuses the connection.
        """
        # SQLite waits for other writers; PostgreSQL drops idle connections, which are then replaced.
        arguments = {"timeout": 60} if self._dialect == "sqlite" else {}
        try:
            with self.exclusive():  # two processes must not create the tables at the same time
                self.database = RDBStorage(
                    self.url,
                    engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                    heartbeat_interval=heartbeat_seconds(),
                    grace_period=grace_seconds(),
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                )
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
            raise CifarError(
                f"--storage {redact_password(self.url)} cannot be used: {cause(error)}"
            ) from error
        return self.database

    def trial_id(self, number: int) -> int:
        """Return the id that the database has for a trial of the study."""
        study_id = self.database.get_study_id_from_name(self.study)
        return self.database.get_trial_id_from_study_id_trial_number(study_id, number)

    def record_heartbeats(self, study: optuna.Study) -> None:
        """Renew the heartbeats of the running trials of this machine."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("host") == self.host:
                self.database.record_heartbeat(self.trial_id(trial.number))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Run the block while no other process, on this or another machine, runs such a block.

        The lock belongs to the kernel or to a database connection, so that a crash releases it.
        """
        if self._dialect == "postgresql":
            engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.pool.NullPool)
            with engine.connect() as connection, connection.begin():
                key = {"key": ADVISORY_LOCK}
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), key)
                yield
        else:
            with FileLock(self.folder / "turn.lock"):
                yield

    def trial_lock(self, number: int) -> FileLock:
        """Return the lock that a process holds for as long as it works on a trial."""
        return FileLock(self.folder / f"trial-{number}.lock")

    def link_command(self, run_id: str) -> None:
        """Link the latest command of the study into the folder of a run, which prints it when stopped."""
        link = RunDirectory.of(self.cache_dir, run_id).path / STUDY_COMMAND
        with suppress(OSError):  # the link exists already, or the file system has none: it is only a hint
            link.symlink_to(self.folder.absolute() / STUDY_COMMAND)

    def retry_on_outage(self, call: Callable[[], T]) -> T:
        """Return `call()`, repeated during an outage for up to `CIFAR_MLFLOW_PATIENCE` seconds.

        Raises:
            StudyLostError: the study was deleted, so that no retry can succeed.
            CifarError: the database stayed unavailable.
        """

        def report(error: BaseException, pause: float) -> None:
            logger.warning(
                "The storage of the study does not answer (%s); next attempt in %.0f s",
                cause(error),
                max(pause, 1),
            )

        try:
            return outage_policy(self._is_outage, patience_seconds(), report)(call)
        except (*STORAGE_ERRORS, KeyError) as error:
            if self._is_deleted(error):
                raise self._lost(error) from error
            if isinstance(error, KeyError):
                raise
            raise CifarError(
                f"the storage of the study does not answer: {cause(error)}\n"
                "Nothing is lost: run the same command again when the storage is back."
            ) from error

    def _is_outage(self, error: BaseException) -> bool:
        # A missing folder may be a network drive that comes back; a missing file in it was deleted.
        has_file = self._file is None or self._file.is_file() or not self._file.parent.is_dir()
        return isinstance(error, STORAGE_ERRORS) and has_file and not _DELETED.search(cause(error))

    def _is_deleted(self, error: BaseException) -> bool:
        if isinstance(error, STORAGE_ERRORS) and self._file and not self._file.is_file():
            return True
        return _DELETED.search(cause(error)) is not None

    def _lost(self, error: BaseException) -> StudyLostError:
        where = self._file or redact_password(self.url)
        return StudyLostError(
            f"study {self.study} no longer exists in {where} ({cause(error)}): the database or the study was "
            "deleted, moved or emptied during the search.\n"
            "Lost: Optuna's record of the trials (order, parameters, pruning), and trials that were running. "
            f"Kept: the MLflow runs of all finished trials, in experiment {self.experiment}.\n"
            "To continue, restore the database and run the same command. Without a copy, run it with "
            f"--warm-start {self.experiment}: a new study then counts the completed runs as trials."
        )


def grace_seconds() -> int:
    """Return the number of seconds without a heartbeat after which other machines restart a trial.

    Raises:
        UsageError: `CIFAR_MLFLOW_GRACE` is not a positive whole number.
    """
    text = os.environ.get("CIFAR_MLFLOW_GRACE", str(DEFAULT_GRACE_SECONDS))
    if not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"CIFAR_MLFLOW_GRACE must be a positive whole number of seconds (got {text!r})")
    return int(text)


def heartbeat_seconds() -> int:
    """Return the number of seconds between two heartbeats: a quarter of the grace period, at most 30."""
    return max(1, min(MAX_HEARTBEAT_SECONDS, grace_seconds() // 4))


def _is_sqlite_file(url: str) -> bool:
    return url.startswith("sqlite:///")


def _dialect(url: str) -> str:
    """Return the kind of database.

    Raises:
        UsageError: the URL cannot be parsed, or its password is not escaped.
    """
    try:
        parts = sqlalchemy.make_url(url)
        dialect = parts.get_backend_name()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UsageError(
            f"--storage: {redact_password(url)} is not a database URL; "
            "examples: sqlite:///optuna.db, postgresql+psycopg://user@host/database"
        ) from None
    if "@" in (parts.host or ""):
        raise UsageError(
            f"--storage: in {redact_password(url)}, write each @ of the password as %40, or leave the "
            "password out and set PGPASSWORD"
        )
    return dialect


def redact_password(url: str) -> str:
    """Return a database URL with `***` as password, even if that contains unescaped `@`, quotes or spaces."""
    return redact(re.sub(r"(://[^/:@]*):.*@", r"\1:***@", url, flags=re.DOTALL))


def absolute_url(url: str) -> str:
    """Return a URL of the same database that is valid in every folder, without its password."""
    parts = sqlalchemy.make_url(url)
    secret = [name for name in parts.query if name.lower() in PASSWORD_PARAMETERS]
    database = parts.database
    if database and parts.get_backend_name() == "sqlite" and Path(database).is_file():
        database = str(Path(database).absolute())
    return sqlalchemy.URL.create(
        parts.drivername,
        parts.username,
        None,
        parts.host,
        parts.port,
        database,
        parts.difference_update_query(secret).query,
    ).render_as_string()


def cause(error: BaseException) -> str:
    """Return the first line of the innermost error: Optuna's own text does not say what failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)

"""The storage of a study: opened, waited for, and asked by one process at a time."""

import hashlib
import logging
import os
import socket
import time
import warnings
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

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.tracking.local_state import STUDY_COMMAND, RunDirectory
from cifar_mlflow.tracking.retry import first_line

logger = logging.getLogger("cifar_mlflow.tuning")

T = TypeVar("T")

# How long a storage that is away is waited for.
PATIENCE_SECONDS = float(os.environ.get("CIFAR_MLFLOW_PATIENCE", "120"))
LONGEST_PAUSE_SECONDS = 5.0
# A machine that was not heard of for so long has lost its trials; others begin them anew.
HEARTBEAT_SECONDS = 30
GRACE_SECONDS = int(os.environ.get("CIFAR_MLFLOW_GRACE", "600"))
# Where a URL may have passwords beside the usual place.
PASSWORDS = ("password", "sslpassword")
# Any number that nobody else uses for PostgreSQL's advisory locks in this database.
ADVISORY_LOCK = 0x63696661


class Storage:
    """Optuna's storage of one study.

    Args:
        url: an SQLAlchemy URL.
        study: name of the study in it.
        cache_dir: where locks of this machine and the directories of its runs are.
    """

    def __init__(self, url: str, study: str, cache_dir: Path) -> None:
        self.url = url
        self.study = study
        self.cache_dir = cache_dir
        place = Path(url.removeprefix("sqlite:///")).absolute() if url.startswith("sqlite:///") else url
        key = hashlib.sha256(f"{place}\n{study}".encode()).hexdigest()[:16]
        self.folder = cache_dir / "studies" / key
        self.pictures = self.folder / "pictures"
        self.host = socket.gethostname()
        self._dialect = _dialect(url)
        try:
            self.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CifarError(
                f"{self.folder} cannot be written ({error.strerror}): choose another --cache-dir"
            ) from error

    def open(self) -> RDBStorage:
        """Connect, and make the tables where there are none.

        Raises:
            CifarError: there is no such database, or it does not let us in.
        """
        # SQLite's own wait for other writers; PostgreSQL drops idle connections that are then made anew.
        arguments = {"timeout": 60} if self._dialect == "sqlite" else {}

        def connect() -> RDBStorage:
            with self.turn():  # two processes that make the tables at once get in each other's way
                return RDBStorage(
                    self.url,
                    engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                )

        try:
            self.database = connect()
            return self.database
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
            raise CifarError(f"--storage {safe(self.url)} cannot be used: {cause(error)}") from error

    def beat(self, study: optuna.Study) -> None:
        """Let the other machines know that the trials of this one are looked after."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("host") == self.host:
                self.database.record_heartbeat(trial._trial_id)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other process, on this machine or another, is in here.

        Whoever dies in here frees it: the lock is the kernel's, or belongs to a connection.
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
        """Held by the process that works on a trial, for as long as it lives."""
        return FileLock(self.folder / f"trial-{number}.lock")

    def sign(self, run_id: str) -> None:
        """Let a run of the study, if it is stopped, say which command goes on: the last that was given."""
        link = RunDirectory.of(self.cache_dir, run_id).path / STUDY_COMMAND
        with suppress(OSError):  # it is there from before; or there are no links here: it is only a hint
            link.symlink_to(self.folder.absolute() / STUDY_COMMAND)


def _dialect(url: str) -> str:
    try:
        return sqlalchemy.make_url(url).get_backend_name()
    except sqlalchemy.exc.ArgumentError:
        raise UsageError(
            f"storage: {safe(url)} is not a database URL; "
            "for example sqlite:///optuna.db or postgresql+psycopg://user@host/database"
        ) from None


def safe(url: str) -> str:
    """A URL without its password."""
    try:
        parts = sqlalchemy.make_url(url).difference_update_query(PASSWORDS)
        return parts.render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url.rpartition("@")[2]


def anywhere(url: str) -> str:
    """A URL of the same database that holds in every folder, without its password."""
    parts = sqlalchemy.make_url(url).difference_update_query(PASSWORDS)
    database = parts.database
    if database and parts.get_backend_name() == "sqlite" and Path(database).is_file():
        database = str(Path(database).absolute())
    return sqlalchemy.URL.create(
        parts.drivername, parts.username, None, parts.host, parts.port, database, parts.query
    ).render_as_string()


def cause(error: BaseException) -> str:
    """The first line of the error beneath: Optuna's own says only that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def retry_on_outage(call: Callable[[], T]) -> T:
    """`call()`, tried again while the storage is away.

    Raises:
        CifarError: it stayed away.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = 0.5
    while True:
        try:
            return call()
        except (StorageInternalError, sqlalchemy.exc.OperationalError) as error:
            if time.monotonic() + pause > deadline:
                raise CifarError(
                    f"the storage of the study does not answer: {cause(error)}\n"
                    "Nothing is lost: the same command goes on with the search."
                ) from error
            logger.warning(
                "The storage does not answer (%s); trying again in %.0f s.", cause(error), max(pause, 1)
            )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def quiet() -> None:
    """Optuna reports each trial; we do it ourselves. What it warns of here is meant so."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with", UserWarning)

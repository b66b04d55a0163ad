"""The table of the request log, in a SQLite file or in PostgreSQL."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cifar_mlflow.errors import CifarError, UsageError

SCHEMA_VERSION = 1
# How long a lock of another process is waited for before the rows go back into the queue.
PATIENCE_SECONDS = 2.0
OPEN_SECONDS = 15.0  # several processes that make the file at once get in each other's way
# PostgreSQL's own waits have no end. What the URL says of these comes first.
STATEMENT_SECONDS = 10.0
CONNECTION = {"connect_timeout": "5", "tcp_user_timeout": "10000"}
# Any number that nobody else uses for PostgreSQL's advisory locks in this database.
ADVISORY_LOCK = 0x63696662

metadata = sa.MetaData()
LOG = sa.Table(
    "request_log",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("item", sa.Integer, nullable=False),
    sa.Column("time", sa.Double, nullable=False, index=True),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("model_version", sa.Text),
    sa.Column("image_sha256", sa.Text),
    sa.Column("image_bytes", sa.BigInteger),
    sa.Column("image_format", sa.Text),
    sa.Column("label", sa.Text),
    sa.Column("confidence", sa.Double),
    sa.Column("uncertain", sa.Boolean),
    sa.Column("ood", sa.Double),
    sa.Column("brightness", sa.Double),
    sa.Column("contrast", sa.Double),
    sa.Column("decode_ms", sa.Double),
    sa.Column("score_ms", sa.Double),
    sa.Column("total_ms", sa.Double, nullable=False),
    sa.Column("feedback_time", sa.Double),
    sa.Column("feedback_correct", sa.Boolean),
    sa.Column("feedback_label", sa.Text),
    # A batch whose commit was not confirmed is written again: it must not be there twice.
    sa.UniqueConstraint("request_id", "item", "time"),
    sa.Index("request_log_feedback", "feedback_time", sqlite_where=sa.text("feedback_time IS NOT NULL"),
             postgresql_where=sa.text("feedback_time IS NOT NULL")),
)  # fmt: skip
VERSION = sa.Table("request_log_version", metadata, sa.Column("version", sa.Integer, primary_key=True))


class Database:
    """The database at an SQLAlchemy URL.

    Raises:
        UsageError: the URL is none, or of a database that we cannot use.
    """

    def __init__(self, url: str) -> None:
        self.safe_url = _without_password(url)
        address = _address(url)
        self.file = (
            Path(address.database or "").absolute() if address.get_backend_name() == "sqlite" else None
        )
        self._inode: int | None = None
        if self.file is not None:
            self.engine = sa.create_engine(address, connect_args={"timeout": PATIENCE_SECONDS})
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            address = address.update_query_dict({**CONNECTION, **address.query})
            try:
                self.engine = sa.create_engine(address, pool_pre_ping=True, pool_timeout=PATIENCE_SECONDS)
            except (ImportError, sa.exc.ArgumentError) as error:
                raise UsageError(f"request log: {self.safe_url} needs a driver: {error}") from None

    def open(self) -> None:
        """Make the table where there is none; several processes may do so at once.

        Raises:
            CifarError: it cannot be reached or used, or is no request log that this version knows.
        """
        deadline = time.monotonic() + OPEN_SECONDS
        while True:
            try:
                return self.prepare()
            except sa.exc.SQLAlchemyError as error:
                if not is_locked(error) or time.monotonic() > deadline:
                    raise self.cannot_be_used(error) from error
                time.sleep(0.05)

    def prepare(self) -> None:
        """What `open` does, once, without waiting for others."""
        if self.file is not None:
            self._prepare_file()
        with self.writing() as connection:
            if self.file is None:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            metadata.create_all(connection)
            if not self._check_version(connection):
                connection.execute(sa.insert(VERSION).values(version=SCHEMA_VERSION))
        self._inode = self.file.stat().st_ino if self.file is not None else None

    def open_to_read(self) -> None:
        """Write nothing; neither a file nor a table is made.

        Raises:
            CifarError: there is no request log, or none that this version knows.
        """
        if self.file is not None and not self.file.exists():
            raise CifarError(f"there is no request log {self.safe_url}")
        try:
            with self.reading() as connection:
                found = sa.inspect(connection).has_table(VERSION.name) and self._check_version(connection)
        except sa.exc.SQLAlchemyError as error:
            raise self.cannot_be_used(error) from error
        if not found:
            raise CifarError(f"{self.safe_url} is no request log")

    def cannot_be_used(self, error: sa.exc.SQLAlchemyError) -> CifarError:
        reason = first_line(error)
        is_damaged = "malformed" in reason or "not a database" in reason
        advice = "; move it away, and the server makes a new one" if is_damaged else ""
        return CifarError(f"the request log {self.safe_url} cannot be used: {reason}{advice}")

    def _check_version(self, connection: sa.Connection) -> bool:
        """False if the table of versions is empty.

        Raises:
            CifarError: it names one that is not ours.
        """
        version = connection.execute(sa.select(VERSION.c.version)).scalar()
        if version not in (None, SCHEMA_VERSION):
            raise CifarError(
                f"the request log {self.safe_url} has format {version}, this version of cifar-mlflow "
                f"knows {SCHEMA_VERSION}: name another database, or use the version that made it"
            )
        return version is not None

    def _prepare_file(self) -> None:
        with self.reading() as connection:
            tables = set(sa.inspect(connection).get_table_names())
        others = tables - set(metadata.tables)
        if others:
            # The size of the file is bounded by deleting rows of ours: these would count too.
            raise CifarError(
                f"{self.safe_url} has tables of something else ({', '.join(sorted(others)[:3])}): "
                "the request log needs a file of its own"
            )
        with self.reading() as connection:
            cursor = connection.connection.cursor()  # no transaction has begun
            if not tables:
                # WAL writes the first page, after which this cannot be chosen any more; it takes the lock.
                cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
            cursor.execute("PRAGMA journal_mode = WAL")

    def was_replaced(self) -> bool:
        """Whether somebody removed or renamed the file: open connections would write into nothing."""
        if self.file is None:
            return False
        try:
            return self.file.stat().st_ino != self._inode
        except OSError:
            return True

    def let_go(self) -> None:
        """Close the connections. What a file that was moved has not got yet is put into it before."""
        if self.file is not None:
            with suppress(sa.exc.SQLAlchemyError), self.engine.connect() as connection:
                connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that ends with a commit."""
        with self.engine.begin() as connection:
            self._bound(connection, STATEMENT_SECONDS)
            yield connection

    @contextmanager
    def reading(self, seconds: float | None = None) -> Iterator[sa.Connection]:
        """A transaction that keeps no writer waiting; PostgreSQL stops its statements after `seconds`."""
        with self.engine.connect() as connection:
            connection.execution_options(reading=True)
            if seconds is not None:
                self._bound(connection, seconds)
            yield connection

    def _bound(self, connection: sa.Connection, seconds: float) -> None:
        if self.file is None:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {seconds * 1000:.0f}")


def _address(url: str) -> sa.URL:
    try:
        address = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise UsageError(
            f"request log: {_without_password(url)} is not a database URL; "
            "for example sqlite:///requests.db or postgresql+psycopg://user@host/database"
        ) from None
    kind = address.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise UsageError(f"request log: SQLite or PostgreSQL, not {kind} ({_without_password(url)})")
    if kind == "sqlite" and (not address.database or ":memory:" in address.database):
        raise UsageError(f"request log: {url} names no file; for example sqlite:///requests.db")
    return address.set(drivername="postgresql+psycopg") if address.drivername == "postgresql" else address


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url.rpartition("@")[2]


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so, the making of tables included
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA journal_size_limit = 16777216")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails at once if another writes in between.
    how = "DEFERRED" if connection.get_execution_options().get("reading") else "IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN {how}")


def is_locked(error: Exception) -> bool:
    return isinstance(error, sa.exc.OperationalError) and "locked" in str(error.orig)


def first_line(error: BaseException, limit: int = 200) -> str:
    """What the database said, without SQLAlchemy's additions."""
    said = getattr(error, "orig", None) or error
    line = (str(said).strip() or type(said).__name__).splitlines()[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"

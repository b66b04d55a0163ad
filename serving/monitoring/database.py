"""The table of the request log, in a SQLite file or a PostgreSQL database: open, write, delete, read."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cifar_mlflow.errors import CifarError, UsageError, first_line
from serving.monitoring.records import Record

if TYPE_CHECKING:
    import pandas as pd

LOCK_SECONDS = 2.0  # for a lock that another process holds on a SQLite file
STATEMENT_SECONDS = 5.0
# Without these, psycopg waits for minutes. Parameters in the address have precedence.
POSTGRESQL_TIMEOUTS = {"connect_timeout": "5", "tcp_user_timeout": "10000"}
OPEN_SECONDS = 15.0  # processes that create the same file at once may find it locked
# Other processes cannot write to a SQLite file while a portion is deleted.
PORTION_ROWS = 500
PORTION_PAGES = 500
# Columns with few distinct values: as categories, a million rows need a tenth of the memory.
CATEGORIES = ("route", "error_code", "model_version", "image_format", "label", "feedback_label")

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
    sa.Column("live", sa.Boolean),
    # A batch is written again if the connection broke before the commit was confirmed.
    sa.UniqueConstraint("request_id", "item", "time"),
    sa.Index("request_log_feedback", "feedback_time", sqlite_where=sa.text("feedback_time IS NOT NULL"),
             postgresql_where=sa.text("feedback_time IS NOT NULL")),
)  # fmt: skip
# Tables of earlier versions lack these columns; a server adds them.
ADDED_COLUMNS = {"live"}
# Earlier versions of this program created the second table; nothing reads it any more.
OWN_TABLES = {LOG.name, "request_log_version"}

_NAMES = [field.name for field in fields(Record)]
_VALUES = attrgetter(*_NAMES)
_INSERT = {
    "sqlite": sqlite.insert(LOG).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(LOG).on_conflict_do_nothing(),
}
# Creating the table must not overlap with another process; the number identifies an advisory lock.
_EXCLUSIVE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": f"SELECT pg_advisory_xact_lock({0x63696662})"}


@dataclass(frozen=True, slots=True)
class Feedback:
    """A person's verdict on an answer; `time` is in Unix seconds."""

    request_id: str
    item: int
    time: float
    correct: bool | None
    label: str | None


Entry: TypeAlias = Record | Feedback


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """An answer that feedback is about; `label` is None if it has none or cannot be read now."""

    label: str | None


class Database:
    """A request log at an SQLAlchemy URL.

    Attributes:
        safe_url: the URL without secrets, for messages.

    Raises:
        UsageError: the URL is not valid, or names a database that is not supported.
    """

    def __init__(self, url: str) -> None:
        address = _parse(url)
        self.safe_url = _redact(address)
        secrets = [address.password, *address.normalized_query.get("password", ())]
        self._secrets = [str(secret) for secret in secrets if secret]
        self._file: Path | None = None
        self._inode: int | None = None
        if address.get_backend_name() == "sqlite":
            self._file = Path(address.database or "").absolute()
            self.engine = sa.create_engine(address, connect_args={"timeout": LOCK_SECONDS})
            sa.event.listen(
                self.engine,
                "connect",
                lambda connection, _: connection.execute("PRAGMA synchronous = NORMAL"),
            )
        else:
            address = address.update_query_dict({**POSTGRESQL_TIMEOUTS, **address.query})
            if address.drivername == "postgresql":
                address = address.set(drivername="postgresql+psycopg")
            try:
                self.engine = sa.create_engine(address, pool_pre_ping=True, pool_timeout=LOCK_SECONDS)
            except (ImportError, sa.exc.ArgumentError) as error:
                raise UsageError(f"request log: {self.safe_url} needs a driver: {error}") from None

    def open(self) -> None:
        """Create the table if there is none; several processes may do so at once.

        Raises:
            CifarError: the database cannot be reached or used, or the table has another format.
        """
        deadline = time.monotonic() + OPEN_SECONDS
        while True:
            try:
                return self.create()
            except sa.exc.SQLAlchemyError as error:
                if "locked" not in self.reason(error) or time.monotonic() > deadline:
                    raise self.unusable(error) from error
                time.sleep(0.05)

    def create(self) -> None:
        """Do what `open` does, in a single attempt."""
        if self.was_replaced():
            self._close_old_file()
            self._prepare_file()
        with self.engine.begin() as connection:
            connection.exec_driver_sql(_EXCLUSIVE[self.engine.dialect.name])
            metadata.create_all(connection)
            for name in sorted(self._missing_columns(connection)):
                kind = LOG.c[name].type.compile(self.engine.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {LOG.name} ADD COLUMN {name} {kind}")
        if self._file is not None:
            self._inode = self._file.stat().st_ino

    def _close_old_file(self) -> None:
        if self._inode is not None:
            # A file that was moved lacks the rows that are still in its write-ahead log.
            with suppress(sa.exc.SQLAlchemyError), self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        self.engine.dispose()

    def _prepare_file(self) -> None:
        with self.engine.connect() as connection:
            tables = set(sa.inspect(connection).get_table_names())
            if others := tables - OWN_TABLES:
                raise CifarError(
                    f"{self.safe_url} has tables of another program ({', '.join(sorted(others)[:3])}): "
                    "the request log needs a file of its own"
                )
            if not tables:  # later it has no effect
                connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")

    def _missing_columns(self, connection: sa.Connection) -> set[str]:
        """Return those of ADDED_COLUMNS that the table lacks.

        Raises:
            CifarError: it lacks others.
        """
        present = {column["name"] for column in sa.inspect(connection).get_columns(LOG.name)}
        missing = set(LOG.columns.keys()) - present
        if others := missing - ADDED_COLUMNS:
            raise CifarError(
                f"the request log {self.safe_url} lacks the columns {', '.join(sorted(others))}: name "
                "another database, or use the version of cifar-mlflow that created it"
            )
        return missing

    def was_replaced(self) -> bool:
        """Return whether the SQLite file was removed or moved, so that connections use the old one."""
        if self._file is None:
            return False
        try:
            return self._file.stat().st_ino != self._inode
        except OSError:
            return True

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Commit at the end. PostgreSQL cancels statements that take longer than STATEMENT_SECONDS."""
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {STATEMENT_SECONDS * 1000:.0f}")
            yield connection

    def write(self, entries: Sequence[Entry]) -> None:
        """Insert the records that the table does not have yet, then apply the feedback."""
        rows = [dict(zip(_NAMES, _VALUES(e), strict=True)) for e in entries if isinstance(e, Record)]
        with self._transaction() as connection:
            if rows:
                connection.execute(_INSERT[self.engine.dialect.name], rows)
            for entry in entries:
                if isinstance(entry, Feedback):
                    connection.execute(_update(entry))

    def find(self, request_id: str, item: int) -> FoundAnswer | None:
        """Return the answer that feedback applies to; None if the table does not have it."""
        answers = sa.select(LOG.c.label).where(LOG.c.request_id == request_id, LOG.c.item == item)
        with self._transaction() as connection:
            row = connection.execute(answers.order_by(LOG.c.id.desc()).limit(1)).first()
        return None if row is None else FoundAnswer(row.label)

    def delete_portion(self, before: float, max_rows: int) -> bool:
        """Delete a few hundred rows that are outdated; return False if there were none.

        Args:
            before: Unix seconds; older rows are outdated.
            max_rows: rows are outdated if at least this many were written after them.
        """
        # Counting rows takes seconds in a large table; ids are given in order, and rarely skipped.
        newest = sa.select(sa.func.max(LOG.c.id)).scalar_subquery()
        deleted = 0
        with self._transaction() as connection:
            for outdated in (LOG.c.time < before, LOG.c.id <= newest - max_rows):
                portion = sa.select(LOG.c.id).where(outdated).limit(PORTION_ROWS)
                portion = portion.with_for_update(skip_locked=True)  # several processes delete
                deleted += connection.execute(sa.delete(LOG).where(LOG.c.id.in_(portion))).rowcount
        if deleted and self._file is not None:
            self._shrink_file()
        return deleted > 0

    def _shrink_file(self) -> None:
        """Return some unused pages to the disk; PostgreSQL does this by itself."""
        with self.engine.connect() as connection:
            # The statement ends when all its rows are read, which only `executescript` does: they are empty.
            connection.connection.cursor().executescript(f"PRAGMA incremental_vacuum({PORTION_PAGES})")

    def reason(self, error: BaseException) -> str:
        """Return the first line of the database's message, without secrets."""
        line = first_line(error)
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line

    def unusable(self, error: sa.exc.SQLAlchemyError) -> CifarError:
        """Return the error of a command that cannot go on without the database."""
        reason = self.reason(error)
        is_damaged = "malformed" in reason or "not a database" in reason
        advice = "; move the file away, and the server creates a new one" if is_damaged else ""
        return CifarError(f"the request log {self.safe_url} cannot be used: {reason}{advice}")

    def read(self, since: float, until: float) -> "tuple[pd.DataFrame, pd.DataFrame]":
        """Read the records and the feedback of a time span; nothing is created.

        Args:
            since: Unix seconds.
            until: Unix seconds, exclusive.

        Returns:
            The records of requests that arrived in the span, and the records of any age with feedback from
            the span. One row per image, oldest first; the columns are the fields of Record, feedback_time
            (NaN without feedback), feedback_correct and feedback_label. `live` is NA in rows of an earlier
            version of this program, which did not record it.

        Raises:
            CifarError: there is no request log, or it cannot be read.
        """
        if self._file is not None and not self._file.exists():
            raise CifarError(f"there is no request log {self.safe_url}")
        try:
            with self.engine.connect() as connection:
                if not sa.inspect(connection).has_table(LOG.name):
                    raise CifarError(f"{self.safe_url} is not a request log")
                missing = self._missing_columns(connection)
                records = _select(connection, LOG.c.time, since, until, missing)
                return records, _select(connection, LOG.c.feedback_time, since, until, missing)
        except sa.exc.SQLAlchemyError as error:
            raise self.unusable(error) from error
        finally:
            self.engine.dispose()


def _select(
    connection: sa.Connection, when: "sa.Column[float]", since: float, until: float, missing: set[str]
) -> "pd.DataFrame":
    import pandas as pd  # not needed by a server, which only writes

    columns = [column for column in LOG.c if column is not LOG.c.id]
    selected = [sa.null().label(column.name) if column.name in missing else column for column in columns]
    rows = sa.select(*selected).where(when >= since, when < until).order_by(LOG.c.time, LOG.c.item)
    dtypes = dict.fromkeys(CATEGORIES, "category") | {"image_bytes": "Int64"}
    dtypes |= {column.name: "float64" for column in columns if isinstance(column.type, sa.Double)}
    dtypes |= {column.name: "boolean" for column in columns if isinstance(column.type, sa.Boolean)}
    return pd.read_sql(rows, connection).astype(dtypes)


def _update(feedback: Feedback) -> sa.Update:
    # If a request id occurs more than once, the feedback applies to its last answer.
    answers = (LOG.c.request_id == feedback.request_id, LOG.c.item == feedback.item)
    last = sa.select(sa.func.max(LOG.c.id)).where(*answers).scalar_subquery()
    is_newest = LOG.c.feedback_time.is_(None) | (LOG.c.feedback_time <= feedback.time)
    return (
        sa.update(LOG)
        .where(LOG.c.id == last, is_newest)
        .values(feedback_time=feedback.time, feedback_correct=feedback.correct, feedback_label=feedback.label)
    )


def _parse(url: str) -> sa.URL:
    try:
        address = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # ValueError: the port is not a number
        # Anything but a plain name may hold a password.
        shown = url if re.fullmatch(r"[\w./-]+", url) else "the address"
        raise UsageError(
            f"request log: {shown} is not a database URL; for example sqlite:///requests.db or "
            "postgresql+psycopg://user@host/database"
        ) from None
    if "@" in (address.host or ""):
        raise UsageError("request log: write @ as %40 in the password of the database URL")
    kind = address.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise UsageError(f"request log: SQLite or PostgreSQL, not {kind} ({_redact(address)})")
    names_file = address.database and ":memory:" not in address.database
    if kind == "sqlite" and (address.username or address.host or not names_file):
        raise UsageError(f"request log: {_redact(address)} names no file; for example sqlite:///requests.db")
    return address


def _redact(address: sa.URL) -> str:
    """Return the address without its password and without its parameters, which may include another one."""
    return address.set(query={}).render_as_string(hide_password=True)

"""The request log: what was answered, and what people said of it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serving.monitoring.database import LOG, Database, first_line
from serving.monitoring.images import ImageFolder
from serving.monitoring.records import Record
from serving.monitoring.retention import Retention

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 20_000  # some 15 MB
BATCH = 1000
RETRY_SECONDS = 1.0
SILENCE_SECONDS = 5.0  # a database that takes longer for a batch is as good as away
CLOSE_SECONDS = 5.0
# Lookups that may wait for a row of another process; an unknown id must not tie up all of a server's threads.
PATIENT_LOOKUPS = 4

_ROW_ERRORS = (sa.exc.DataError, sa.exc.IntegrityError, ValueError, TypeError, OverflowError)
_INSERT: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# A NumPy number would go into SQLite as its bytes.
_KINDS = {field.name: LOG.c[field.name].type.python_type for field in fields(Record)}


@dataclass(frozen=True, slots=True)
class _Feedback:
    request_id: str
    item: int
    time: float
    correct: bool | None
    label: str | None


_Entry: TypeAlias = Record | _Feedback


class RequestLog:
    """Writes records in batches, from a thread of its own; each process has its own log.

    What is put is in the database `flush_seconds` later, and then survives the end of the process. While the
    database is away the rows wait.

    Args:
        url: sqlite:///<file> or postgresql+psycopg://…; several processes may share it.
        retention_days: rows and pictures that are older are deleted.
        retention_mb: the oldest rows are deleted while the table is larger; the oldest pictures while their
            folder is.
        flush_seconds: time between two batches.
        images_dir: where `put_image` keeps pictures; without it none is kept.

    Attributes:
        dropped: rows and pictures that were given up: the queue was full, or the database refused the row.

    Raises:
        UsageError: the URL is not one of a database that we can use.
        CifarError: the database cannot be reached, is damaged, or is no request log that this version knows;
            or the folder cannot be written.
    """

    def __init__(
        self,
        url: str,
        *,
        retention_days: float,
        retention_mb: float,
        flush_seconds: float = 0.5,
        images_dir: Path | None = None,
    ) -> None:
        self._database = Database(url)
        self._database.open()
        self._retention = Retention(self._database, days=retention_days, mb=retention_mb)
        self._images = images_dir and ImageFolder(images_dir, days=retention_days, mb=retention_mb)
        self._flush_seconds = flush_seconds
        insert = _INSERT[self._database.engine.dialect.name]
        self._insert = insert(LOG).on_conflict_do_nothing()
        self._waiting: deque[_Entry] = deque()
        self._lock = threading.Lock()
        self._dropped = 0
        self._failing: str | None = None
        self._busy_since: float | None = None
        self._patient = threading.BoundedSemaphore(PATIENT_LOOKUPS)
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="request-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        return self._dropped + (self._images.dropped if self._images else 0)

    @property
    def failing(self) -> str | None:
        """Why nothing can be written at the moment; None if all is well."""
        since = self._busy_since
        if self._failing is None and since is not None and time.monotonic() - since > SILENCE_SECONDS:
            return "the database does not answer"
        return self._failing or (self._images.failing if self._images else None)

    def put(self, record: Record) -> None:
        """Note a record; takes microseconds, and raises nothing."""
        self._append(record)

    def put_image(self, sha256: str, image_format: str, data: bytes) -> None:
        """Keep a picture as <images_dir>/<sha256>.<extension>; takes microseconds, and raises nothing.

        Args:
            sha256: of `data`, as 64 hex digits.
            image_format: as in a record.
        """
        if self._images:
            self._images.put(sha256, image_format, data)

    def feedback(self, request_id: str, item: int, *, correct: bool | None, label: str | None) -> bool:
        """Note what a person said of an answer; the latest counts.

        An answer that another process has not written yet is waited for, two flushes at the most: call this
        from a thread. While the database is away, feedback is taken unseen, and forgotten if there is no
        such answer.

        Returns:
            False if there is no such answer.
        """
        if not self._knows(request_id, item):
            return False
        self._append(_Feedback(request_id, item, time.time(), correct, label))
        return True

    def close(self) -> None:
        """Write what is there; what the database does not take within some seconds is given up."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        if self._images:
            self._images.close()
        with self._lock:
            lost = len(self._waiting)
            self._dropped += lost
        if lost:
            logger.error("%d rows of the request log are lost: %s", lost, self.failing)

    def _append(self, entry: _Entry) -> None:
        with self._lock:
            if len(self._waiting) >= QUEUE_LIMIT or self._closing:
                self._dropped += 1
                return
            self._waiting.append(entry)
            full_batch = len(self._waiting) == BATCH
        if full_batch:
            self._wake.set()

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait(RETRY_SECONDS if self._failing else self._flush_seconds)
            self._wake.clear()
            if self._flush():
                self._forget(time.monotonic() + self._flush_seconds / 2)
        self._flush()
        self._database.engine.dispose()

    def _flush(self) -> bool:
        """Write what waits; False if the database did not take it."""
        while True:
            with self._lock:
                batch = list(islice(self._waiting, BATCH))
            if not batch:
                return self._failing is None
            self._busy_since = time.monotonic()
            try:
                self._write(batch)
            except Exception as error:  # whatever it is, the thread goes on: nobody else writes the rows
                self._fails(error)
                return False
            finally:
                self._busy_since = None
            self._works()
            with self._lock:
                for _ in batch:
                    self._waiting.popleft()

    def _write(self, batch: Sequence[_Entry]) -> None:
        if self._failing or self._database.was_replaced():
            self._database.engine.dispose()
            self._database.prepare()
        try:
            self._write_at_once(batch)
        except _ROW_ERRORS:
            for entry in batch:
                try:
                    self._write_at_once([entry])
                except _ROW_ERRORS as error:
                    self._dropped += 1
                    logger.error("The request log does not take a row: %s", first_line(error))

    def _write_at_once(self, batch: Sequence[_Entry]) -> None:
        rows = [_row(entry) for entry in batch if isinstance(entry, Record)]
        with self._database.writing() as connection:
            if rows:
                connection.execute(self._insert, rows)
            for entry in batch:
                if isinstance(entry, _Feedback):
                    connection.execute(_feedback_statement(entry))

    def _fails(self, error: Exception) -> None:
        reason = first_line(error)
        if reason != self._failing:
            logger.warning("The request log cannot be written (%s); rows wait.", reason)
        self._failing = reason

    def _works(self) -> None:
        if self._failing:
            logger.warning("The request log can be written again.")
        self._failing = None

    def _forget(self, deadline: float) -> None:
        try:
            self._retention.work(deadline)
        except sa.exc.SQLAlchemyError as error:  # tried again at the next turn
            logger.warning("Old rows of the request log could not be deleted: %s", first_line(error))

    def _knows(self, request_id: str, item: int) -> bool:
        with self._lock:
            waiting = list(self._waiting)
        if any(e.request_id == request_id and e.item == item for e in waiting if isinstance(e, Record)):
            return True
        patient = self._patient.acquire(blocking=False)
        deadline = time.monotonic() + (2 * self._flush_seconds if patient else 0)
        try:
            while not self._is_written(request_id, item):
                if time.monotonic() > deadline:
                    return False
                time.sleep(self._flush_seconds / 10)
            return True
        finally:
            if patient:
                self._patient.release()

    def _is_written(self, request_id: str, item: int) -> bool:
        if self._failing:
            return True
        answer = sa.select(LOG.c.id).where(LOG.c.request_id == request_id, LOG.c.item == item).limit(1)
        try:
            with self._database.reading() as connection:
                return connection.execute(answer).first() is not None
        except _ROW_ERRORS:  # an id that the database cannot even hold
            return False
        except sa.exc.SQLAlchemyError:
            return True


def _row(record: Record) -> dict[str, Any]:
    values = ((name, kind, getattr(record, name)) for name, kind in _KINDS.items())
    return {name: None if value is None else kind(value) for name, kind, value in values}


def _feedback_statement(feedback: _Feedback) -> sa.Update:
    # A client may use an id again: its last answer is meant.
    answers = (LOG.c.request_id == feedback.request_id, LOG.c.item == feedback.item)
    last = sa.select(sa.func.max(LOG.c.id)).where(*answers).scalar_subquery()
    earlier = LOG.c.feedback_time.is_(None) | (LOG.c.feedback_time <= feedback.time)
    return (
        sa.update(LOG)
        .where(LOG.c.id == last, earlier)
        .values(feedback_time=feedback.time, feedback_correct=feedback.correct, feedback_label=feedback.label)
    )

"""The request log: what was answered, and what people said of it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from serving.monitoring.database import LOG, PATIENCE_SECONDS, Database, first_line
from serving.monitoring.entries import ROW_ERRORS, Entry, Feedback, write
from serving.monitoring.images import ImageFolder
from serving.monitoring.records import Record
from serving.monitoring.retention import Retention

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 20_000  # some 15 MB
BATCH = 1000
# While the rows of a batch are written, requests wait for the interpreter: more often, for less long.
FLUSH_SECONDS = 0.1
LOOKUP_SECONDS = 1.0  # for a row that another process has yet to write
RETRY_SECONDS = 1.0
SILENCE_SECONDS = 5.0  # a database that takes longer for a batch is as good as away
CLOSE_SECONDS = 5.0
# Lookups that may wait for a row of another process; an unknown id must not tie up all of a server's threads.
PATIENT_LOOKUPS = 4


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
        flush_seconds: float = FLUSH_SECONDS,
        images_dir: Path | None = None,
    ) -> None:
        self._database = Database(url)
        self._database.open()
        self._retention = Retention(self._database, days=retention_days, mb=retention_mb)
        self._images = images_dir and ImageFolder(images_dir, days=retention_days, mb=retention_mb)
        self._flush_seconds = flush_seconds
        self._waiting: deque[Entry] = deque()
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
        return self._database_failing() or (self._images.failing if self._images else None)

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

        An answer that another process has not written yet is waited for, a second at the most: call this
        from a thread. While the database is away, feedback is taken unseen, and forgotten if there is no
        such answer.

        Returns:
            False if there is no such answer.
        """
        if not self._knows(request_id, item):
            return False
        self._append(Feedback(request_id, item, time.time(), correct, label))
        return True

    def close(self) -> None:
        """Write what is there; it is given up if for some seconds the database takes nothing."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        before = -1
        while self._thread.is_alive() and before != len(self._waiting):
            before = len(self._waiting)
            self._thread.join(CLOSE_SECONDS)
        if self._images:
            self._images.close()
        with self._lock:
            lost = len(self._waiting)
            self._dropped += lost
        if lost:
            logger.error("%d rows of the request log are lost: %s", lost, self.failing)

    def _database_failing(self) -> str | None:
        since = self._busy_since
        if self._failing is None and since is not None and time.monotonic() - since > SILENCE_SECONDS:
            return "the database does not answer"
        return self._failing

    def _append(self, entry: Entry) -> None:
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
            self._busy_since = time.monotonic()
            try:
                self._flush()
                self._retention.work(deadline=time.monotonic() + self._flush_seconds / 2)
            except Exception as error:  # whatever it is: no other thread writes the rows
                self._fails(error)
            else:
                self._works()
            self._busy_since = None
        try:
            self._flush()
        except Exception as error:
            self._fails(error)
        self._database.engine.dispose()

    def _flush(self) -> None:
        if self._failing or self._database.was_replaced():
            self._database.let_go()
            self._database.prepare()
        while True:
            with self._lock:
                batch = list(islice(self._waiting, BATCH))
            if not batch:
                return
            self._busy_since = time.monotonic()
            self._write(batch)
            with self._lock:
                for _ in batch:
                    self._waiting.popleft()
            if len(batch) < BATCH:  # what came meanwhile waits for its turn, or each row would be a batch
                return

    def _write(self, batch: Sequence[Entry]) -> None:
        try:
            with self._database.writing() as connection:
                write(connection, batch)
        except ROW_ERRORS as error:
            if len(batch) > 1:
                for entry in batch:
                    self._write([entry])
                return
            logger.error("The request log does not take a row: %s", first_line(error))
            with self._lock:
                self._dropped += 1

    def _fails(self, error: Exception) -> None:
        reason = first_line(error)
        if reason != self._failing:
            logger.warning("The request log cannot be written (%s); rows wait.", reason)
        self._failing = reason

    def _works(self) -> None:
        if self._failing:
            logger.warning("The request log can be written again.")
        self._failing = None

    def _knows(self, request_id: str, item: int) -> bool:
        with self._lock:
            waiting = list(self._waiting)
        if any(e.request_id == request_id and e.item == item for e in waiting if isinstance(e, Record)):
            return True
        patient = self._patient.acquire(blocking=False)
        deadline = time.monotonic() + (LOOKUP_SECONDS if patient else 0)
        try:
            while not self._is_written(request_id, item):
                if time.monotonic() > deadline:
                    return False
                time.sleep(LOOKUP_SECONDS / 20)
            return True
        finally:
            if patient:
                self._patient.release()

    def _is_written(self, request_id: str, item: int) -> bool:
        if self._database_failing():
            return True
        answer = sa.select(LOG.c.id).where(LOG.c.request_id == request_id, LOG.c.item == item).limit(1)
        try:
            with self._database.reading(PATIENCE_SECONDS) as connection:
                return connection.execute(answer).first() is not None
        except ROW_ERRORS:  # an id that the database cannot even hold
            return False
        except sa.exc.SQLAlchemyError:
            return True

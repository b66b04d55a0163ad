"""Write the request log from a thread of its own, so that no request waits for the database."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice

import sqlalchemy as sa

from cifar_mlflow.errors import UsageError
from cifar_mlflow.names import counted
from serving.monitoring.database import LOCK_SECONDS, Database, Entry, Feedback, FoundAnswer
from serving.monitoring.records import Record

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 20_000  # entries, about 15 MB
BATCH_ROWS = 1000
FLUSH_SECONDS = 0.3
RETRY_SECONDS = 1.0
RETENTION_SECONDS = 5.0  # between two checks for outdated rows
SILENCE_SECONDS = 5.0  # a database that takes longer for a batch counts as unavailable
CLOSE_SECONDS = 5.0
LOOKUP_SECONDS = 1.0  # for a row that another process has yet to write
# Feedback on unknown answers must not occupy all threads of the server while it waits for such a row.
WAITING_LOOKUPS = 4
# The database, or its driver, cannot store the value: writing it again would fail again.
ROW_ERRORS = (sa.exc.DataError, sa.exc.IntegrityError, ValueError, TypeError, OverflowError)


class RequestLog:
    """A queue of records and feedback, which a thread writes to the database in batches.

    An entry is in the database about `flush_seconds` later. While the database is unavailable, entries wait
    in the queue; when it is full, further ones are dropped and counted. Several processes may share a
    database; each has a RequestLog of its own.

    Args:
        url: sqlite:///<file> or postgresql+psycopg://...
        retention_days: older rows are deleted.
        retention_rows: only this many rows are kept, the newest.
        flush_seconds: time between two batches.

    Attributes:
        dropped: number of entries that were given up: the queue was full, or the database rejects the row.

    Raises:
        UsageError: the URL is not valid, or names a database that is not supported.
        CifarError: the database cannot be reached, is damaged, or has a table of another format.
    """

    def __init__(
        self, url: str, *, retention_days: float, retention_rows: int, flush_seconds: float = FLUSH_SECONDS
    ) -> None:
        self._database = Database(url)
        self._database.open()
        self._retention_seconds = retention_days * 86_400
        self._retention_rows = retention_rows
        self._next_check = 0.0
        self._flush_seconds = flush_seconds
        self._queue: deque[Entry] = deque()
        self._lock = threading.Lock()  # for the queue and `dropped`
        self.dropped = 0
        self._failing: str | None = None
        self._busy_since: float | None = None
        self._lookups = threading.BoundedSemaphore(WAITING_LOOKUPS)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="request-log", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> str | None:
        """Why nothing can be written at present; None if all is well."""
        since = self._busy_since
        if self._failing is None and since is not None and time.monotonic() - since > SILENCE_SECONDS:
            return "the database does not answer"
        return self._failing

    def put(self, entry: Entry) -> None:
        """Queue an entry; takes microseconds, and raises nothing."""
        with self._lock:
            if len(self._queue) >= QUEUE_LIMIT or self._closing.is_set():
                self.dropped += 1
            else:
                self._queue.append(entry)

    def feedback(self, request_id: str, item: int, *, correct: bool | None, label: str | None) -> bool:
        """Record feedback on an answer; it replaces earlier feedback.

        Call this from a thread: if another process has not written the answer yet, this waits for up to a
        second. While the database is unavailable, feedback is accepted without a check, and ignored later if
        there is no such answer.

        Returns:
            False if there is no such answer.

        Raises:
            UsageError: `correct` and `label` contradict each other.
        """
        answer = self._find(request_id, item)
        if answer is None:
            return False
        if None not in (correct, label, answer.label) and correct != (label == answer.label):
            raise UsageError(
                "The answer was this label, but correct is false."
                if label == answer.label
                else "The answer was another label, but correct is true."
            )
        self.put(Feedback(request_id, item, time.time(), correct, label))
        return True

    def close(self) -> None:
        """Write the queue; after some seconds without success, give it up and count it as dropped."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join(CLOSE_SECONDS + LOCK_SECONDS)
        with self._lock:
            lost = len(self._queue)
            self.dropped += lost
        if lost:
            logger.error("Lost %s of the request log: %s", counted(lost, "row"), self.failing)

    def _work(self) -> None:
        while not self._closing.wait(RETRY_SECONDS if self._failing else self._flush_seconds):
            self._try_to_flush()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._queue and time.monotonic() < deadline:
            self._try_to_flush()
        self._database.engine.dispose()

    def _try_to_flush(self) -> None:
        try:
            self._busy_since = time.monotonic()
            if self._failing or self._database.was_replaced():
                self._database.create()
            while batch := self._next_batch():
                self._write(batch)
                self._busy_since = time.monotonic()
                with self._lock:
                    for _ in batch:
                        self._queue.popleft()
                if len(batch) < BATCH_ROWS:  # entries that arrived meanwhile become the next batch
                    break
            self._delete_outdated_rows()
        except Exception as error:  # of any kind: no other thread writes the rows
            reason = self._database.reason(error)
            if reason != self._failing:
                logger.warning("The request log cannot be written (%s); rows wait in memory.", reason)
            self._failing = reason
        else:
            if self._failing:
                logger.warning("The request log can be written again.")
            self._failing = None
        self._busy_since = None

    def _next_batch(self) -> list[Entry]:
        with self._lock:
            return list(islice(self._queue, BATCH_ROWS))

    def _write(self, batch: Sequence[Entry]) -> None:
        try:
            self._database.write(batch)
        except ROW_ERRORS as error:
            if len(batch) > 1:
                for entry in batch:
                    self._write([entry])
                return
            logger.error("The request log rejects a row: %s", self._database.reason(error))
            with self._lock:
                self.dropped += 1

    def _delete_outdated_rows(self) -> None:
        if time.monotonic() < self._next_check:
            return
        before = time.time() - self._retention_seconds
        if not self._database.delete_portion(before, self._retention_rows):
            self._next_check = time.monotonic() + RETENTION_SECONDS

    def _find(self, request_id: str, item: int) -> FoundAnswer | None:
        with self._lock:
            queued = list(self._queue)
        for entry in reversed(queued):
            if isinstance(entry, Record) and entry.request_id == request_id and entry.item == item:
                return FoundAnswer(entry.label)
        may_wait = self._lookups.acquire(blocking=False)
        deadline = time.monotonic() + (LOOKUP_SECONDS if may_wait else 0)
        try:
            while (answer := self._find_written(request_id, item)) is None:
                if time.monotonic() > deadline:
                    return None
                time.sleep(LOOKUP_SECONDS / 20)
            return answer
        finally:
            if may_wait:
                self._lookups.release()

    def _find_written(self, request_id: str, item: int) -> FoundAnswer | None:
        if self.failing:
            return FoundAnswer(None)
        try:
            return self._database.find(request_id, item)
        except ROW_ERRORS:  # the id is one that the database cannot even store
            return None
        except sa.exc.SQLAlchemyError:
            return FoundAnswer(None)

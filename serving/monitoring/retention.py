"""What is too old or too much is deleted from the request log, the oldest first."""

import time

import sqlalchemy as sa

from serving.monitoring.database import LOG, Database

CHECK_SECONDS = 5.0
# Other processes wait while a portion is deleted.
PORTION_ROWS = 500
PORTION_PAGES = 500
SAMPLE_ROWS = 1000
# What PostgreSQL adds to a row: header and pointer, and the entries of three indexes beside the id's text.
ROW_OVERHEAD_BYTES = 120


class Retention:
    """Keeps a request log within `days` and `mb` (millions of bytes of rows with their indexes)."""

    def __init__(self, database: Database, *, days: float, mb: float) -> None:
        self._database = database
        self._seconds = days * 86_400
        self._bytes = mb * 1e6
        self._next_check = time.monotonic()

    def work(self, deadline: float) -> None:
        """Delete in small portions; at `deadline` what is left stays for the next call."""
        if time.monotonic() < self._next_check:
            return
        while self._delete_portion() or self._give_back():
            if time.monotonic() > deadline:
                return
        self._next_check = time.monotonic() + CHECK_SECONDS

    def _delete_portion(self) -> bool:
        with self._database.reading() as connection:
            too_old = LOG.c.time < time.time() - self._seconds
            oldest = (
                sa.select(LOG.c.id).order_by(LOG.c.time).limit(PORTION_ROWS).with_for_update(skip_locked=True)
            )
            if connection.execute(sa.select(LOG.c.id).where(too_old).limit(1)).first():
                oldest = oldest.where(too_old)
            elif self._size(connection) <= self._bytes:
                return False
        with self._database.writing() as connection:
            return connection.execute(sa.delete(LOG).where(LOG.c.id.in_(oldest))).rowcount > 0

    def _size(self, connection: sa.Connection) -> float:
        """Bytes in use. What was deleted but not yet given back to the disk does not count."""
        if self._database.file is not None:
            pages, free, size = (
                connection.exec_driver_sql(f"PRAGMA {what}").scalar_one()
                for what in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * size
        # PostgreSQL's own figures count dead rows, or are estimates of some minutes ago.
        newest = sa.select(LOG).order_by(LOG.c.id.desc()).limit(SAMPLE_ROWS).subquery("newest")
        row = sa.select(sa.func.avg(sa.func.pg_column_size(sa.literal_column("newest.*"))),
                        sa.func.avg(sa.func.length(newest.c.request_id))).select_from(newest)  # fmt: skip
        row_bytes, id_bytes = connection.execute(row).one()
        if row_bytes is None:
            return 0
        last, first = connection.execute(sa.select(sa.func.max(LOG.c.id), sa.func.min(LOG.c.id))).one()
        return (last - first + 1) * float(row_bytes + id_bytes + ROW_OVERHEAD_BYTES)

    def _give_back(self) -> bool:
        """Return free pages of a SQLite file to the disk; PostgreSQL uses them again by itself."""
        if self._database.file is None:
            return False
        with self._database.reading() as connection:
            if not self._free_pages(connection):
                return False
        with self._database.writing() as connection:
            before = self._free_pages(connection)
            cursor = connection.connection.cursor()  # SQLAlchemy closes it after the first page
            cursor.execute(f"PRAGMA incremental_vacuum({PORTION_PAGES})")
            cursor.fetchall()
            return self._free_pages(connection) < before

    @staticmethod
    def _free_pages(connection: sa.Connection) -> int:
        pages: int = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
        return pages

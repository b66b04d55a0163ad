"""Records and feedback on their way into the table."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from operator import attrgetter
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from serving.monitoring.database import LOG
from serving.monitoring.records import Record

# What a database, or its driver, says of a value that it cannot hold: trying again will not help.
ROW_ERRORS = (sa.exc.DataError, sa.exc.IntegrityError, ValueError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a person said of an answer, at a `time` in Unix seconds."""

    request_id: str
    item: int
    time: float
    correct: bool | None
    label: str | None


Entry: TypeAlias = Record | Feedback

_NAMES = [field.name for field in fields(Record)]
_KINDS = [LOG.c[name].type.python_type for name in _NAMES]
_VALUES = attrgetter(*_NAMES)
# With each statement SQLite gives the interpreter's lock away, and the writer then waits for its next turn
# while requests are answered, and they for the writer.
ROWS_OF_A_STATEMENT = 50


def write(connection: sa.Connection, entries: Sequence[Entry]) -> None:
    """Insert the records and then the feedback, each in the order of `entries`.

    A record that is there already stays as it is: the commit of a batch may succeed although the connection
    broke before it said so, and the batch is then written again.
    """
    if rows := [_row(entry) for entry in entries if isinstance(entry, Record)]:
        if connection.dialect.name == "sqlite":
            _insert_into_sqlite(connection, rows)
        else:
            named = [dict(zip(_NAMES, row, strict=True)) for row in rows]
            connection.execute(postgresql.insert(LOG).on_conflict_do_nothing(), named)
    for entry in entries:
        if isinstance(entry, Feedback):
            connection.execute(_update(entry))


def _row(record: Record) -> list[Any]:
    # SQLite would take a NumPy number for bytes: each value becomes what its column holds.
    return [
        None if value is None else kind(value) for kind, value in zip(_KINDS, _VALUES(record), strict=True)
    ]


def _insert_into_sqlite(connection: sa.Connection, rows: list[list[Any]]) -> None:
    places = f"({', '.join('?' * len(_NAMES))})"
    for start in range(0, len(rows), ROWS_OF_A_STATEMENT):
        some = rows[start : start + ROWS_OF_A_STATEMENT]
        connection.exec_driver_sql(
            f"INSERT INTO {LOG.name} ({', '.join(_NAMES)}) VALUES {', '.join([places] * len(some))} "
            "ON CONFLICT DO NOTHING",
            tuple(chain.from_iterable(some)),
        )


def _update(feedback: Feedback) -> sa.Update:
    # A client may use an id again: its last answer is meant.
    answers = (LOG.c.request_id == feedback.request_id, LOG.c.item == feedback.item)
    last = sa.select(sa.func.max(LOG.c.id)).where(*answers).scalar_subquery()
    is_later = LOG.c.feedback_time.is_(None) | (LOG.c.feedback_time <= feedback.time)
    said = {"feedback_correct": feedback.correct, "feedback_label": feedback.label}
    return sa.update(LOG).where(LOG.c.id == last, is_later).values(feedback_time=feedback.time, **said)

"""Records and feedback on their way into the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

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
_INSERT: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def write(connection: sa.Connection, entries: Sequence[Entry]) -> None:
    """Insert the records and then the feedback, each in the order of `entries`.

    A record that is there already stays as it is: the commit of a batch may succeed although the connection
    broke before it said so, and the batch is then written again.
    """
    if rows := [_row(entry) for entry in entries if isinstance(entry, Record)]:
        connection.execute(_INSERT[connection.dialect.name](LOG).on_conflict_do_nothing(), rows)
    for entry in entries:
        if isinstance(entry, Feedback):
            connection.execute(_update(entry))


def _row(record: Record) -> dict[str, Any]:
    # SQLite would take a NumPy number for bytes: each value becomes what its column holds.
    return {
        name: None if value is None else kind(value)
        for name, kind, value in zip(_NAMES, _KINDS, _VALUES(record), strict=True)
    }


def _update(feedback: Feedback) -> sa.Update:
    # A client may use an id again: its last answer is meant.
    answers = (LOG.c.request_id == feedback.request_id, LOG.c.item == feedback.item)
    last = sa.select(sa.func.max(LOG.c.id)).where(*answers).scalar_subquery()
    is_later = LOG.c.feedback_time.is_(None) | (LOG.c.feedback_time <= feedback.time)
    said = {"feedback_correct": feedback.correct, "feedback_label": feedback.label}
    return sa.update(LOG).where(LOG.c.id == last, is_later).values(feedback_time=feedback.time, **said)

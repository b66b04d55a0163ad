"""The request log as tables, for reports."""

from typing import TYPE_CHECKING

import sqlalchemy as sa

from serving.monitoring.database import LOG, Database

if TYPE_CHECKING:
    import pandas as pd

# Few different values: as categories a million rows take a tenth of the memory.
CATEGORIES = ("route", "error_code", "model_version", "image_format", "label", "feedback_label")


def read_log(url: str, since: float, until: float) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """What was asked, and what people said of it.

    Args:
        since: Unix seconds.
        until: Unix seconds, not included.

    Returns:
        The records of requests that came from `since` to `until`, and the records of any time for which
        feedback came from `since` to `until`. One row a picture, the oldest first, with the columns of
        Record, and feedback_time (NaN where nobody said anything), feedback_correct and feedback_label.

    Raises:
        UsageError: the URL is not one of a database that we can use.
        CifarError: there is no request log, or it cannot be read.
    """
    database = Database(url)
    try:
        database.open_to_read()
        return _read(database, LOG.c.time, since, until), _read(database, LOG.c.feedback_time, since, until)
    except sa.exc.SQLAlchemyError as error:
        raise database.cannot_be_used(error) from error
    finally:
        database.engine.dispose()


def _read(database: Database, when: "sa.Column[float]", since: float, until: float) -> "pd.DataFrame":
    import pandas as pd  # not for a server that only writes

    columns = [column for column in LOG.c if column is not LOG.c.id]
    rows = sa.select(*columns).where(when >= since, when < until).order_by(LOG.c.time, LOG.c.item)
    with database.reading() as connection:
        table = pd.read_sql(rows, connection)
    kinds = {"uncertain": "boolean", "feedback_correct": "boolean", "feedback_time": "float64"}
    floats = {c.name: "float64" for c in columns if isinstance(c.type, sa.Double)}
    whole = {"image_bytes": "Int64"}
    return table.astype({**dict.fromkeys(CATEGORIES, "category"), **floats, **whole, **kinds})

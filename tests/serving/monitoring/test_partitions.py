"""A request log whose table `deploy/request-log-partitions.sql` has divided into a partition per day."""

import time

import psycopg
import pytest

from tests.deploy.files import DEPLOY
from tests.serving.monitoring.request_logs import open_log, record, rows, wait_until

pytestmark = pytest.mark.slow

DAY = 86_400
SCRIPT = (DEPLOY / "request-log-partitions.sql").read_text()


def partition(url: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(SCRIPT)


def tables(url: str) -> list[str]:
    query = "SELECT relname FROM pg_class WHERE relname LIKE 'request_log%' AND relkind IN ('r', 'p')"
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return sorted(name for (name,) in connection.execute(query))


def test_the_service_works_with_partitions(postgres_url: str) -> None:
    now, today = time.time(), int(time.time() // DAY)
    log = open_log(postgres_url, retention_days=30)
    log.put(record("before", label="cat"))
    log.close()
    partition(postgres_url)
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        for day in (today - 40, today - 31, today - 30):  # as earlier runs have left them
            connection.execute(
                f"CREATE TABLE request_log_{day} PARTITION OF request_log "
                f"FOR VALUES FROM ({day * DAY}) TO ({(day + 1) * DAY})"
            )
    partition(postgres_url)
    days = [today - 30, *range(today - 1, today + 8)]
    assert tables(postgres_url) == ["request_log", *(f"request_log_{day}" for day in days), "request_log_old"]

    log = open_log(postgres_url, retention_days=30, retention_rows=2)
    times = {"old": (today - 30) * DAY, "yesterday": now - DAY, "first": now - 60, "second": now}
    for name, arrival in times.items():
        log.put(record(name, time=arrival, label="cat"))
    assert log.feedback("first", 0, correct=False, label="dog")
    wait_until(
        lambda: set(rows(postgres_url)["request_id"]) == {"first", "second"}, "the newest two are left"
    )
    log.close()
    assert (log.dropped, log.failing) == (0, None)
    table = rows(postgres_url)
    assert table["request_id"].tolist() == ["first", "second"]
    assert table["feedback_label"].dropna().tolist() == ["dog"]

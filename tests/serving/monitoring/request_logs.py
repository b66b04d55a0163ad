"""Helpers for tests of the request log, and the main functions of the processes that they start."""

import sys
import time
from collections.abc import Callable
from typing import Any

import pandas as pd

from serving.monitoring.database import Database
from serving.monitoring.records import Record
from serving.monitoring.request_log import RequestLog

UNLIMITED: dict[str, Any] = {"retention_days": 1e5, "retention_rows": 10**9}


def open_log(url: str, **settings: Any) -> RequestLog:
    return RequestLog(url, **{**UNLIMITED, "flush_seconds": 0.05, **settings})


def record(request_id: str, **values: Any) -> Record:
    common: dict[str, Any] = {"time": time.time(), "route": "/predict", "status": 200, "total_ms": 9.5}
    return Record(request_id=request_id, **{**common, **values})


def rows(url: str) -> pd.DataFrame:
    return Database(url).read(0, float("inf"))[0]


def wait_until(happened: Callable[[], object], expected: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s: {expected}"
        time.sleep(0.02)


def put_many(url: str, name: str, count: int) -> None:
    log = open_log(url)
    for i in range(count):
        log.put(record(f"{name}-{i}", label="cat"))
        time.sleep(0.0005)
    log.close()
    assert log.dropped == 0
    assert log.failing is None


def put_until_killed(url: str) -> None:
    log = RequestLog(url, **UNLIMITED)
    for i in range(1_000_000):
        log.put(record(f"row-{i}"))
        time.sleep(0.002)


def put_one(url: str, request_id: str) -> None:
    """Print a line when the row is queued, long before it is written; exit at the end of stdin."""
    log = open_log(url, flush_seconds=0.5)
    log.put(record(request_id))
    print("put", flush=True)
    sys.stdin.read()
    log.close()


def put_on_a_full_disk(url: str) -> None:
    """Limit the file size for a while; print the number of rows and why they could not be written then."""
    import resource

    log = open_log(url)
    log.put(record("first"))
    wait_until(lambda: len(rows(url)) == 1, "the first row")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, unlimited[1]))
    count = 1
    while log.failing is None:
        log.put(record(f"row-{count}"))
        count += 1
        time.sleep(0.0005)
    reason = log.failing
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    wait_until(lambda: log.failing is None, "the disk has room again")
    log.close()
    print(count, reason, flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:4], *map(int, sys.argv[4:]))

"""Download a file from the first mirror that has it, resume broken connections, and verify its md5."""

import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from cifar_mlflow.console import console, duration
from cifar_mlflow.data.cache import cache_errors, exclusive
from cifar_mlflow.errors import CifarError

BLOCK = 1 << 16
PROGRESS_BYTES = 1 << 20
SECONDS_BETWEEN_LOG_LINES = 10
logger = logging.getLogger(__name__)

# Called with the number of bytes downloaded so far and the total (None if unknown).
Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class RetryPolicy:
    """When to give up a connection or a mirror.

    Attributes:
        stall: seconds without a byte after which a connection counts as dead.
        attempts: give up a mirror after this many connections in a row that transfer less than 1 MiB each.
        pause: seconds between two connections.
    """

    stall: float = 30
    attempts: int = 3
    pause: float = 1


DEFAULT_RETRIES = RetryPolicy()


class _MirrorError(Exception):
    """A mirror cannot provide the file; the text, a few words, is shown to the user."""


def download(
    mirrors: tuple[str, ...], target: Path, md5: str, hint: str, retries: RetryPolicy = DEFAULT_RETRIES
) -> None:
    """Download `target` unless it is the file with this md5 already; a second process waits for the first.

    An unfinished file stays as `target.part`, and the next call resumes it, from any mirror.

    Args:
        hint: what the user can do if no mirror has the file.

    Raises:
        CifarError: no mirror provided the file (the message gives the reason for each, then `hint`), or
            `target` cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    with exclusive(target):
        if target.exists():
            if file_md5(target) == md5:
                return
            logger.info("%s is damaged; downloading it again", target)
        reasons = []
        for url in mirrors:
            try:
                _fetch(url, part, md5, retries)
            except _MirrorError as error:
                reasons.append(f"{_without_secrets(url)}: {error}")
                continue
            with cache_errors(target):
                part.replace(target)
            return
    tried = "\n  ".join(reasons) or "no mirror is set"
    raise CifarError(f"{target.name} could not be downloaded:\n  {tried}\n{hint}")


def file_md5(path: Path) -> str:
    """Return the md5 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch(url: str, part: Path, md5: str, retries: RetryPolicy) -> None:
    """Complete `part` from this mirror.

    Raises:
        _MirrorError: the mirror does not provide the file.
    """
    if not re.match(r"https?://[^/@]+/", url):
        raise _MirrorError("not an http or https address (one without user and password)")
    # A part that another mirror or an earlier run left may be wrong; then this mirror starts from zero.
    if _size(part) and _complete(url, part, md5, retries):
        return
    if not _complete(url, part, md5, retries):
        raise _MirrorError("it sends another file (wrong md5)")


def _complete(url: str, part: Path, md5: str, retries: RetryPolicy) -> bool:
    """Connect until `part` is complete. If its md5 is wrong, delete it and return False."""
    failures = 0
    with _progress(part.stem) as report:
        while True:
            before = _size(part)
            try:
                _transfer(url, part, retries.stall, report)
                break
            except (OSError, http.client.HTTPException) as error:
                failures = 0 if _size(part) - before >= PROGRESS_BYTES else failures + 1
                if failures == retries.attempts or isinstance(error, urllib.error.HTTPError):
                    if part.exists() and file_md5(part) == md5:  # complete, only Content-Length was wrong
                        return True
                    raise _MirrorError(_reason(error, part)) from None
                time.sleep(retries.pause)
    if file_md5(part) == md5:
        return True
    part.unlink()
    return False


def _transfer(url: str, part: Path, stall: float, report: Report) -> None:
    """Append to `part` over one connection, until the server has no more to send.

    Raises:
        OSError, http.client.HTTPException: the connection failed, stalled or was cut.
        CifarError: `part` cannot be written.
    """
    have = _size(part)
    headers = {"User-Agent": "cifar-mlflow", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=stall)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # `part` has all bytes that the server has; the md5 tells whether they are right
        raise
    logger.info("downloading %s", _without_secrets(url))
    with response:
        if have and not _continues_at(response, have):
            have = 0
        total = have + response.length if response.length is not None else None
        with cache_errors(part):
            file = part.open("ab" if have else "wb")
        with file:
            while block := response.read1(BLOCK):
                with cache_errors(part):
                    file.write(block)
                have += len(block)
                report(have, total)
            with cache_errors(part):
                file.flush()
    if total is not None and have < total:
        raise ConnectionError(f"cut after {have:,} of {total:,} bytes")


def _continues_at(response: http.client.HTTPResponse, offset: int) -> bool:
    """Return whether the body continues at `offset`; a server that ignores Range starts at 0 again."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return False
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if start is None or int(start[1]) != offset:
        raise ConnectionError("it sent another part of the file than requested")
    return True


@contextmanager
def _progress(name: str) -> Iterator[Report]:
    """Yield a function that reports progress: as a bar in a terminal, as log lines elsewhere."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None, visible=False)
        started, start_size, last_line = time.monotonic(), -1, time.monotonic()

        def report(have: int, total: int | None) -> None:
            nonlocal start_size, last_line
            now = time.monotonic()
            start_size = have if start_size < 0 or have < start_size else start_size
            bar.update(task, completed=have, total=total, visible=True)
            if not console.is_terminal and now - last_line >= SECONDS_BETWEEN_LOG_LINES:
                last_line = now
                logger.info("%s: %s", name, log_line(have, total, (have - start_size) / (now - started)))

        yield report


def log_line(have: int, total: int | None, speed: float) -> str:
    """Describe the progress.

    Args:
        have: bytes downloaded.
        total: bytes in all; None if unknown.
        speed: bytes per second.
    """
    if total is None:
        return f"{have / 1e6:.0f} MB, {speed / 1e6:.2f} MB/s"
    left = duration((total - have) / max(speed, 1))
    return f"{have / 1e6:.0f} of {total / 1e6:.0f} MB, {speed / 1e6:.2f} MB/s, {left} left"


def _reason(error: Exception, part: Path) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        reason = "no answer in time"
    elif isinstance(cause, http.client.HTTPException) and not isinstance(cause, OSError):
        reason = "its response was cut off or is not HTTP"
    else:
        reason = getattr(cause, "strerror", None) or str(cause)
    return f"{reason} ({_size(part):,} bytes are kept, to resume from)" if _size(part) else reason


def _without_secrets(url: str) -> str:
    """Return the address without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

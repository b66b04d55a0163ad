"""A file from the first mirror that has it: resumed where it was cut, never used unless its md5 is right."""

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

from cifar_mlflow.console import console
from cifar_mlflow.data.cache import disk_errors, exclusive
from cifar_mlflow.errors import CifarError

BLOCK = 1 << 16
ENOUGH_TO_GO_ON = 1 << 20
SECONDS_BETWEEN_LOG_LINES = 10
logger = logging.getLogger(__name__)

Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Patience:
    """stall: seconds without a byte until a connection counts as dead.
    attempts: connections in a row that bring less than a mebibyte until a mirror is given up.
    pause: seconds between two connections.
    """

    stall: float = 30
    attempts: int = 3
    pause: float = 1


PATIENT = Patience()


class _MirrorError(Exception):
    """Why a mirror is given up, in a few words; its text goes to the user."""


def download(
    mirrors: tuple[str, ...], target: Path, md5: str, way_out: str, patience: Patience = PATIENT
) -> None:
    """Make sure that `target` holds the file with this md5; a second process waits for the first.

    An unfinished file stays as `target.part`, and the next call goes on from there, with any mirror.

    Raises:
        CifarError: no mirror gave the file (the text has the reason of each, then `way_out`), or the disk
            is full.
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
                _fetch(url, part, md5, patience)
            except _MirrorError as error:
                reasons.append(f"{_shown(url)}: {error}")
                logger.info("%s", reasons[-1])
                continue
            with disk_errors(target):
                part.replace(target)
            return
    tried = "\n  ".join(reasons) or "no mirror is set"
    raise CifarError(f"{target.name} could not be downloaded:\n  {tried}\n{way_out}")


def file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch(url: str, part: Path, md5: str, patience: Patience) -> None:
    """Complete `part` from this mirror, or say by a _MirrorError why it cannot be done."""
    if not re.match(r"https?://[^/@]+/", url):
        raise _MirrorError("not an http or https address (one without user and password)")
    logger.info("downloading %s", _shown(url))
    # What another mirror or an earlier run left may be wrong; then this mirror gets a chance from the start.
    if _size(part) and _complete(url, part, md5, patience):
        return
    if not _complete(url, part, md5, patience):
        raise _MirrorError("what it sends is another file (wrong md5)")


def _complete(url: str, part: Path, md5: str, patience: Patience) -> bool:
    """Connect until `part` is whole. False, and no `part` any more, where its md5 is wrong."""
    fruitless = 0
    with _progress(part.stem) as report:
        while True:
            before = _size(part)
            try:
                _transfer(url, part, patience.stall, report)
                break
            except (OSError, http.client.HTTPException) as error:
                fruitless = 0 if _size(part) - before >= ENOUGH_TO_GO_ON else fruitless + 1
                if fruitless == patience.attempts or isinstance(error, urllib.error.HTTPError):
                    if part.exists() and file_md5(part) == md5:  # whole, whatever its Content-Length said
                        return True
                    raise _MirrorError(_reason(error, part)) from None
                time.sleep(patience.pause)
    if file_md5(part) == md5:
        return True
    part.unlink()
    return False


def _transfer(url: str, part: Path, stall: float, report: Report) -> None:
    """Append to `part` over one connection. Returns when the server has no more to send.

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
            return  # nothing comes after what is here: the md5 tells whether it is the whole file
        raise
    with response:
        if have and not _continues_at(response, have):
            have = 0
        total = have + response.length if response.length is not None else None
        with disk_errors(part):
            file = part.open("ab" if have else "wb")
        with file:
            while block := response.read1(BLOCK):
                with disk_errors(part):
                    file.write(block)
                have += len(block)
                report(have, total)
            with disk_errors(part):
                file.flush()
    if total is not None and have < total:
        raise ConnectionError(f"cut after {have:,} of {total:,} bytes")


def _continues_at(response: http.client.HTTPResponse, offset: int) -> bool:
    """Whether the body goes on at `offset`; a server that ignores Range starts again at 0."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return False
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if start is None or int(start[1]) != offset:
        raise ConnectionError("it answered with another part of the file than the one asked for")
    return True


@contextmanager
def _progress(name: str) -> Iterator[Report]:
    """To be called with (bytes here, bytes in all): a bar in a terminal, log lines elsewhere."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        began, began_at, said = time.monotonic(), -1, time.monotonic()

        def report(have: int, total: int | None) -> None:
            nonlocal began_at, said
            now = time.monotonic()
            began_at = have if began_at < 0 or have < began_at else began_at
            bar.update(task, completed=have, total=total)
            if not console.is_terminal and now - said >= SECONDS_BETWEEN_LOG_LINES:
                said = now
                logger.info("%s: %s", name, log_line(have, total, (have - began_at) / (now - began)))

        yield report


def log_line(have: int, total: int | None, speed: float) -> str:
    """Progress in words: bytes here, bytes in all if known, bytes a second."""
    if total is None:
        return f"{have / 1e6:.0f} MB, {speed / 1e6:.2f} MB/s"
    seconds = (total - have) / max(speed, 1)
    left = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{have / 1e6:.0f} of {total / 1e6:.0f} MB, {speed / 1e6:.2f} MB/s, {left} left"


def _reason(error: Exception, part: Path) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        words = "no answer in time"
    elif isinstance(cause, http.client.HTTPException) and not isinstance(cause, OSError):
        words = "its answer broke off, or is not HTTP"
    else:
        words = getattr(cause, "strerror", None) or str(cause)
    return f"{words} ({_size(part):,} bytes are kept to go on from)" if _size(part) else words


def _shown(url: str) -> str:
    """The address without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

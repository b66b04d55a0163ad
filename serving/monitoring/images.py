"""A folder with the images that clients sent; written only if the operator asks for it (`--images-dir`)."""

import logging
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cifar_mlflow.errors import CifarError
from cifar_mlflow.files import temporary_sibling

logger = logging.getLogger(__name__)

QUEUE_BYTES = 32_000_000
CHECK_SECONDS = 600.0
RETRY_SECONDS = 2.0
CLOSE_SECONDS = 5.0
EXTENSIONS = {
    "JPEG": "jpg", "PNG": "png", "WebP": "webp", "BMP": "bmp", "GIF": "gif", "HEIC": "heic", "AVIF": "avif"
}  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}")
# The files that the folder writes: images, and the unfinished ones of a process that was killed.
_OWN_FILE = re.compile(rf"[0-9a-f]{{64}}\.({'|'.join(EXTENSIONS.values())})|\.[0-9a-f]{{32}}\.tmp")


class ImageFolder:
    """A folder of images named <sha256>.<extension>, written by a thread; several processes may share it.

    An image that is sent again counts as new for the retention. Files with other names are left alone.

    Args:
        folder: created if it does not exist.
        days: older images are deleted.
        mb: the oldest images are deleted while all together are larger. Checked every ten minutes, and
            whenever this process has written a twentieth of it.

    Attributes:
        dropped: number of images that were given up: too many waited, or they could not be written.
        failing: why images cannot be written; None if all is well. Tried again every few seconds.

    Raises:
        CifarError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, days: float, mb: float) -> None:
        self._folder = folder.absolute()
        self._seconds = days * 86_400
        self._bytes = mb * 1e6
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._probe()
        except OSError as error:
            raise CifarError(f"--images-dir {folder}: cannot be written: {error.strerror}") from error
        self.dropped = 0
        self.failing: str | None = None
        self._queue: deque[tuple[str, bytes]] = deque()
        self._queue_bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="request-images", daemon=True)
        self._thread.start()

    def put(self, sha256: str, image_format: str, data: bytes) -> None:
        """Queue an image; takes microseconds, and raises nothing.

        Args:
            sha256: of `data`, as 64 hex digits.
            image_format: as in a Record.
        """
        extension = EXTENSIONS.get(image_format)
        with self._lock:
            fits = self._queue_bytes + len(data) <= QUEUE_BYTES and not self._closing
            if not fits or extension is None or not _SHA256.fullmatch(sha256):
                self.dropped += 1
                return
            self._queue.append((f"{sha256}.{extension}", data))
            self._queue_bytes += len(data)
        self._wake.set()

    def close(self) -> None:
        """Write the queue; what is not written within some seconds is given up and counted as dropped."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        with self._lock:
            self.dropped += len(self._queue)

    def _work(self) -> None:
        next_check = 0.0
        written = 0
        while not self._closing or self._queue:
            if written >= self._bytes / 20 or time.monotonic() >= next_check:
                self._delete_outdated()
                written, next_check = 0, time.monotonic() + CHECK_SECONDS
            if not self._queue:
                wait = max(0.0, next_check - time.monotonic())
                self._wake.wait(wait if self.failing is None else min(wait, RETRY_SECONDS))
                self._wake.clear()
                if self.failing is not None:
                    self._try_again()
                continue
            name, data = self._queue[0]
            written += self._write(self._folder / name, data)
            with self._lock:
                self._queue.popleft()
                self._queue_bytes -= len(data)

    def _probe(self) -> None:
        """Raise OSError if the folder cannot be written."""
        with temporary_sibling(self._folder / "probe") as probe:
            probe.touch()

    def _try_again(self) -> None:
        with suppress(OSError):
            self._probe()
            self.failing = None

    def _write(self, path: Path, data: bytes) -> int:
        """Return the number of bytes by which the folder grew."""
        try:
            try:
                os.utime(path)
                growth = 0
            except FileNotFoundError:
                with temporary_sibling(path) as temporary:
                    temporary.write_bytes(data)
                    temporary.replace(path)
                growth = len(data)
        except OSError as error:
            self.dropped += 1
            if self.failing is None:
                logger.warning("Images cannot be stored: %s", error.strerror)
            self.failing = f"images cannot be stored: {error.strerror}"
            return 0
        self.failing = None
        return growth

    def _delete_outdated(self) -> None:
        """Delete images that are too old, and the oldest while all together are too large.

        This goes through the folder twice, with one sum per second: a list of all files could be very long.
        """
        try:
            sizes: Counter[int] = Counter()
            for _, status in self._files():
                sizes[int(status.st_mtime)] += status.st_size
            keep_from = time.time() - self._seconds
            total = 0
            for second in sorted(sizes, reverse=True):
                total += sizes[second]
                if total > self._bytes:
                    keep_from = max(keep_from, second + 1)
                    break
            for path, status in self._files():
                if status.st_mtime < keep_from:
                    path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("Old images could not be deleted: %s", error.strerror)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not _OWN_FILE.fullmatch(entry.name):
                    continue
                try:
                    yield Path(entry), entry.stat()
                except FileNotFoundError:  # another process has deleted it
                    continue

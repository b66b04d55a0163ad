"""The pictures that were asked about, as files; only where the operator wants them kept."""

import logging
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from cifar_mlflow.errors import CifarError

logger = logging.getLogger(__name__)

WAITING_BYTES = 32_000_000
CHECK_SECONDS = 600
CLOSE_SECONDS = 5.0
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WebP": "webp", "BMP": "bmp", "GIF": "gif"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ImageFolder:
    """A folder of pictures named by their content, written from a thread; several processes may share it.

    A picture that comes again counts as new for the retention. The size is looked at after each twentieth of
    `mb` that this process writes.

    Attributes:
        dropped: pictures that were given up: too many waited, or the disk did not take them.
        failing: why the last one could not be written.
    """

    def __init__(self, folder: Path, *, days: float, mb: float) -> None:
        self._folder = folder.absolute()
        self._seconds = days * 86_400
        self._bytes = mb * 1e6
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._folder / f".{os.getpid()}").touch()
            (self._folder / f".{os.getpid()}").unlink()
        except OSError as error:
            raise CifarError(f"images_dir {folder} cannot be written: {error.strerror}") from error
        self.dropped = 0
        self.failing: str | None = None
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="request-images", daemon=True)
        self._thread.start()

    def put(self, sha256: str, image_format: str, data: bytes) -> None:
        extension = EXTENSIONS.get(image_format)
        with self._lock:
            fits = self._waiting_bytes + len(data) <= WAITING_BYTES and not self._closing
            if not fits or extension is None or not _SHA256.fullmatch(sha256):
                self.dropped += 1
                return
            self._waiting.append((f"{sha256}.{extension}", data))
            self._waiting_bytes += len(data)
        self._wake.set()

    def close(self) -> None:
        """Write what waits; what the disk does not take within some seconds is given up."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        with self._lock:
            self.dropped += len(self._waiting)

    def _work(self) -> None:
        next_check = 0.0
        written = 0
        while not self._closing or self._waiting:
            if written >= self._bytes / 20 or time.monotonic() >= next_check:
                self._forget()
                written, next_check = 0, time.monotonic() + CHECK_SECONDS
            if not self._waiting:
                self._wake.wait(max(0.0, next_check - time.monotonic()))
                self._wake.clear()
                continue
            name, data = self._waiting[0]
            written += self._write(name, data)
            with self._lock:
                self._waiting.popleft()
                self._waiting_bytes -= len(data)

    def _write(self, name: str, data: bytes) -> int:
        """The bytes by which the folder grew."""
        path = self._folder / name
        half = self._folder / f".{name}.{os.getpid()}"
        try:
            try:
                os.utime(path)
                grown = 0
            except FileNotFoundError:
                half.write_bytes(data)
                half.replace(path)
                grown = len(data)
        except OSError as error:
            self.dropped += 1
            if self.failing is None:
                logger.warning("Pictures cannot be kept: %s", error.strerror)
            self.failing = f"pictures cannot be kept: {error.strerror}"
            half.unlink(missing_ok=True)
            return 0
        self.failing = None
        return grown

    def _forget(self) -> None:
        """Delete what is too old, and the oldest of what is too much.

        Two walks through the folder with sums for each second: a list of all files could be a large one.
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
            for entry, status in self._files():
                if status.st_mtime < keep_from:
                    Path(entry).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("Old pictures could not be deleted: %s", error.strerror)

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    yield entry.path, entry.stat()
                except FileNotFoundError:  # another process deletes too
                    continue

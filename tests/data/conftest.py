"""A small CIFAR-10 in the published format, and local mirrors with all kinds of faults."""

import hashlib
import pickle
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cifar_mlflow.data.dataset import CIFAR10_CLASSES
from cifar_mlflow.data.original import ARCHIVE_NAME, FOLDER, Archive


@dataclass(frozen=True)
class Published:
    """The synthetic archive, the folder it was created from, and the expected images and labels."""

    archive: Archive
    path: Path
    folder: Path
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    root = tmp_path_factory.mktemp("published")
    folder = root / FOLDER
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(120) % 10
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        rows = slice(20 * i, 20 * (i + 1))
        batch = {"data": images[rows].reshape(20, -1), "labels": labels[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_CLASSES)}))
    path = root / ARCHIVE_NAME
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, FOLDER)

    def with_md5(name: str) -> tuple[str, str]:
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    archive = Archive(
        md5=hashlib.md5(path.read_bytes()).hexdigest(),
        meta=with_md5("batches.meta"),
        train=tuple(with_md5(name) for name in names[:5]),
        test=(with_md5("test_batch"),),
    )
    as_rows = images.transpose(0, 2, 3, 1)
    return Published(archive, path, folder, as_rows[:100], labels[:100], as_rows[100:], labels[100:])


@dataclass
class Mirrors:
    """A local web server; each path is a mirror with its own behaviour.

    Attributes:
        requests: path and Range header of each request.
    """

    content: bytes
    port: int = 0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.port}/{behaviour}/{ARCHIVE_NAME}"

    def count(self, behaviour: str) -> int:
        """Return the number of requests to a mirror."""
        return sum(path.split("/")[1] == behaviour for path, _ in self.requests)


@pytest.fixture
def mirrors(published: Published) -> Iterator[Mirrors]:
    state = Mirrors(published.path.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers["Range"]))
            BEHAVIOURS[self.path.split("/")[1]](self, state)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield state
    state.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def dead_url() -> str:
    """Return an address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/{ARCHIVE_NAME}"


def _start(handler: BaseHTTPRequestHandler, total: int, ranges: bool = True, extra: int = 0) -> int:
    """Send status and headers; return the offset of the body in the file, -1 if there is none."""
    wanted = handler.headers["Range"] if ranges else None
    offset = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
    if wanted and offset >= total:
        handler.send_error(416)
        return -1
    handler.send_response(206 if wanted else 200)
    if wanted:
        handler.send_header("Content-Range", f"bytes {offset}-{total - 1}/{total}")
    handler.send_header("Content-Length", str(total - offset + extra))
    handler.end_headers()
    return offset


def _good(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    if (offset := _start(handler, len(state.content))) >= 0:
        handler.wfile.write(state.content[offset:])


def _cut(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    """Send at most 40 % of the file per connection."""
    if (offset := _start(handler, len(state.content))) >= 0:
        handler.wfile.write(state.content[offset : offset + len(state.content) * 2 // 5])


def _stall(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    offset = _start(handler, len(state.content))
    handler.wfile.write(state.content[offset : offset + 1000])
    state.over.wait(20)


def _slow(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    offset = _start(handler, len(state.content))
    for start in range(offset, len(state.content), 20_000):
        handler.wfile.write(state.content[start : start + 20_000])
        time.sleep(0.03)


def _without_ranges(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    _start(handler, len(state.content), ranges=False)
    handler.wfile.write(state.content)


def _promises_too_much(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    if (offset := _start(handler, len(state.content), extra=100)) >= 0:
        handler.wfile.write(state.content[offset:])


def _promises_too_much_without_ranges(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    _start(handler, len(state.content), ranges=False, extra=100)
    handler.wfile.write(state.content)


def _promises_too_little(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    _start(handler, len(state.content), ranges=False, extra=-100)
    handler.wfile.write(state.content)


def _wrong(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    page = b"<html>maintenance</html>" * 100
    if (offset := _start(handler, len(page))) >= 0:
        handler.wfile.write(page[offset:])


def _missing(handler: BaseHTTPRequestHandler, state: Mirrors) -> None:
    handler.send_error(404)


BEHAVIOURS: dict[str, Callable[[BaseHTTPRequestHandler, Mirrors], None]] = {
    "good": _good,
    "cut": _cut,
    "stall": _stall,
    "slow": _slow,
    "without-ranges": _without_ranges,
    "too-much": _promises_too_much,
    "too-much-without-ranges": _promises_too_much_without_ranges,
    "too-little": _promises_too_little,
    "wrong": _wrong,
    "missing": _missing,
}

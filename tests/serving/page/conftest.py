"""The page in a real browser, with a real server.

After each test, the page must have had no errors, violated no policy and contacted no other host.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from serving.registry.loader import load_scorer

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, FilePayload, Page, expect  # noqa: E402

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "serving" / "examples"
CAT = EXAMPLES / "cat.jpg"
# A small network that was trained briefly on the sample: it is sure about some images and unsure about most.
MODEL = ROOT / "tests/fixtures/registered_at_00676c6/scorer/artifacts/scorer"
KEY = "a-key-of-some-length"
TIMEOUT_MS = 60_000  # generous, as a machine may be busy

expect.set_options(timeout=TIMEOUT_MS)


class Server:
    """A process of `cifar-mlflow serve`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.request_log = f"sqlite:///{folder / 'requests.db'}"
        self.errors = folder / "server.log"
        command = ["serve", "--port=0", f"--model-uri={MODEL}", f"--request-log={self.request_log}", *options]
        with self.errors.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cifar_mlflow", *command],
                cwd=folder,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.url = self._wait()

    def _wait(self) -> str:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.1)
            lines = [line for line in self.errors.read_text().splitlines() if '"address"' in line]
            with suppress(requests.ConnectionError):  # the address is logged before the server is ready
                for url in (str(json.loads(line)["address"]) for line in lines):
                    requests.get(f"{url}/ready", timeout=60).raise_for_status()
                    return url
        raise AssertionError(f"the server did not start: {self.errors.read_text()}")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process for a while: it accepts connections but does not respond."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


class Photos:
    """Two test images of the sample as PNG files: the model is sure about one and not about the other."""

    def __init__(self, folder: Path, cache: Path) -> None:
        scorer = load_scorer(str(MODEL))
        images = load_dataset(DataConfig(dataset="sample", cache_dir=cache)).split("test").images
        scores = scorer.score(np.ascontiguousarray(images))
        confidence = scores.probabilities.max(axis=1)
        sure = int(np.where(scores.uncertain, -1, confidence).argmax())
        unsure = int(np.where(scores.uncertain, confidence, 2).argmin())
        self.classes = scorer.classes
        self.sure, self.unsure = folder / "sure.png", folder / "unsure.png"
        self.sure_label = scorer.classes[int(scores.probabilities[sure].argmax())]
        self.unsure_label = scorer.classes[int(scores.probabilities[unsure].argmax())]
        self.sure_pixels: np.ndarray = np.asarray(images[sure])
        for index, path in ((sure, self.sure), (unsure, self.unsure)):
            Image.fromarray(images[index]).save(path)
        scorer.close()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Photos:
    return Photos(tmp_path_factory.mktemp("photos"), shared_cache)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with default settings, for most tests."""
    server = Server(tmp_path_factory.mktemp("page-server"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def server_with_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("page-server-with-key"), f"--api-key={KEY}")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a low rate limit and a low limit on the size of requests."""
    server = Server(tmp_path_factory.mktemp("strict-page-server"), "--rate-limit=120", "--max-body-mb=1")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page of a server in a browser with the given properties, and check what the page does."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def open_url(url: str, **properties: Any) -> Page:
        context = browser.new_context(**properties)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda message: problems.extend(_complaints(message)))
        page.on("request", lambda request: problems.extend(_foreign(request.url, url)))
        # Without this, a test may open a file chooser before the browser has been told to report it.
        page.on("filechooser", lambda _: None)
        page.goto(url)
        return page

    yield open_url
    for context in contexts:
        context.close()
    assert not problems


def _complaints(message: ConsoleMessage) -> list[str]:
    # Chromium logs each response with an error status itself; the page shows a message for those.
    by_page = message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")
    return [f"console: {message.text}"] if by_page else []


def _foreign(address: str, url: str) -> list[str]:
    return [] if address.startswith((url, "data:", "blob:")) else [f"request to {address}"]


@pytest.fixture
def page(open_page: Callable[..., Page], server: Server) -> Page:
    page = open_page(server.url)
    expect(page.locator("#about")).to_contain_text("Model")
    return page


def noise(width: int, height: int, kind: str = "JPEG", **options: Any) -> bytes:
    """Return an image that does not compress."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def upload(name: str, content: bytes, kind: str) -> FilePayload:
    """Return a file for Playwright's `set_input_files`."""
    return FilePayload(name=name, mimeType=kind, buffer=content)


# The first bytes of a HEIC photo, a format that phones use.
HEIC = b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(2000)

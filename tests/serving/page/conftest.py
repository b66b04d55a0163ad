"""The page in a real browser, before a real server of a registered model.

Whatever a test does, in the end the page has asked no other host, broken no policy and had no error.
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

from cifar_mlflow import pipeline
from cifar_mlflow.config import RegisterConfig, TrainConfig, validate
from cifar_mlflow.data import load_dataset
from serving.registry.loader import load_scorer
from serving.registry.promotion import promote
from serving.registry.register import register

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, FilePayload, Page, expect  # noqa: E402

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "serving" / "examples"
CAT = EXAMPLES / "cat.jpg"
PATIENCE_MS = 60_000  # a machine may be busy; nothing is measured with it

expect.set_options(timeout=PATIENCE_MS)


class Server:
    """A process of `cifar-mlflow serve`."""

    def __init__(self, folder: Path, store: Path, *options: str) -> None:
        self.request_log = f"sqlite:///{folder / 'requests.db'}"
        self.errors = folder / "server.log"
        command = ["serve", "--port", "0", "--request-log", self.request_log, *options]
        with self.errors.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cifar_mlflow", *command],
                cwd=folder,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{store}"},
            )
        self.url = self._wait()

    def _wait(self) -> str:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.1)
            told = [line for line in self.errors.read_text().splitlines() if '"address"' in line]
            with suppress(requests.ConnectionError):  # the address is told before it is answered at
                for url in (str(json.loads(line)["address"]) for line in told):
                    requests.get(f"{url}/ready", timeout=60).raise_for_status()
                    return url
        raise AssertionError(f"the server did not start: {self.errors.read_text()}")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections, and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def _mlflow_at(store: Path, cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(store.parent)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        patch.setenv("CIFAR_MLFLOW_CACHE", str(cache))
        patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """An MLflow store with a champion: a small network that has learnt a little from the sample."""
    store = tmp_path_factory.mktemp("page-store") / "mlflow.db"
    config = TrainConfig(
        dataset="sample", model="cnn", width=0.25, epochs=2, threads=1, test=False, cache_dir=shared_cache
    )
    with _mlflow_at(store, shared_cache):
        run = pipeline.train(config)
        register(run.run_id, validate(RegisterConfig, {"serve_precision": "fp32"}))
        promote(None, "cifar10")
    return store


class Pictures:
    """Test images of the sample as PNG files: one of which the model is sure, and one of which it is not."""

    def __init__(self, folder: Path, store: Path, cache: Path) -> None:
        with _mlflow_at(store, cache):
            scorer = load_scorer("models:/cifar10@champion")
        images = load_dataset(TrainConfig(dataset="sample", cache_dir=cache)).split("test").images
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
def pictures(tmp_path_factory: pytest.TempPathFactory, store: Path, shared_cache: Path) -> Pictures:
    return Pictures(tmp_path_factory.mktemp("pictures"), store, shared_cache)


@pytest.fixture
def start(tmp_path: Path, store: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server with further options; it is stopped after the test."""
    started = []

    def with_options(*options: str) -> Server:
        started.append(Server(tmp_path, store, *options))
        return started[-1]

    yield with_options
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, store: Path, shared_cache: Path) -> Iterator[Server]:
    """The one that most tests share."""
    with _mlflow_at(store, shared_cache):
        server = Server(tmp_path_factory.mktemp("page-server"), store)
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
    """Opens the page of a server in a browser of these properties, and looks after what it does."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def opened(url: str, **properties: Any) -> Page:
        context = browser.new_context(**properties)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda message: wrong.extend(_complaints(message)))
        page.on("request", lambda request: wrong.extend(_foreign(request.url, url)))
        # Who waits for a chooser may otherwise press the key before the browser is told to report it.
        page.on("filechooser", lambda _: None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def _complaints(message: ConsoleMessage) -> list[str]:
    # Chromium itself notes each answer that is no success; the page says those in words.
    own = message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")
    return [f"console: {message.text}"] if own else []


def _foreign(address: str, url: str) -> list[str]:
    return [] if address.startswith((url, "data:", "blob:")) else [f"request to {address}"]


@pytest.fixture
def page(open_page: Callable[..., Page], server: Server) -> Page:
    page = open_page(server.url)
    expect(page.locator("#about")).to_contain_text("Model cifar10")
    return page


def noise(width: int, height: int, kind: str = "JPEG", **options: Any) -> bytes:
    """A picture that does not compress."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def upload(name: str, content: bytes, kind: str) -> FilePayload:
    """A file as Playwright's `set_input_files` takes it."""
    return FilePayload(name=name, mimeType=kind, buffer=content)


# The first bytes of a photo of a telephone.
HEIC = b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(2000)

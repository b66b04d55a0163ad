"""The page in a real browser, with a real server."""

import io
import json
import os
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
from playwright.sync_api import FilePayload, Page, Route, expect

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from serving.registry.loader import load_scorer

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "serving" / "examples"
CAT = EXAMPLES / "cat.jpg"
# A small network that was trained briefly on the sample: it is sure about some images and unsure about most.
MODEL = ROOT / "tests/fixtures/registered_at_00676c6/scorer/artifacts/scorer"
KEY = "a-key-of-some-length"


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
    """Start a server with default settings, for most tests."""
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
    """Start a server with a low rate limit and a low limit on the size of requests."""
    server = Server(tmp_path_factory.mktemp("strict-page-server"), "--rate-limit=120", "--max-body-mb=1")
    yield server
    server.stop()


@pytest.fixture
def page(open_page: Callable[..., Page], server: Server) -> Page:
    page = open_page(server.url)
    expect(page.locator("#about")).to_contain_text("Model")
    return page


def reload_before_promotion(page: Page, *classes: str) -> None:
    """Load the page while another version is served, which has further classes; then the usual one is."""

    def respond(route: Route) -> None:
        model = route.fetch().json()
        route.fulfill(json=model | {"version": "earlier", "classes": [*model["classes"], *classes]})

    page.route("**/model", respond)
    page.reload()
    expect(page.locator("#knows")).to_contain_text(classes[-1])
    page.unroute("**/model")


def shorten_timeouts(page: Page) -> None:
    """Have requests of the page time out after half a second."""
    page.evaluate(
        """() => {
            const timeout = AbortSignal.timeout.bind(AbortSignal);
            AbortSignal.timeout = () => timeout(500);
        }"""
    )


def refuse_at_first(page: Page, pattern: str, status: int, times: int = 1) -> list[Route]:
    """Answer the first requests as a busy service does; return them, as they come."""
    refused: list[Route] = []

    def respond(route: Route) -> None:
        if len(refused) == times:
            route.continue_()
            return
        refused.append(route)
        error = {"code": "overloaded", "message": "The server has too much to do."}
        route.fulfill(status=status, headers={"Retry-After": "1"}, json={"error": error})

    page.route(pattern, respond)
    return refused


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

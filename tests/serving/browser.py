"""Chromium for the tests of both pages.

After each test, the page must have had no errors, violated no policy and contacted no other host.
"""

import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
TIMEOUT_MS = 60_000  # generous, as a machine may be busy

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
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
    assert problems == []


def _complaints(message: ConsoleMessage) -> list[str]:
    # Chromium logs each response with an error status itself; the page shows a message for those.
    by_page = message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")
    return [f"console: {message.text}"] if by_page else []


def _foreign(address: str, url: str) -> list[str]:
    own = urljoin(url, "/")
    return [] if address.startswith((own, "data:", "blob:")) else [f"request to {address}"]

"""The page works without a connection, can be installed, and talks to no other host."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, Page, expect

from serving.web.bundle import CARD_FILE, HEADER_POLICY, MODEL_FILE, write_bundle
from serving.web.runtime import Runtime
from tests.serving.browser import CHROMIUM, TIMEOUT_MS
from tests.serving.page.conftest import CAT, ROOT
from tests.serving.web.conftest import ANSWERED, Site

pytestmark = pytest.mark.slow


def open_and_wait_until_it_works_offline(open_page: Callable[..., Page], site: Site) -> Page:
    page = open_page(site.url)
    expect(page.locator("#offline")).to_be_visible()
    return page


def test_it_opens_and_classifies_after_the_host_is_gone(open_page: Callable[..., Page], copy: Site) -> None:
    page = open_and_wait_until_it_works_offline(open_page, copy)
    copy.stop()
    page.context.set_offline(True)
    for address in (copy.url, f"{copy.url}index.html", f"{copy.url}?from=home"):
        page.goto(address)
        page.get_by_role("button", name="Example: frog").click()
        expect(page.locator("#timing")).to_have_text(ANSWERED)
    page.set_input_files("#files", [CAT, CAT])
    expect(page.get_by_role("button", name="Download as CSV")).to_be_enabled()


@pytest.mark.thorough
def test_a_new_model_on_the_host_replaces_the_stored_one(
    open_page: Callable[..., Page], copy: Site, runtime: Runtime, tmp_path: Path
) -> None:
    page = open_and_wait_until_it_works_offline(open_page, copy)
    card = json.loads((copy.folder / CARD_FILE).read_text()) | {"version": "2"}
    write_bundle(tmp_path / "next", (copy.folder / MODEL_FILE).read_bytes(), card, runtime)
    copy.folder.rename(tmp_path / "old")
    (tmp_path / "next").rename(copy.folder)
    with page.expect_event("framenavigated"):
        page.reload()  # from the old copy; the browser looks for a new service worker meanwhile
    page.evaluate(
        """async () => {
            const registration = await navigator.serviceWorker.ready;
            await registration.update();
            while (registration.installing || registration.waiting) {
                await new Promise((resolve) => setTimeout(resolve, 50));
            }
        }"""
    )
    page.context.set_offline(True)
    page.reload()

    expect(page.locator("#about")).to_contain_text("version 2")
    assert len(page.evaluate("caches.keys()")) == 1


@pytest.mark.thorough
def test_a_half_done_update_is_not_stored(open_page: Callable[..., Page], copy: Site) -> None:
    page = open_and_wait_until_it_works_offline(open_page, copy)
    with (copy.folder / "files.js").open("a") as file:
        file.write('self.BUNDLE.version = "next"; self.BUNDLE.files["page/main.js"] = "sha256-other";\n')
    page.evaluate("navigator.serviceWorker.ready.then((registration) => registration.update())")
    page.context.set_offline(True)
    page.reload()
    page.set_input_files("#files", CAT)

    expect(page.locator("#timing")).to_have_text(ANSWERED)


@pytest.fixture
def profile(browser: Browser, tmp_path: Path) -> Iterator[BrowserContext]:
    """Start Chromium with a profile on disk: pages cannot be installed from a private window."""
    context = browser.browser_type.launch_persistent_context(
        tmp_path / "profile", executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    yield context
    context.close()


def test_it_can_be_installed(profile: BrowserContext, site: Site) -> None:
    page = profile.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(site.url)
    expect(page.locator("#offline")).to_be_visible()
    devtools = profile.new_cdp_session(page)
    assert devtools.send("Page.getInstallabilityErrors") == {"installabilityErrors": []}
    manifest = json.loads(devtools.send("Page.getAppManifest")["data"])
    for icon in manifest["icons"]:
        assert (site.folder / icon["src"]).is_file()


def policy_of(page: Page) -> str:
    return page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content") or ""


def test_the_policy_in_the_page_is_strict_and_forbids_other_hosts(
    open_page: Callable[..., Page], copy: Site
) -> None:
    headers = requests.get(copy.url, timeout=60).headers
    assert headers["Content-Security-Policy"] == HEADER_POLICY
    page = open_page(copy.url)
    for policy in (policy_of(page), HEADER_POLICY):
        assert policy.startswith("default-src 'none'")
        assert "'unsafe" not in policy
        assert "http" not in policy.replace("http-equiv", "")
        assert "*" not in policy
    assert "wasm" not in policy_of(page)
    for file in copy.folder.rglob("*.*"):
        if file.suffix in (".js", ".html", ".css", ".json", ".webmanifest"):
            assert not re.search(r"https?://(?!www\.w3\.org)", file.read_text()), file.name


@pytest.mark.thorough
def test_the_stored_worker_has_a_policy_even_if_the_host_sends_none(
    open_page: Callable[..., Page], copy: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.web.server.SECURITY_HEADERS", {})
    assert "Content-Security-Policy" not in requests.get(copy.url, timeout=60).headers
    page = open_and_wait_until_it_works_offline(open_page, copy)
    page.reload()
    stored = "fetch('page/worker.js').then((response) => response.headers.get('Content-Security-Policy'))"
    assert page.evaluate(stored) == HEADER_POLICY
    page.set_input_files("#files", CAT)
    expect(page.locator("#timing")).to_have_text(ANSWERED)


def test_the_docs_name_the_headers() -> None:
    assert HEADER_POLICY in (ROOT / "docs" / "web.md").read_text()

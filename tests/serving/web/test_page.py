"""The page of a web folder: the ways to add a photo; parts that need a server are left out."""

import base64
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.serving.page.conftest import CAT
from tests.serving.web.conftest import ANSWERED, Site

pytestmark = pytest.mark.slow


@pytest.fixture
def page(open_page: Callable[..., Page], site: Site) -> Page:
    return open_page(site.url)


def test_the_live_view_follows_the_camera_and_shows_its_rate(page: Page) -> None:
    page.get_by_role("button", name="Live view").click()

    expect(page.locator("#rate")).to_have_text(re.compile(r"^\d+ images per second, \d+ ms each$"))
    bars = page.locator("#live-reading .bars")
    expect(bars.get_by_role("listitem")).to_have_count(10)
    expect(bars).not_to_have_text(bars.inner_text())  # the picture of the fake camera moves
    page.get_by_role("button", name="Take photo").click()
    expect(page.get_by_role("heading", name="photo.jpg")).to_be_visible()
    expect(page.locator("#timing")).to_have_text(ANSWERED)
    expect(page.locator("#video")).to_have_js_property("srcObject", None)  # the camera is off


def test_a_photo_can_be_pasted(page: Page) -> None:
    page.evaluate(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "pasted.jpg", { type: "image/jpeg" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }""",
        base64.b64encode(CAT.read_bytes()).decode(),
    )

    expect(page.get_by_role("heading", name="pasted.jpg")).to_be_visible()
    expect(page.locator("#timing")).to_have_text(ANSWERED)


def test_a_file_that_can_no_longer_be_read_is_reported(page: Page) -> None:
    page.set_input_files("#files", CAT)
    expect(page.locator("#timing")).to_have_text(ANSWERED)
    (worker,) = page.workers
    worker.evaluate(
        """() => {
            const gone = () => Promise.reject(new DOMException("", "NotReadableError"));
            Blob.prototype.arrayBuffer = gone;
        }"""
    )
    page.set_input_files("#files", CAT)

    detail = page.locator("#reading .detail")
    expect(detail).to_have_text("The browser can no longer read this file. Choose it again.")


def test_nothing_is_left_that_needs_a_server(page: Page, site: Site) -> None:
    page.set_input_files("#files", CAT)
    expect(page.locator("#timing")).to_have_text(ANSWERED)

    expect(page.get_by_text("HTTP API")).to_have_count(0)
    expect(page.get_by_role("button", name="Wrong")).to_have_count(0)
    expect(page.locator("dialog")).to_have_count(0)
    expect(page.get_by_text("Photos stay on this device.")).to_be_visible()


def test_a_missing_network_is_reported(open_page: Callable[..., Page], copy: Site) -> None:
    (copy.folder / "model" / "model.onnx").write_bytes(b"not a network")
    page = open_page(copy.url)
    page.set_input_files("#files", CAT)

    expect(page.locator("#reading .verdict")).to_have_text("No answer")
    detail = page.locator("#reading .detail")
    expect(detail).to_contain_text("The network cannot be loaded")
    expect(detail).to_contain_text("Reload the page to try again")


def test_a_page_in_place_of_the_model_s_description_is_reported(
    open_page: Callable[..., Page], copy: Site
) -> None:
    (copy.folder / "model" / "model.json").write_text("<!doctype html>")
    page = open_page(copy.url)

    expect(page.get_by_role("alert")).to_contain_text("model/model.json is missing")

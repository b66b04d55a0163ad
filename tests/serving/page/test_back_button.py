"""The back button of the browser closes what is open before it leaves the page."""

import re
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from playwright.sync_api import Error, Page, expect

from tests.serving.page.conftest import Photos, Server

pytestmark = pytest.mark.slow


def wait_until_nothing_is_open(page: Page) -> None:
    """Wait until the browser has left the entries of closed views."""
    deadline = time.monotonic() + 30
    # `wait_for_function` would need eval, which the page's policy forbids.
    while True:
        with suppress(Error):  # the page is just being left
            if page.evaluate("history.state") is None:
                return
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def expect_to_leave(page: Page) -> None:
    page.go_back()
    assert page.url == "about:blank"


def test_it_closes_the_newest_view_first(page: Page, photos: Photos) -> None:
    page.set_input_files("#files", [photos.sure, photos.unsure])
    grid = page.get_by_role("heading", name="2 photos: 1 sure, 1 not sure", exact=True)
    expect(grid).to_be_visible()
    card = page.get_by_title("sure.png", exact=True)
    card.click()
    expect(page.get_by_role("heading", name="sure.png")).to_be_visible()
    page.go_back()
    expect(grid).to_be_visible()
    expect(card).to_be_focused()

    card.click()
    page.get_by_role("button", name="Live view").click()  # in place of the photo
    expect(page.locator("#rate")).to_contain_text("per second")
    page.get_by_role("button", name="About the model").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.go_back()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("heading", name="Camera")).to_be_visible()
    page.go_back()
    expect(grid).to_be_visible()
    expect(page.locator("#video")).to_have_js_property("srcObject", None)  # the camera is off
    expect_to_leave(page)


def test_going_back_by_two_entries_closes_two_views(page: Page) -> None:
    """As from the list that a long press of the button shows."""
    page.get_by_role("button", name="Live view").click()
    expect(page.locator("#rate")).to_contain_text("per second")  # from now on, the page does not move
    page.get_by_role("button", name="About the model").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.evaluate("history.go(-2)")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("heading", name="Camera")).to_be_hidden()
    expect_to_leave(page)


def test_views_that_were_closed_in_another_way_need_no_going_back(page: Page, photos: Photos) -> None:
    page.get_by_role("button", name="About the model").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    wait_until_nothing_is_open(page)
    page.set_input_files("#files", [photos.sure, photos.unsure])
    page.get_by_title("sure.png", exact=True).click()
    page.get_by_role("button", name="Back to all photos").click()
    wait_until_nothing_is_open(page)
    page.get_by_title("sure.png", exact=True).click()
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("button", name="Live view").click()
    page.get_by_role("button", name="Close").click()
    wait_until_nothing_is_open(page)
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("link", name="Skip to the answer").press("Enter")
    expect(page.get_by_role("region", name="Answer")).to_be_focused()
    expect(page.get_by_role("heading", name="Camera")).to_be_visible()
    page.get_by_role("button", name="Example: dog").click()
    expect(page.get_by_role("heading", name="dog.png")).to_be_visible()
    wait_until_nothing_is_open(page)
    expect_to_leave(page)


def test_forward_and_reload_show_the_plain_page(page: Page) -> None:
    url = page.url
    about = page.get_by_role("button", name="About the model")
    dialog = page.get_by_role("dialog")
    about.click()
    expect(dialog).to_be_visible()
    page.go_back()
    page.go_forward()
    expect(dialog).to_be_hidden()
    about.click()
    expect(dialog).to_be_visible()
    page.reload()
    wait_until_nothing_is_open(page)
    expect(dialog).to_be_hidden()
    expect(page.locator("#about")).to_contain_text("Model")

    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("link", name="HTTP API").click()
    page.wait_for_url("**/docs")
    page.go_back()
    wait_until_nothing_is_open(page)
    expect(page.get_by_role("heading", name="Camera")).to_be_hidden()
    page.go_forward()
    page.go_forward()
    assert page.url == f"{url}docs"
    for _ in range(2):
        page.go_back()
    wait_until_nothing_is_open(page)
    expect_to_leave(page)


def test_on_a_phone_a_photo_taken_with_the_camera_stays_in_view(
    open_page: Callable[..., Page], server: Server
) -> None:
    """Closing the camera goes back in the history, for which a browser would scroll to where it was."""
    page = open_page(server.url, viewport={"width": 390, "height": 700}, is_mobile=True, has_touch=True)
    page.get_by_role("button", name="Take a photo").tap()
    expect(page.get_by_label("Camera picture")).not_to_have_js_property("videoWidth", 0)
    page.get_by_role("button", name="Take photo").tap()
    wait_until_nothing_is_open(page)
    expect(page.locator("#timing")).to_have_text(re.compile("Answered in"))
    expect(page.locator("#reading .verdict")).to_be_in_viewport()


def test_it_closes_the_dialog_that_asks_for_the_key(
    server_with_key: Server, open_page: Callable[..., Page]
) -> None:
    page = open_page(server_with_key.url)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("alert")).to_contain_text("This service requires an API key.")
    expect_to_leave(page)

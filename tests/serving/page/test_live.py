"""The live view: quick where the server is, and never a queue where it is not."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Request, expect

from tests.serving.page.conftest import Server

pytestmark = pytest.mark.slow

FRAMES = 30  # enough for what piles up to be seen


class Traffic:
    """The requests of the live view, as the browser counts them."""

    def __init__(self, page: Page) -> None:
        self.sent = self.under_way = self.most = 0
        self.requests: list[Request] = []
        page.on("request", self._begin)
        page.on("requestfinished", self._end)
        page.on("requestfailed", self._end)

    def _begin(self, request: Request) -> None:
        if "/predict" in request.url:
            self.sent += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.requests.append(request)

    def _end(self, request: Request) -> None:
        self.under_way -= "/predict" in request.url


def look(page: Page) -> None:
    page.get_by_role("button", name="Live view").click()
    expect(page.locator("#live-reading .verdict")).not_to_have_text(re.compile("^…?$"))


def test_it_classifies_ten_times_a_second_and_shows_the_rate(page: Page) -> None:
    look(page)

    expect(page.locator("#rate")).to_have_text(re.compile(r"^[1-9]\d pictures a second, \d+ ms each$"))
    expect(page.locator("#live-reading").get_by_role("listitem")).to_have_count(10)
    # The picture of the fake camera turns, and so do the probabilities.
    shares = page.locator("#live-reading .bars")
    before = shares.inner_text()
    expect(shares).not_to_have_text(before)


def test_the_bars_keep_their_places(page: Page) -> None:
    look(page)
    names = page.locator("#live-reading .name")
    expect(names).to_have_count(10)
    assert names.all_inner_texts() == sorted(names.all_inner_texts())


def test_frames_are_small_and_at_most_two_are_on_their_way(page: Page) -> None:
    traffic = Traffic(page)
    look(page)
    while traffic.sent < FRAMES:
        page.wait_for_timeout(100)

    assert traffic.most <= 2
    sizes = [int(request.all_headers()["content-length"]) for request in traffic.requests[:FRAMES]]
    assert 0 < max(sizes) < 16_000


def test_a_slow_way_to_the_server_makes_no_queue(page: Page) -> None:
    """With half a second each way, two at a time are four a second: the other frames are dropped."""
    slow = {"offline": False, "latency": 500, "downloadThroughput": -1, "uploadThroughput": -1}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    traffic = Traffic(page)
    look(page)
    while traffic.sent < FRAMES // 3:
        page.wait_for_timeout(100)

    assert traffic.most <= 2
    expect(page.locator("#rate")).to_have_text(re.compile(r"^\d pictures a second, \d{3,} ms each$"))


def test_a_server_that_stands_still_gets_no_more_than_two(page: Page, server: Server) -> None:
    look(page)
    traffic = Traffic(page)
    with server.frozen():
        page.wait_for_timeout(2000)
        stuck = traffic.sent
        page.wait_for_timeout(1000)
        assert traffic.sent == stuck

    expect(page.locator("#rate")).to_have_text(re.compile(r"^[1-9]\d pictures a second"))


def test_it_is_switched_off_and_on_and_closed(page: Page) -> None:
    look(page)
    toggle = page.get_by_role("button", name="Live", exact=True)
    expect(toggle).to_have_attribute("aria-pressed", "true")
    toggle.click()
    expect(toggle).to_have_attribute("aria-pressed", "false")
    traffic = Traffic(page)
    page.wait_for_timeout(500)
    assert traffic.sent == 0
    toggle.click()
    expect(page.locator("#rate")).to_contain_text("a second")

    page.get_by_role("button", name="Close").click()
    video = page.locator("#video")
    expect(video).to_have_js_property("srcObject", None)  # the camera is off
    expect(page.get_by_role("button", name="Take a photo")).to_be_focused()


def test_another_picture_ends_it(page: Page) -> None:
    look(page)
    page.get_by_role("button", name="Example: dog").click()

    expect(page.get_by_role("heading", name="dog.png")).to_be_visible()
    expect(page.locator("#video")).to_have_js_property("srcObject", None)


def test_a_rate_limit_is_told_and_kept(start: Callable[..., Server], open_page: Callable[..., Page]) -> None:
    page = open_page(start("--rate-limit", "600").url)
    page.get_by_role("button", name="Live view").click()

    expect(page.get_by_role("alert")).to_contain_text("600 requests a minute")
    expect(page.locator("#live-reading .verdict")).not_to_have_text(re.compile("^…?$"))


def test_a_server_that_is_gone_stops_it_with_words(
    start: Callable[..., Server], open_page: Callable[..., Page]
) -> None:
    server = start()
    page = open_page(server.url)
    look(page)
    server.stop()

    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    expect(page.get_by_role("button", name="Live", exact=True)).to_have_attribute("aria-pressed", "false")

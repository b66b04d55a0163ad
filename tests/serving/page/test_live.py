"""The live view classifies the camera's picture continuously and never builds up a queue."""

import itertools
import re
from collections.abc import Callable

import pytest
import requests
from playwright.sync_api import Page, Request, Route, expect

from tests.serving.page.conftest import Photos, Server, shorten_timeouts

pytestmark = pytest.mark.slow

FRAMES = 10  # enough to see a queue build up


class Traffic:
    """The requests for predictions, as the browser counts them."""

    def __init__(self, page: Page) -> None:
        self.in_flight = self.max_in_flight = 0
        self.requests: list[Request] = []
        page.on("request", self._begin)
        page.on("requestfinished", self._end)
        page.on("requestfailed", self._end)

    def _begin(self, request: Request) -> None:
        if "/predict" in request.url:
            self.requests.append(request)
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def _end(self, request: Request) -> None:
        self.in_flight -= "/predict" in request.url

    def wait_for_more(self, page: Page, requests: int = FRAMES) -> None:
        enough = len(self.requests) + requests
        while len(self.requests) < enough:
            with page.expect_request("**/predict*"):
                pass


class HeldRequests:
    """Requests for predictions that the browser keeps back until the test lets them go."""

    def __init__(self, page: Page) -> None:
        self.routes: list[Route] = []
        self._released = False
        page.route("**/predict*", self._handle)

    def _handle(self, route: Route) -> None:
        if self._released:
            route.continue_()
        else:
            self.routes.append(route)

    def wait_for_two(self, page: Page) -> None:
        """Wait until two are held: before that, the browser had others in flight."""
        while len(self.routes) < 2:
            watch_frames(page, 1)

    def release(self) -> None:
        self._released = True
        for route in self.routes:
            route.continue_()


def start_live_view(page: Page) -> None:
    page.get_by_role("button", name="Live view").click()
    expect(page.locator("#live-reading .verdict")).not_to_have_text(re.compile("^…?$"))


def watch_frames(page: Page, number: int) -> None:
    """Wait until the camera has shown a number of further frames."""
    page.evaluate(
        """(number) => new Promise((resolve) => {
            const video = document.getElementById("video");
            const count = () => (number-- ? video.requestVideoFrameCallback(count) : resolve());
            count();
        })""",
        number,
    )


def test_it_shows_probabilities_that_follow_the_picture_and_its_rate(page: Page) -> None:
    start_live_view(page)

    expect(page.locator("#rate")).to_have_text(re.compile(r"^\d+ images per second, \d+ ms each$"))
    bars = page.locator("#live-reading .bars")
    expect(bars.get_by_role("listitem")).to_have_count(10)
    # The picture of the fake camera rotates, so the probabilities change.
    expect(bars).not_to_have_text(bars.inner_text())


def test_the_bars_stay_in_the_order_of_the_classes(page: Page) -> None:
    start_live_view(page)
    names = page.locator("#live-reading .name")
    expect(names).to_have_count(10)
    assert names.all_inner_texts() == sorted(names.all_inner_texts())


def test_frames_are_small_and_at_most_two_are_in_flight(page: Page) -> None:
    traffic = Traffic(page)
    start_live_view(page)
    traffic.wait_for_more(page)

    assert traffic.max_in_flight <= 2
    sizes = [int(request.all_headers()["content-length"]) for request in traffic.requests]
    assert 0 < max(sizes) < 16_000


def test_frames_are_marked_and_photos_are_not(page: Page, photos: Photos) -> None:
    traffic = Traffic(page)
    start_live_view(page)
    traffic.wait_for_more(page, 2)
    assert {request.headers.get("x-live-frame") for request in traffic.requests} == {"1"}
    page.get_by_role("button", name="Live", exact=True).click()
    with page.expect_request("**/predict*") as photo:
        page.set_input_files("#files", photos.sure)
    assert "x-live-frame" not in photo.value.headers


def test_frames_are_dropped_while_two_requests_have_no_response(page: Page) -> None:
    start_live_view(page)
    held = HeldRequests(page)
    held.wait_for_two(page)
    watch_frames(page, 4 * FRAMES)
    assert len(held.routes) == 2

    traffic = Traffic(page)
    held.release()
    traffic.wait_for_more(page)


def test_an_older_answer_does_not_replace_a_newer_one(page: Page) -> None:
    start_live_view(page)
    held = HeldRequests(page)
    held.wait_for_two(page)
    older, newer = held.routes
    answer = newer.fetch()
    body = answer.json()
    shown = page.locator("#live-reading .bars li.best .name")
    for route, label in ((newer, "newer"), (older, "older")):
        top_k = [{"label": label, "confidence": 1.0}]
        body["predictions"][0] |= {"label": label, "uncertain": False, "top_k": top_k}
        with page.expect_request("**/predict*"):  # sent when the answer has been handled
            route.fulfill(response=answer, json=body)
        expect(shown).to_have_text("newer")


def test_a_screen_reader_hears_only_predictions_that_stay(page: Page, server: Server, photos: Photos) -> None:
    model = requests.get(f"{server.url}/model", timeout=60).json()
    first, second, steady = photos.classes[:3]
    labels = itertools.chain([first, second] * FRAMES, itertools.repeat(steady))

    def respond(route: Route) -> None:
        label = next(labels)
        scores = {"label": label, "confidence": 0.9}
        prediction = scores | {"uncertain": False, "top_k": [scores], "input": ""}
        route.fulfill(json={"request_id": "1", "model": model, "predictions": [prediction], "timings_ms": {}})

    page.route("**/predict*", respond)
    page.evaluate(
        """() => {
            window.announced = [];
            const status = document.getElementById("say");
            const note = () => window.announced.push(status.textContent);
            new MutationObserver(note).observe(status, { childList: true });
        }"""
    )
    page.get_by_role("button", name="Live view").click()
    expect(page.get_by_role("status")).to_have_text(f"{steady}, 90%.")
    watch_frames(page, 2 * FRAMES)
    assert page.evaluate("announced") == [f"{steady}, 90%."]


def test_it_can_be_switched_off_and_on_and_closed(page: Page) -> None:
    start_live_view(page)
    toggle = page.get_by_role("button", name="Live", exact=True)
    expect(toggle).to_have_attribute("aria-pressed", "true")
    toggle.click()
    expect(toggle).to_have_attribute("aria-pressed", "false")
    traffic = Traffic(page)
    watch_frames(page, FRAMES)
    assert not traffic.requests
    toggle.click()
    expect(page.locator("#rate")).to_contain_text("per second")

    page.get_by_role("button", name="Close").click()
    video = page.locator("#video")
    expect(video).to_have_js_property("srcObject", None)  # the camera is off
    expect(page.get_by_role("button", name="Take a photo")).to_be_focused()


def test_it_takes_no_photo_that_was_asked_for_before_the_camera_was_closed(page: Page) -> None:
    page.evaluate(
        """() => {
            const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
            devices.getUserMedia = () => {
                devices.getUserMedia = open;
                return new Promise(() => {}); // the user does not answer the browser's question
            };
        }"""
    )
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("button", name="Take photo").click()
    page.get_by_role("button", name="Close").click()
    traffic = Traffic(page)
    start_live_view(page)
    traffic.wait_for_more(page)

    assert {request.headers.get("x-live-frame") for request in traffic.requests} == {"1"}
    expect(page.get_by_role("heading", name="Camera")).to_be_visible()


def test_choosing_a_photo_ends_it(page: Page) -> None:
    start_live_view(page)
    page.get_by_role("button", name="Example: dog").click()

    expect(page.get_by_role("heading", name="dog.png")).to_be_visible()
    expect(page.locator("#video")).to_have_js_property("srcObject", None)


def test_a_camera_that_is_unplugged_is_reported(page: Page) -> None:
    start_live_view(page)
    page.evaluate(
        """() => {
            const [track] = document.getElementById("video").srcObject.getTracks();
            track.dispatchEvent(new Event("ended"));
        }"""
    )

    expect(page.get_by_role("alert")).to_contain_text("The camera has stopped")
    expect(page.get_by_role("heading", name="Camera")).to_be_hidden()
    expect(page.locator("#video")).to_have_js_property("srcObject", None)
    expect(page.get_by_role("button", name="Take a photo")).to_be_focused()


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"deviceId": "one"}, {"deviceId": {"exact": "two"}}),
        ({"deviceId": "two"}, {"deviceId": {"exact": "one"}}),
        ({"deviceId": "one", "facingMode": "environment"}, {"facingMode": "user"}),
    ],
    ids=["computer", "last of a computer", "phone"],
)
def test_the_other_camera_is_the_next_of_a_computer_or_on_the_other_side_of_a_phone(
    page: Page, settings: dict[str, str], asked: dict[str, object]
) -> None:
    page.evaluate(
        """(settings) => {
            const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
            window.asked = [];
            devices.getUserMedia = ({ video: { width, height, ...choice } }) => {
                window.asked.push(choice);
                return open({ video: true });
            };
            devices.enumerateDevices = async () =>
                ["one", "two"].map((deviceId) => ({ kind: "videoinput", deviceId }));
            MediaStreamTrack.prototype.getSettings = () => settings;
        }""",
        settings,
    )
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("button", name="Switch camera").click()

    assert page.evaluate("asked") == [{"facingMode": "environment"}, asked]
    expect(page.get_by_label("Camera picture")).to_have_js_property("paused", False)


def test_it_pauses_when_the_rate_limit_is_reached(
    strict_server: Server, open_page: Callable[..., Page]
) -> None:
    page = open_page(strict_server.url)
    page.get_by_role("button", name="Live view").click()

    expect(page.get_by_role("alert")).to_contain_text("120 requests")
    expect(page.locator("#live-reading .verdict")).not_to_have_text(re.compile("^…?$"))


def test_it_stops_with_a_message_when_the_server_cannot_be_reached(page: Page) -> None:
    start_live_view(page)
    page.context.set_offline(True)

    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    expect(page.get_by_role("button", name="Live", exact=True)).to_have_attribute("aria-pressed", "false")


def test_it_stops_with_a_message_when_the_connection_brings_no_answers(page: Page, server: Server) -> None:
    start_live_view(page)
    shorten_timeouts(page)
    with server.frozen():
        expect(page.get_by_role("alert")).to_contain_text("There was no answer within 10 seconds.")
        live = page.get_by_role("button", name="Live", exact=True)
        expect(live).to_have_attribute("aria-pressed", "false")


def test_pauses_that_follow_each_other_are_announced_once(page: Page) -> None:
    answers = itertools.cycle([True, True, False])
    refused: list[Route] = []

    def respond(route: Route) -> None:
        if next(answers):
            route.continue_()
            return
        refused.append(route)
        error = {"code": "too_many_requests", "message": "Too many requests."}
        route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": error})

    page.route("**/predict*", respond)
    page.evaluate(
        """() => {
            window.changes = [];
            const notice = document.getElementById("notice");
            const note = () => notice.hidden || window.changes.push(notice.textContent);
            new MutationObserver(note).observe(notice, { attributeFilter: ["hidden"], childList: true });
        }"""
    )
    page.get_by_role("button", name="Live view").click()
    while len(refused) < 3:
        with page.expect_response("**/predict*"):
            pass
    assert page.evaluate("changes") == ["Too many requests."]


def test_it_stops_with_a_message_when_the_model_that_answers_cannot_be_described(
    page: Page, server: Server
) -> None:
    model = requests.get(f"{server.url}/model", timeout=60).json() | {"version": "next"}
    scores = {"label": "cat", "confidence": 0.9}
    prediction = scores | {"uncertain": False, "top_k": [scores], "input": ""}
    answer = {"request_id": "1", "model": model, "predictions": [prediction], "timings_ms": {}}
    start_live_view(page)
    # Once: if the next frame failed, too, that would show the message.
    page.route("**/model", lambda route: route.abort(), times=1)
    page.route("**/predict*", lambda route: route.fulfill(json=answer))

    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    expect(page.get_by_role("button", name="Live", exact=True)).to_have_attribute("aria-pressed", "false")

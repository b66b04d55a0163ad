"""One photo: the ways to add it, and its prediction."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image, features
from playwright.sync_api import Page, Route, expect

from tests.scorer_folders import CLASS_MAP, write_scorer_folder
from tests.serving.page.conftest import (
    CAT,
    HEIC,
    Photos,
    Server,
    noise,
    refuse_at_first,
    reload_before_promotion,
    shorten_timeouts,
    upload,
)

pytestmark = pytest.mark.slow

ANSWERED = re.compile(r"Answered in \d+ ms")


def expect_answer(page: Page) -> None:
    expect(page.locator("#timing")).to_have_text(ANSWERED)


def test_a_chosen_photo_gets_a_class_bars_and_a_time(page: Page, photos: Photos) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose photos").click()
    chooser.value.set_files(photos.sure)

    expect_answer(page)
    expect(page.locator("#reading .verdict")).to_have_text(photos.sure_label)
    expect(page.locator("#reading .detail")).to_have_text(re.compile(r"^>?\d+% sure$"))
    expect(page.get_by_role("status")).to_contain_text(photos.sure_label)
    expect(page.get_by_alt_text("Your photo, sure.png")).to_be_visible()

    bars = page.get_by_role("list", name="Probability of each class").get_by_role("listitem")
    expect(bars).to_have_count(10)
    assert sorted(bars.locator(".name").all_inner_texts()) == sorted(photos.classes)
    shares = [float(bar.evaluate("bar => bar.style.getPropertyValue('--share')")) for bar in bars.all()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    track = bars.first.locator(".track")
    drawn = track.evaluate("track => new DOMMatrix(getComputedStyle(track, '::before').transform).e")
    width = track.evaluate("track => track.clientWidth")
    assert 1 + drawn / width == pytest.approx(shares[0], abs=0.2)  # the bar may still be growing


def test_on_a_phone_everything_to_tap_is_large_enough_for_a_finger(page: Page, photos: Photos) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    targets = page.locator("button, a:not(.skip), select").locator("visible=true")

    def too_small() -> list[str]:
        boxes = [(target.inner_text(), target.bounding_box()) for target in targets.all()]
        return [f"{text}: {box}" for text, box in boxes if box and min(box["width"], box["height"]) < 44]

    assert too_small() == []
    page.set_input_files("#files", photos.sure)
    page.get_by_role("button", name="Wrong").click()
    expect(page.get_by_role("button", name="something else")).to_be_visible()
    assert too_small() == []
    page.set_input_files("#files", [photos.sure, photos.unsure])
    expect(page.get_by_role("combobox")).to_have_count(2)
    assert too_small() == []
    page.get_by_role("button", name="About the model").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert too_small() == []


def test_the_input_of_the_network_is_shown(page: Page, photos: Photos) -> None:
    page.set_input_files("#files", photos.sure)

    seen = page.get_by_alt_text("The same in 32 by 32 pixels, as the network sees it")
    expect(seen).to_be_visible()
    data = (seen.get_attribute("src") or "").removeprefix("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(pixels, photos.sure_pixels)
    assert seen.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


def test_the_network_s_view_can_show_what_decided(
    open_page: Callable[..., Page], photos: Photos, tmp_path: Path
) -> None:
    model = write_scorer_folder(tmp_path / "model", class_map=CLASS_MAP)
    server = Server(tmp_path, f"--model-uri={model}")
    try:
        page = open_page(server.url)
        page.set_input_files("#files", photos.sure)
        plain = page.get_by_alt_text("The same in 32 by 32 pixels, as the network sees it", exact=True)
        expect(plain).to_be_visible()
        source = plain.get_attribute("src")
        page.get_by_role("button", name="Show explanation").click()
        explained = page.get_by_alt_text(
            re.compile("Red parts speak for (red|green|blue), blue parts against it")
        )
        expect(explained).to_be_visible()
        assert explained.get_attribute("src") != source
        page.get_by_role("button", name="Hide explanation").click()
        expect(plain).to_have_attribute("src", source or "")
        page.set_viewport_size({"width": 390, "height": 900})
        button = page.get_by_role("button", name="Show explanation").bounding_box()
        pictures = page.locator(".pictures").bounding_box()
        assert button
        assert pictures
        assert button["width"] == pictures["width"]  # no hole below the other picture
    finally:
        server.stop()


def test_a_model_that_gives_no_maps_has_no_button_for_them(page: Page, photos: Photos) -> None:
    page.set_input_files("#files", photos.sure)

    expect_answer(page)
    expect(page.get_by_role("button", name="Show explanation")).to_have_count(0)


def test_an_uncertain_prediction_is_shown_as_not_sure_with_the_reason(page: Page, photos: Photos) -> None:
    page.set_input_files("#files", photos.unsure)

    expect(page.locator("#reading .verdict")).to_have_text("Not sure")
    expect(page.locator("#reading .detail")).to_have_text(
        re.compile(
            rf"^The closest match is {photos.unsure_label} \(\d+%\)\. "
            r"Below \d+%, the model is wrong too often\.$"
        )
    )
    expect(page.get_by_role("status")).to_contain_text(f"Not sure. Perhaps {photos.unsure_label}")


def test_a_photo_can_be_dropped_anywhere_on_the_page(page: Page) -> None:
    data = base64.b64encode(CAT.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """data => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            transfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
            return transfer;
        }""",
        data,
    )
    page.dispatch_event("footer", "dragover", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_have_class(re.compile("over"))
    page.dispatch_event("footer", "drop", {"dataTransfer": transfer})

    expect_answer(page)
    expect(page.get_by_role("heading", name="dropped.jpg")).to_be_visible()
    expect(page.locator("#drop")).not_to_have_class(re.compile("over"))


def test_a_dropped_link_is_refused_with_a_message(page: Page) -> None:
    transfer = page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer();
            transfer.setData("text/uri-list", "http://example.org/cat.jpg");
            return transfer;
        }"""
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})

    expect(page.get_by_role("alert")).to_contain_text("not a file")


def test_an_image_can_be_pasted(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 40 });
            canvas.getContext("2d").fillRect(10, 10, 20, 20);
            const blob = await new Promise((resolve) => canvas.toBlob(resolve));
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }"""
    )
    page.keyboard.press("Control+V")

    expect_answer(page)


def test_a_photo_can_be_taken_with_the_camera(page: Page) -> None:
    page.get_by_role("button", name="Take a photo").click()
    video = page.get_by_label("Camera picture")
    # Its first picture changes its height, and a button that moves during the click is not clicked.
    expect(video).not_to_have_js_property("videoWidth", 0)
    page.get_by_role("button", name="Take photo").click()

    expect_answer(page)
    expect(video).to_have_js_property("srcObject", None)  # the camera is off
    photo = page.get_by_alt_text("Your photo, photo.jpg")
    assert photo.evaluate("image => image.naturalWidth") >= 640
    expect(page.get_by_role("heading", name="photo.jpg")).to_be_focused()  # the focused button is hidden now


def test_a_camera_that_gives_no_picture_is_reported(page: Page) -> None:
    page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = (done) => done(null); }")
    page.get_by_role("button", name="Take a photo").click()
    expect(page.get_by_label("Camera picture")).not_to_have_js_property("videoWidth", 0)
    page.get_by_role("button", name="Take photo").click()

    expect(page.get_by_role("alert")).to_have_text("The camera returned no picture.")


def test_a_missing_camera_is_reported(page: Page) -> None:
    page.evaluate(
        """() => {
            const none = () => Promise.reject(new DOMException("", "NotFoundError"));
            navigator.mediaDevices.getUserMedia = none;
        }"""
    )
    page.get_by_role("button", name="Take a photo").click()

    expect(page.get_by_role("alert")).to_have_text("No camera was found.")
    expect(page.get_by_role("button", name="Take a photo")).to_be_focused()


def test_a_camera_that_is_closed_while_the_server_is_slow_stays_off(page: Page) -> None:
    held: list[Route] = []
    page.route("**/model", lambda route: held.append(route))
    page.reload()
    page.evaluate(
        """() => {
            const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
            window.openings = 0;
            devices.getUserMedia = (wanted) => { window.openings++; return open(wanted); };
        }"""
    )
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("button", name="Close").click()
    held[0].continue_()
    expect(page.locator("#about")).to_contain_text("Model")  # the page has waited for the same response

    assert page.evaluate("openings") == 0
    page.get_by_role("button", name="Take a photo").click()
    expect(page.get_by_label("Camera picture")).to_have_js_property("paused", False)
    assert page.evaluate("openings") == 1


@pytest.mark.parametrize("reason", ["NotAllowedError", "AbortError"])
def test_a_camera_that_is_denied_after_a_photo_was_chosen_does_not_replace_the_answer(
    page: Page, reason: str
) -> None:
    page.evaluate(
        """(reason) => {
            navigator.mediaDevices.getUserMedia = () => new Promise((_, reject) => {
                window.deny = () => reject(new DOMException("", reason));
            });
        }""",
        reason,
    )
    page.get_by_role("button", name="Take a photo").click()
    expect(page.get_by_role("heading", name="Camera")).to_be_visible()
    page.get_by_role("button", name="Example: dog").click()
    expect_answer(page)
    page.evaluate("deny()")

    expect(page.get_by_role("heading", name="dog.png")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_example_can_be_clicked(page: Page) -> None:
    examples = page.get_by_role("list", name="Or try one of these").get_by_role("button")
    expect(examples).to_have_count(10)
    page.get_by_role("button", name="Example: frog").click()

    expect_answer(page)
    expect(page.get_by_role("heading", name="frog.png")).to_be_visible()


def test_an_example_that_the_server_does_not_have_is_reported(page: Page) -> None:
    page.route("**/page/examples/dog.png", lambda route: route.fulfill(status=404, body="gone"))
    page.get_by_role("button", name="Example: dog").click()

    expect(page.get_by_role("alert")).to_contain_text("The example could not be loaded")
    expect(page.get_by_role("heading", name="dog.png")).to_have_count(0)


def test_a_slow_example_does_not_replace_a_photo_that_was_chosen_after_it(page: Page, photos: Photos) -> None:
    held: list[Route] = []
    page.route("**/page/examples/dog.png", lambda route: held.append(route))
    with page.expect_request("**/page/examples/dog.png"):
        page.get_by_role("button", name="Example: dog").click()
    with page.expect_event("requestfailed", lambda request: request.url.endswith("dog.png")):
        page.set_input_files("#files", photos.sure)

    expect_answer(page)
    expect(page.get_by_role("heading", name="sure.png", exact=True)).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_photo_of_twelve_megapixels_is_sent_unchanged(page: Page) -> None:
    large = noise(4000, 3000, quality=70)
    assert len(large) > 5 * 2**20
    page.set_input_files("#files", upload("large.jpg", large, "image/jpeg"))

    expect_answer(page)


def test_avif_is_converted_in_the_browser(page: Page, photos: Photos) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    file = io.BytesIO()
    Image.fromarray(photos.sure_pixels).resize((3000, 1500)).save(file, "AVIF")
    with page.expect_request("**/predict*") as sent:
        page.set_input_files("#files", upload("photo.avif", file.getvalue(), "image/avif"))
    expect_answer(page)
    expect(page.get_by_role("heading", name="photo.avif")).to_be_visible()
    assert sent.value.headers["content-type"] == "image/jpeg"
    seen = page.get_by_alt_text("The same in 32 by 32 pixels, as the network sees it")
    data = (seen.get_attribute("src") or "").removeprefix("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    # The square in the middle, twice as wide as it was.
    square = Image.fromarray(photos.sure_pixels).resize((64, 32)).crop((16, 0, 48, 32))
    assert np.abs(pixels - np.asarray(square)).mean() < 8


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("photo.heic", HEIC, "image/heic", "HEIC"),
        ("notes.pdf", b"%PDF-1.7" + bytes(200), "application/pdf", "PDF"),
        ("song.mp3", b"no picture at all", "audio/mpeg", "not a picture"),
        ("cut.jpg", CAT.read_bytes()[:9000], "image/jpeg", "cut short, damaged"),
        ("empty.png", b"", "image/png", "empty"),
    ],
)
def test_a_file_that_cannot_be_classified_gets_the_error_of_the_server(
    page: Page, name: str, content: bytes, kind: str, words: str
) -> None:
    page.set_input_files("#files", upload(name, content, kind))

    expect(page.locator("#reading .verdict")).to_have_text("No answer")
    expect(page.locator("#reading .detail")).to_contain_text(words)
    expect(page.get_by_role("status")).to_contain_text(words)
    expect(page.get_by_role("button", name="Wrong")).to_have_count(0)


def test_a_file_that_is_too_large_gets_the_error_of_the_server(
    strict_server: Server, open_page: Callable[..., Page]
) -> None:
    page = open_page(strict_server.url)
    page.set_input_files("#files", upload("huge.png", noise(1000, 700, "PNG"), "image/png"))

    expect(page.locator("#reading .detail")).to_contain_text(re.compile(r"\b1 MB\b"))


def test_a_server_that_is_gone_is_reported(page: Page, photos: Photos) -> None:
    page.context.set_offline(True)
    page.set_input_files("#files", photos.sure)

    expect(page.locator("#reading .detail")).to_contain_text("The service does not answer")


@pytest.mark.parametrize("body", ["<!doctype html><title>Sign in</title>", '{"request_id": "5b'])
def test_an_answer_of_a_captive_portal_or_one_that_was_cut_off_is_reported(
    page: Page, photos: Photos, body: str
) -> None:
    page.route("**/predict*", lambda route: route.fulfill(status=200, body=body))
    page.set_input_files("#files", photos.sure)

    detail = page.locator("#reading .detail")
    expect(detail).to_contain_text("The answer did not come from the service, or was cut off.")
    expect(detail).to_contain_text("try again")


def test_a_connection_that_brings_no_answer_is_given_up(page: Page, server: Server, photos: Photos) -> None:
    shorten_timeouts(page)
    with server.frozen():
        page.set_input_files("#files", photos.sure)
        expect(page.locator("#reading .verdict")).to_have_text("No answer")
        detail = page.locator("#reading .detail")
        expect(detail).to_have_text(re.compile(r"^There was no answer within 6\d seconds\. .* try again\.$"))


def test_a_model_with_fewer_classes_may_have_replaced_the_one_that_the_page_knows(
    page: Page, photos: Photos
) -> None:
    reload_before_promotion(page, "eel", "owl")
    page.set_input_files("#files", photos.sure)

    expect_answer(page)
    expect(page.locator("#reading .verdict")).to_have_text(photos.sure_label)
    expect(page.locator("#reading .bars").get_by_role("listitem")).to_have_count(10)


def test_the_page_describes_the_model_that_was_promoted_since_it_was_opened(page: Page) -> None:
    reload_before_promotion(page, "eel", "owl")
    expect(page.locator("#about")).to_contain_text("version earlier")
    example = page.get_by_role("button", name="Example: dog")
    example.press("Enter")

    expect_answer(page)
    expect(page.locator("#about")).not_to_contain_text("version earlier")
    expect(page.locator("#knows")).not_to_contain_text("owl")
    expect(example).to_be_focused()


def test_a_page_that_was_opened_while_the_server_was_gone_is_complete_after_the_next_photo(
    page: Page, photos: Photos
) -> None:
    page.route("**/model", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
    expect(page.get_by_text("Or try one of these")).to_be_hidden()
    page.unroute("**/model")
    page.set_input_files("#files", photos.sure)

    expect_answer(page)
    expect(page.get_by_role("button", name=re.compile("^Example: "))).to_have_count(10)
    expect(page.locator("#about")).to_contain_text("Model")


def test_the_last_of_two_quick_choices_wins(page: Page, server: Server, photos: Photos) -> None:
    with server.frozen():
        page.set_input_files("#files", photos.unsure)
        expect(page.get_by_role("heading", name="unsure.png")).to_be_visible()
        expect(page.get_by_role("status")).to_have_text("Classifying the photo.")
        expect(page.locator("#reading .verdict")).to_have_text("Classifying…")
        page.set_input_files("#files", photos.sure)
        expect(page.get_by_role("heading", name="sure.png", exact=True)).to_be_visible()

    expect_answer(page)
    expect(page.locator("#reading .verdict")).to_have_text(photos.sure_label)


def test_requests_that_a_busy_server_refuses_are_sent_again(page: Page, photos: Photos) -> None:
    refused = refuse_at_first(page, "**/predict*", 429, times=3)
    page.set_input_files("#files", [photos.sure] * 6)

    expect(page.get_by_role("button", name="Download as CSV")).to_be_enabled()
    assert len(refused) == 3
    expect(page.locator(".card").get_by_text(photos.sure_label)).to_have_count(6)


def test_a_page_that_is_opened_while_the_server_is_busy_asks_again(page: Page) -> None:
    refused = refuse_at_first(page, "**/model", 503)
    page.reload()

    expect(page.get_by_role("button", name=re.compile("^Example: "))).to_have_count(10)
    assert len(refused) == 1
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (413, {}, "The photo is too large for the server."),
        (502, {}, "The service is not available at the moment (status 502)."),
        (503, {"Retry-After": "3600"}, "The service is not available at the moment (status 503)."),
    ],
)
def test_an_error_of_a_proxy_is_explained_at_once(
    page: Page, photos: Photos, status: int, headers: dict[str, str], words: str
) -> None:
    page.route(
        "**/predict*",
        lambda route: route.fulfill(status=status, headers=headers, body="<!doctype html><h1>nginx</h1>"),
    )
    page.set_input_files("#files", photos.sure)

    expect(page.locator("#reading .verdict")).to_have_text("No answer")
    expect(page.locator("#reading .detail")).to_contain_text(words)


def test_long_names_of_classes_fit_a_phone_in_full(page: Page, server: Server) -> None:
    names = [f"golden_retriever_that_is_{age}_grown_up" for age in ("fully", "nearly")]
    model = requests.get(f"{server.url}/model", timeout=60).json() | {"classes": names}
    scores = [{"label": name, "confidence": 0.5} for name in names]
    prediction = scores[0] | {"uncertain": False, "top_k": scores, "input": ""}
    answer = {"request_id": "1", "model": model, "predictions": [prediction], "timings_ms": {}}
    page.route("**/model", lambda route: route.fulfill(json=model))
    page.set_viewport_size({"width": 390, "height": 900})
    page.reload()
    page.route("**/predict*", lambda route: route.fulfill(json=answer))
    page.set_input_files("#files", CAT)
    page.get_by_role("button", name="Wrong").click()

    expect(page.locator("#reading .verdict")).to_have_text(names[0])
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    cut = page.locator("#single *").evaluate_all(
        "all => all.filter((each) => each.scrollWidth > each.clientWidth && each.clientWidth)"
        ".map((each) => each.outerHTML)"
    )
    assert cut == []


@pytest.mark.parametrize(
    "script",
    ["", "Blob.prototype.text = () => Promise.reject(new DOMException('', 'NotReadableError'));"],
    ids=["Chromium reads nothing", "others fail"],
)
def test_a_file_that_can_no_longer_be_read_is_reported(
    page: Page, photos: Photos, tmp_path: Path, script: str
) -> None:
    held: list[Route] = []
    page.route("**/model", lambda route: held.append(route))
    page.reload()
    page.evaluate(f"() => {{ {script} }}")
    file = tmp_path / "gone.png"
    file.write_bytes(photos.sure.read_bytes())
    page.set_input_files("#files", file)
    expect(page.get_by_role("heading", name="gone.png")).to_be_visible()
    file.unlink()
    held[0].continue_()

    detail = page.locator("#reading .detail")
    expect(detail).to_have_text("The browser can no longer read this file. Choose it again.")

"""Accessibility: keyboard, screen reader, phone, dark mode, reduced motion; and the API key dialog."""

import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Page, Route, expect

from tests.serving.page.conftest import CAT, KEY, ROOT, Photos, Server

pytestmark = pytest.mark.slow

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the button with this name has the focus."""
    target = page.get_by_role("button", name=name)
    for _ in range(40):
        page.keyboard.press("Tab")
        if target.evaluate("button => button === document.activeElement"):
            return
    raise AssertionError(f"the keyboard does not reach {name}")


def test_the_page_can_be_used_with_the_keyboard_alone(page: Page, photos: Photos) -> None:
    tab_to(page, "Choose photos")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photos.sure)
    expect(page.get_by_role("button", name="Wrong")).to_be_visible()
    tab_to(page, "Wrong")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is visible
    page.keyboard.press("Space")
    tab_to(page, "something else")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Thank you. Noted: something else.")).to_be_focused()

    tab_to(page, "Example: ship")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="ship.png")).to_be_visible()
    tab_to(page, "Live view")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Camera")).to_be_focused()
    tab_to(page, "Take photo")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="photo.jpg")).to_be_focused()


def test_several_pasted_photos_take_the_focus_of_the_answer_that_they_replace(
    page: Page, photos: Photos
) -> None:
    page.set_input_files("#files", photos.sure)
    page.get_by_role("button", name="Right").focus()
    page.evaluate(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            const clipboardData = new DataTransfer();
            for (const name of ["one.png", "two.png"]) {
                clipboardData.items.add(new File([bytes], name, { type: "image/png" }));
            }
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }""",
        base64.b64encode(photos.sure.read_bytes()).decode(),
    )

    expect(page.get_by_role("heading", name=re.compile("^2 photos"))).to_be_focused()


def test_landmarks_and_controls_have_names(page: Page) -> None:
    expect(page).to_have_title("What is in the photo?")
    assert page.evaluate("document.documentElement.lang") == "en"
    for landmark in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    expect(page.get_by_role("region", name="Add photos")).to_be_visible()
    expect(page.get_by_role("region", name="Answer")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_count(1)

    page.set_input_files("#files", CAT)
    expect(page.get_by_role("status")).to_have_text(re.compile(r"\d%\.$"))
    unnamed = page.locator("button, input:not([hidden]), img, video").evaluate_all(
        """found => found.filter((each) => each.checkVisibility() && !each.alt &&
            !each.ariaLabel && !each.labels?.length && !each.textContent.trim() &&
            !each.querySelector("img[alt]:not([alt=''])")).map((each) => each.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.parametrize("several", [False, True])
def test_a_phone_shows_the_answer_without_scrolling_sideways(
    open_page: Callable[..., Page], server: Server, several: bool
) -> None:
    page = open_page(server.url, **PHONE)
    expect(page.get_by_text("Drop photos here")).to_be_hidden()
    page.set_input_files("#files", [CAT, CAT] if several else CAT)
    title = page.get_by_role("heading", name=re.compile("^2 photos" if several else r"^cat\.jpg$"))

    expect(title).to_be_in_viewport()
    if not several:
        expect(page.locator("#reading .verdict")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("files", [[CAT], [CAT, CAT], [ROOT / "README.md"]], ids=["one", "two", "no photo"])
def test_on_a_phone_the_page_ends_below_the_answer(page: Page, files: list[Path]) -> None:
    page.set_viewport_size({"width": 390, "height": 1200})
    page.set_input_files("#files", files)
    done = page.locator("#timing, #several-title, #reading .verdict")
    expect(done.filter(has_text=re.compile("Answered in|^2 photos: |No answer"))).to_be_visible()

    panel = page.locator(".panel").locator("visible=true")
    expect(panel.get_by_role("heading").first).to_be_in_viewport()
    end, footer = panel.bounding_box(), page.locator("footer").bounding_box()
    assert end
    assert footer
    assert footer["y"] - (end["y"] + end["height"]) < 50


def test_a_phone_shows_the_live_view_and_its_prediction(
    open_page: Callable[..., Page], server: Server
) -> None:
    page = open_page(server.url, **PHONE)
    page.get_by_role("button", name="Live view").tap()

    expect(page.locator("#live-reading .verdict")).to_be_in_viewport()
    expect(page.locator("#video")).to_be_in_viewport()


def test_on_a_phone_a_message_is_in_view(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url, **PHONE)
    page.evaluate(
        """() => {
            const none = () => Promise.reject(new DOMException("", "NotFoundError"));
            navigator.mediaDevices.getUserMedia = none;
        }"""
    )
    page.get_by_role("button", name="Live view").tap()
    expect(page.get_by_role("alert")).to_be_in_viewport(ratio=1)

    page.set_input_files("#files", [CAT] * 12)
    expect(page.get_by_role("button", name="Download as CSV")).to_be_enabled()
    page.context.set_offline(True)
    menu = page.get_by_role("combobox").last
    menu.scroll_into_view_if_needed()
    menu.select_option(label="Right")
    expect(page.get_by_role("alert")).to_be_in_viewport(ratio=1)


def luminance(colour: str) -> float:
    """Return the relative luminance, in 0..1, of rgb(…) (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_have_enough_contrast(
    open_page: Callable[..., Page], server: Server, photos: Photos, scheme: str
) -> None:
    page = open_page(server.url, color_scheme=scheme)
    page.set_input_files("#files", photos.unsure)
    expect(page.locator("#reading .verdict")).to_have_text("Not sure")

    ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert ground > 0.8 if scheme == "light" else ground < 0.05
    panel = luminance(page.locator("#single").evaluate("each => getComputedStyle(each).backgroundColor"))
    for text in (
        "#reading .verdict",
        "#reading .detail",
        ".bars li:last-child .name",
        "#timing",
        "figcaption",
    ):
        colour = page.locator(text).first.evaluate("each => getComputedStyle(each).color")
        lighter, darker = sorted((luminance(colour), panel), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, text


def test_reduced_motion_turns_animations_off(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(server.url, reduced_motion="reduce")
    page.set_input_files("#files", CAT)
    track = page.locator("#reading .track").first
    expect(track).to_be_visible()

    assert track.evaluate("each => getComputedStyle(each, '::before').transitionDuration") == "0s"


def test_the_page_asks_for_a_key_only_if_the_server_requires_one(
    server_with_key: Server, open_page: Callable[..., Page], page: Page, photos: Photos
) -> None:
    expect(page.get_by_role("dialog")).to_be_hidden()

    guarded = open_page(server_with_key.url)
    dialog = guarded.get_by_role("dialog", name="This service requires an API key")
    key = dialog.get_by_label("API key")
    expect(key).to_be_focused()
    guarded.keyboard.type("wrong")
    guarded.keyboard.press("Enter")
    expect(dialog.get_by_text("That key was not accepted.")).to_be_visible()
    expect(key).to_have_accessible_description("That key was not accepted.")
    key.fill(KEY)
    dialog.get_by_role("button", name="Continue").click()
    expect(dialog).to_be_hidden()
    expect(guarded.locator("#about")).to_contain_text("Model")

    guarded.reload()  # the key is kept until the tab is closed
    guarded.set_input_files("#files", photos.sure)
    expect(guarded.locator("#reading .verdict")).to_have_text(photos.sure_label)


def test_a_key_that_no_header_can_hold_is_not_taken_for_a_server_that_is_gone(
    server_with_key: Server, open_page: Callable[..., Page]
) -> None:
    page = open_page(server_with_key.url)
    dialog = page.get_by_role("dialog", name="This service requires an API key")
    key = dialog.get_by_label("API key")
    key.fill("а-клавиатура")  # another keyboard layout
    page.keyboard.press("Enter")
    expect(dialog.locator("input:invalid")).to_be_visible()
    key.fill(KEY)
    page.keyboard.press("Enter")

    expect(page.locator("#about")).to_contain_text("Model")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_cancelling_the_key_dialog_shows_an_error(
    server_with_key: Server, open_page: Callable[..., Page]
) -> None:
    page = open_page(server_with_key.url)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")

    expect(page.get_by_role("alert")).to_contain_text("This service requires an API key.")


def test_the_page_works_in_a_browser_that_blocks_storage(page: Page, photos: Photos) -> None:
    page.add_init_script(
        """Object.defineProperty(window, "sessionStorage", {
            get() { throw new DOMException("denied", "SecurityError"); },
        });"""
    )
    page.reload()
    page.set_input_files("#files", photos.sure)
    expect(page.locator("#reading .verdict")).to_have_text(photos.sure_label)


class InlineCode(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        handlers = [name for name in given if name.startswith("on") or name == "style"]
        if handlers or tag == "style" or (tag == "script" and not given.get("src")):
            self.inline.append(self.get_starttag_text() or tag)


def test_the_content_security_policy_is_strict_and_the_page_has_no_inline_code(server: Server) -> None:
    answer = requests.get(server.url, timeout=60)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    parts = InlineCode()
    parts.feed(answer.text)
    assert parts.inline == []
    for file in (ROOT / "serving" / "page").iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org)", file.read_text()), file.name


def test_browsers_ask_whether_a_file_of_the_page_has_changed(server: Server) -> None:
    for path in ("/", "/page/examples/cat.jpg", "/page/main.js"):
        answer = requests.get(f"{server.url}{path}", timeout=60)
        assert answer.headers["Cache-Control"] == "no-cache"
    headers = {"If-None-Match": answer.headers["ETag"]}
    unchanged = requests.get(f"{server.url}/page/main.js", headers=headers, timeout=60)
    assert unchanged.status_code == 304


def test_the_javascript_of_the_docs_works(page: Page, server: Server, photos: Photos) -> None:
    docs = (ROOT / "docs" / "service.md").read_text()
    code = docs.partition("```js\n")[2].partition("```")[0].replace("http://127.0.0.1:8000", server.url)
    logged = page.evaluate(
        """async ([code, picture]) => {
            const run = Object.getPrototypeOf(async () => {}).constructor("input", "console", code);
            const bytes = Uint8Array.from(atob(picture), (character) => character.charCodeAt(0));
            let logged;
            await run({ files: [new File([bytes], "sure.png")] }, { log: (text) => { logged = text; } });
            return logged;
        }""",
        [code, base64.b64encode(photos.sure.read_bytes()).decode()],
    )
    assert logged == photos.sure_label


def test_on_a_phone_the_dialog_about_the_model_starts_at_its_top(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 500})
    page.get_by_role("button", name="About the model").click()
    dialog = page.get_by_role("dialog", name=re.compile("version"))
    expect(dialog.get_by_role("heading")).to_be_in_viewport(ratio=1)
    assert dialog.evaluate("dialog => dialog.scrollHeight > dialog.clientHeight"), "nothing to scroll"


def test_on_a_phone_the_dialog_about_the_model_can_be_read_to_its_end(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 500})
    page.get_by_role("button", name="About the model").click()
    close = page.get_by_role("button", name="Close")
    expect(close).to_be_in_viewport(ratio=1)
    page.get_by_role("dialog").evaluate("dialog => dialog.scrollTo(0, dialog.scrollHeight)")
    last, button = page.locator("#card-links").bounding_box(), close.bounding_box()
    assert last
    assert button
    assert 0 < last["y"] < last["y"] + last["height"] < button["y"]
    run_id = page.locator("#card-links code")
    expect(run_id).to_have_text(re.compile(r"^[0-9a-f]{32}$"))
    lines = run_id.evaluate("code => code.getClientRects().length")
    assert lines == 1


def test_the_model_and_its_run_are_one_click_away(
    page: Page, open_page: Callable[..., Page], tmp_path_factory: pytest.TempPathFactory
) -> None:
    page.get_by_role("button", name="About the model").click()
    dialog = page.get_by_role("dialog", name=re.compile("version"))
    expect(dialog).to_contain_text("airplane, automobile, bird")
    expect(dialog).to_contain_text("confidence, and photos unlike the training images")
    expect(dialog.get_by_role("link")).to_have_count(0)  # MLflow keeps its runs in a file
    page.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()

    options = ("--mlflow-url", "https://someone:secret@mlflow.example.org/team/")
    server = Server(tmp_path_factory.mktemp("with-mlflow"), *options)
    try:
        page = open_page(server.url)
        page.get_by_role("button", name="About the model").click()
        link = page.get_by_role("link", name="Training run in MLflow")
        run_id = requests.get(f"{server.url}/model", timeout=60).json()["run_id"]
        expect(link).to_have_attribute("href", f"https://mlflow.example.org/team/#/runs/{run_id}")
    finally:
        server.stop()


def test_the_dialog_about_the_model_says_that_its_promotion_was_forced(page: Page) -> None:
    said = "version 2 is now the champion of cifar10. It was forced: it is worse"

    def respond(route: Route) -> None:
        promoted = {"promotion": said, "promoted_at": "2026-11-29T08:28:18+00:00"}
        route.fulfill(json=route.fetch().json() | promoted)

    page.route("**/model", respond)
    page.reload()
    page.get_by_role("button", name="About the model").click()
    expect(page.locator("dt:text-is('Promoted') + dd")).to_contain_text(said)


def test_the_precision_is_shown_without_the_statistics_behind_it(page: Page) -> None:
    decision = "int8 (loss 0.10 points on 5,000 images, 95 % interval -0.08 to 0.28, p = 0.19)"

    def respond(route: Route) -> None:
        route.fulfill(json=route.fetch().json() | {"precision": "int8", "decision": decision})

    page.route("**/model", respond)
    page.reload()
    page.get_by_role("button", name="About the model").click()
    expect(page.locator("dt:text-is('Precision') + dd")).to_have_text("int8")

"""Several photos at once: the grid, one photo of it in full, and the CSV file."""

import csv
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from PIL import Image
from playwright.sync_api import FloatRect, Page, Route, expect

from tests.scorer_folders import write_scorer_folder
from tests.serving.page.conftest import CAT, HEIC, Photos, Server, noise, reload_before_promotion, upload

pytestmark = pytest.mark.slow

SIX = "6 photos: 1 sure, 4 not sure, 1 without an answer"  # those of `choose_six`


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def choose_six(page: Page, photos: Photos) -> None:
    photo = CAT.read_bytes()
    names = ["cat, at home.jpg", '=HYPERLINK("x").jpg', "straße.jpg"]
    page.set_input_files(
        "#files",
        [
            upload("sure.png", photos.sure.read_bytes(), "image/png"),
            upload("unsure.png", photos.unsure.read_bytes(), "image/png"),
            *(upload(name, photo, "image/jpeg") for name in names),
            upload("photo.heic", HEIC, "image/heic"),
        ],
    )
    expect(page.get_by_role("button", name="Download as CSV")).to_be_enabled()


def test_each_card_has_a_thumbnail_and_a_prediction_or_an_error(page: Page, photos: Photos) -> None:
    choose_six(page, photos)

    expect(page.get_by_role("heading", name=SIX, exact=True)).to_be_visible()
    cards = page.locator("#grid").get_by_role("button")
    expect(cards).to_have_count(6)
    expect(cards.nth(0)).to_have_text(re.compile(rf"sure\.png\s*{photos.sure_label}\s*>?\d+%"))
    expect(cards.nth(1)).to_have_text(re.compile(rf"Not sure\s*{photos.unsure_label}, \d+%"))
    expect(cards.nth(5)).to_have_text(re.compile("photo.heic.*No answer.*HEIC"))
    expect(cards.locator("canvas")).to_have_count(5)
    expect(page.get_by_role("status")).to_have_text(f"{SIX}.")
    expect(page.get_by_role("progressbar")).to_be_hidden()


def test_a_confident_answer_for_an_unlike_photo_says_why_it_is_not_sure(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    model = write_scorer_folder(tmp_path / "model", ood={"above": -1000.0})
    server = Server(tmp_path, f"--model-uri={model}")
    try:
        page = open_page(server.url)
        file = io.BytesIO()
        Image.new("RGB", (32, 32), "red").save(file, "png")
        files = [upload(name, file.getvalue(), "image/png") for name in ("one.png", "two.png")]
        page.set_input_files("#files", files)
        first = page.locator("#grid").get_by_role("button").first
        expect(first).to_have_text(re.compile(r"Not sure\s*red, >?\d+%, but unlike the training images"))
    finally:
        server.stop()


def test_the_csv_file_has_every_probability_and_no_formula(
    page: Page, server: Server, photos: Photos, tmp_path: Path
) -> None:
    choose_six(page, photos)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert download.value.suggested_filename == "answers.csv"
    download.value.save_as(tmp_path / "answers.csv")

    rows = rows_of(tmp_path / "answers.csv")
    assert [row["file"] for row in rows] == [
        "sure.png", "unsure.png", "cat, at home.jpg", "'=HYPERLINK(\"x\").jpg", "straße.jpg", "photo.heic",
    ]  # fmt: skip
    sure, unsure, *_, heic = rows
    assert (sure["label"], sure["uncertain"], sure["error"]) == (photos.sure_label, "false", "")
    assert (unsure["label"], unsure["uncertain"]) == (photos.unsure_label, "true")
    shares = [float(sure[name]) for name in photos.classes]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert float(sure["confidence"]) == max(shares)
    model = requests.get(f"{server.url}/model", timeout=60).json()
    assert sure["model"] == f"{model['name']}/{model['version']}"
    assert len(sure["request_id"]) == 32
    assert "HEIC" in heic["error"]
    assert heic["label"] == ""


def test_menus_and_columns_have_the_classes_of_the_model_that_was_promoted_since(
    page: Page, photos: Photos, tmp_path: Path
) -> None:
    reload_before_promotion(page, "eel", "owl")
    page.set_input_files("#files", [photos.sure, photos.unsure])
    expect(page.get_by_role("button", name="Download as CSV")).to_be_enabled()

    choices = page.get_by_label("Feedback on sure.png").locator("option").all_text_contents()
    others = [name for name in photos.classes if name != photos.sure_label]
    assert choices == ["Is it right?", "Right", *others, "something else"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "answers.csv")
    columns = ["file", "label", "confidence", "uncertain", *photos.classes, "error", "model", "request_id"]
    assert list(rows_of(tmp_path / "answers.csv")[0]) == columns


def test_long_names_and_long_photos_fit_screens_of_all_widths(page: Page) -> None:
    names = [
        "a.jp", "PXL_20261129_071234000.jpg", "WhatsApp Image 2026-11-29 at 07.12.00.jpeg",
        f"{'x' * 116}.jpg", f"{'two words ' * 11}.jpeg",
        "صورة من العطلة الصيفية في الجبال مع الأصدقاء.jpg", "תמונה מהחופשה.png",
    ]  # fmt: skip
    square = noise(60, 60)
    files = [upload(name, square, "image/jpeg") for name in names]
    files.append(upload("portrait.jpg", noise(60, 600), "image/jpeg"))
    files.append(upload("panorama.jpg", noise(900, 60), "image/jpeg"))
    page.set_input_files("#files", files)
    expect(page.get_by_role("button", name="Download as CSV")).to_be_enabled()
    cards = page.locator("#grid > li")
    for width in (390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        panel = page.locator("#several").bounding_box()
        assert panel
        boxes = [box for card in cards.all() if (box := card.bounding_box())]
        assert len(boxes) == len(files)
        for one, other in itertools.combinations(boxes, 2):
            assert not overlap(one, other), width
        for box in boxes:
            assert panel["x"] <= box["x"]
            assert box["x"] + box["width"] <= panel["x"] + panel["width"]
        spilling = cards.locator(".open, .open > *, .menu").evaluate_all(
            """parts => parts.filter((part) => {
                const card = part.closest("li").getBoundingClientRect(), box = part.getBoundingClientRect();
                return box.left < card.left || box.right > card.right || box.bottom > card.bottom;
            }).map((part) => part.outerHTML)"""
        )
        assert spilling == []
        for name in (names[3], names[5], "portrait.jpg", "panorama.jpg"):
            page.get_by_title(name, exact=True).click()
            expect(page.get_by_role("heading", name=name)).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") == width, name
            page.get_by_role("button", name="Back to all photos").click()
    # The ellipsis belongs at the end of a name, which is on the left of these.
    directions = cards.locator(".name").evaluate_all(
        "all => all.map((each) => getComputedStyle(each).direction)"
    )
    assert directions == ["ltr"] * 5 + ["rtl"] * 2 + ["ltr"] * 2


def test_long_names_and_long_errors_are_cut_after_three_lines(page: Page) -> None:
    names = [f"WhatsApp Image 2026-11-29 at 07.1{number}.00.jpeg" for number in range(2)]
    files = [upload(name, noise(60, 60), "image/jpeg") for name in names]
    page.set_viewport_size({"width": 390, "height": 900})
    page.set_input_files("#files", [*files, upload("photo.heic", HEIC, "image/heic")])
    expect(page.get_by_role("button", name="Download as CSV")).to_be_enabled()
    for name in names:  # two photos of one day must not look the same
        text = page.get_by_title(name).locator(".name")
        assert text.evaluate("name => name.scrollHeight <= name.clientHeight")
    error = page.locator("#grid .failed .quiet")
    lines = error.evaluate("each => each.clientHeight / parseFloat(getComputedStyle(each).lineHeight)")
    assert lines == pytest.approx(3, abs=0.1)
    page.locator("#grid .failed button").click()
    expect(page.locator("#reading .detail")).to_contain_text("HEIC")


def overlap(one: FloatRect, other: FloatRect) -> bool:
    beside = one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
    below = one["y"] >= other["y"] + other["height"] or other["y"] >= one["y"] + one["height"]
    return not beside and not below


def test_a_photo_can_be_opened_in_full_and_closed(page: Page, photos: Photos) -> None:
    choose_six(page, photos)
    card = page.locator("#grid").get_by_role("button").first
    card.click()

    expect(page.get_by_role("heading", name="sure.png")).to_be_focused()
    expect(page.locator("#reading .verdict")).to_have_text(photos.sure_label)
    expect(page.get_by_role("button", name="Wrong")).to_be_visible()
    page.get_by_role("button", name="Back to all photos").click()
    expect(card).to_be_focused()
    expect(page.get_by_role("heading", name=SIX, exact=True)).to_be_visible()


def test_closing_the_camera_leads_back_to_a_complete_grid(page: Page, photos: Photos) -> None:
    choose_six(page, photos)
    title = page.get_by_role("heading", name=SIX, exact=True)
    for in_full in (False, True):
        if in_full:
            page.get_by_title("sure.png", exact=True).click()
        page.get_by_role("button", name="Take a photo").click()
        page.get_by_role("button", name="Live view").click()
        expect(title).to_be_hidden()
        page.get_by_role("button", name="Close").click()
        expect(title).to_be_visible()
    page.set_input_files("#files", photos.sure)
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text("The answer appears here.")).to_be_visible()


def test_on_a_phone_an_opened_photo_shows_its_answer_without_scrolling(page: Page, photos: Photos) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    choose_six(page, photos)
    page.locator("#grid").get_by_role("button").nth(4).click()
    expect(page.locator("#reading .bars li").last).to_be_in_viewport(ratio=1)


def test_at_most_four_photos_are_in_flight(page: Page, photos: Photos) -> None:
    in_flight, max_in_flight = 0, 0

    def begin() -> None:
        nonlocal in_flight, max_in_flight
        in_flight += 1
        max_in_flight = max(max_in_flight, in_flight)

    def end() -> None:
        nonlocal in_flight
        in_flight -= 1

    page.on("request", lambda request: begin() if "/predict" in request.url else None)
    page.on("requestfinished", lambda request: end() if "/predict" in request.url else None)
    page.set_input_files("#files", [photos.sure, photos.unsure] * 30)

    expect(page.get_by_role("heading", name="60 photos: 30 sure, 30 not sure", exact=True)).to_be_visible()
    expect(page.get_by_text("No answer")).to_have_count(0)
    assert 2 <= max_in_flight <= 4


def test_photos_that_were_replaced_by_another_choice_report_no_error(page: Page, photos: Photos) -> None:
    page.route("**/model", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_be_visible()
    held: list[Route] = []
    page.unroute("**/model")
    page.route("**/model", lambda route: held.append(route))
    with page.expect_request("**/model"):
        page.set_input_files("#files", [photos.sure, photos.unsure])
    page.set_input_files("#files", photos.sure)  # waits for the same response
    expect(page.get_by_role("heading", name="sure.png", exact=True)).to_be_visible()
    held[0].abort()

    expect(page.locator("#reading .detail")).to_contain_text("The service does not answer")
    expect(page.get_by_role("alert")).to_have_count(0)

"""Several photos at once: a grid, one of it in full, and a table to download."""

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.serving.page.conftest import CAT, HEIC, Pictures, upload

pytestmark = pytest.mark.slow


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def choose(page: Page, pictures: Pictures) -> None:
    photo = CAT.read_bytes()
    names = ["cat, at home.jpg", '=HYPERLINK("x").jpg', "straße.jpg"]
    page.set_input_files(
        "#files",
        [
            upload("sure.png", pictures.sure.read_bytes(), "image/png"),
            upload("unsure.png", pictures.unsure.read_bytes(), "image/png"),
            *(upload(name, photo, "image/jpeg") for name in names),
            upload("photo.heic", HEIC, "image/heic"),
        ],
    )
    expect(page.get_by_role("button", name="Download as CSV")).to_be_enabled()


def test_each_has_its_picture_its_answer_or_the_reason_why_not(page: Page, pictures: Pictures) -> None:
    choose(page, pictures)

    expect(page.get_by_role("heading", name="6 photos", exact=True)).to_be_visible()
    cards = page.locator("#grid").get_by_role("button")
    expect(cards).to_have_count(6)
    expect(cards.nth(0)).to_have_text(re.compile(rf"sure\.png\s*{pictures.sure_label}\s*>?\d+%"))
    expect(cards.nth(1)).to_have_text(re.compile(rf"Not sure\s*{pictures.unsure_label}, \d+%"))
    expect(cards.nth(5)).to_have_text(re.compile("photo.heic.*No answer.*HEIC"))
    expect(cards.locator("canvas")).to_have_count(5)
    expect(page.get_by_role("status")).to_have_text("6 photos classified, 1 of them without an answer.")
    expect(page.get_by_role("progressbar")).to_be_hidden()


def test_the_table_has_every_probability_and_nothing_that_a_spreadsheet_runs(
    page: Page, pictures: Pictures, tmp_path: Path
) -> None:
    choose(page, pictures)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert download.value.suggested_filename == "answers.csv"
    download.value.save_as(tmp_path / "answers.csv")

    rows = rows_of(tmp_path / "answers.csv")
    assert [row["file"] for row in rows] == [
        "sure.png", "unsure.png", "cat, at home.jpg", "'=HYPERLINK(\"x\").jpg", "straße.jpg", "photo.heic",
    ]  # fmt: skip
    sure, unsure, *_, heic = rows
    assert (sure["label"], sure["uncertain"], sure["error"]) == (pictures.sure_label, "false", "")
    assert (unsure["label"], unsure["uncertain"]) == (pictures.unsure_label, "true")
    shares = [float(sure[name]) for name in pictures.classes]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert float(sure["confidence"]) == max(shares)
    assert sure["model"] == "cifar10/1"
    assert len(sure["request_id"]) == 32
    assert "HEIC" in heic["error"]
    assert heic["label"] == ""


def test_one_of_them_is_opened_in_full_and_left_again(page: Page, pictures: Pictures) -> None:
    choose(page, pictures)
    card = page.locator("#grid").get_by_role("button").first
    card.click()

    expect(page.get_by_role("heading", name="sure.png")).to_be_focused()
    expect(page.locator("#reading .verdict")).to_have_text(pictures.sure_label)
    expect(page.get_by_role("button", name="Wrong")).to_be_visible()
    page.get_by_role("button", name="Back to all photos").click()
    expect(card).to_be_focused()
    expect(page.get_by_role("heading", name="6 photos", exact=True)).to_be_visible()


def test_many_go_a_few_at_a_time(page: Page, pictures: Pictures) -> None:
    under_way, most = 0, 0

    def begin() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)

    def end() -> None:
        nonlocal under_way
        under_way -= 1

    page.on("request", lambda request: begin() if "/predict" in request.url else None)
    page.on("requestfinished", lambda request: end() if "/predict" in request.url else None)
    page.set_input_files("#files", [pictures.sure, pictures.unsure] * 30)

    expect(page.get_by_role("heading", name="60 photos", exact=True)).to_be_visible()
    expect(page.get_by_text("No answer")).to_have_count(0)
    assert 1 <= most <= 4

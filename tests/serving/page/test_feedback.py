"""Right or wrong: what people say of an answer gets into the request log."""

import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from serving.monitoring.database import Database
from tests.serving.page.conftest import CAT, Pictures, Server

pytestmark = pytest.mark.slow


def noted(server: Server, request_id: str) -> tuple[bool, str | None]:
    """What the log has of an answer: whether it was right, and what it should have been."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        _, told = Database(server.request_log).read(0, time.time() + 1)
        rows = told[told["request_id"] == request_id]
        if len(rows):
            row = rows.iloc[0]
            label = row["feedback_label"]
            return bool(row["feedback_correct"]), label if isinstance(label, str) else None
        time.sleep(0.1)
    raise AssertionError("the log has no feedback")


def ask(page: Page, pictures: Pictures) -> str:
    """The request id of an answer that the page now shows."""
    with page.expect_response("**/predict*") as answer:
        page.set_input_files("#files", pictures.sure)
    expect(page.get_by_text(f"Is “{pictures.sure_label}” right?")).to_be_visible()
    return str(answer.value.headers["x-request-id"])


def test_an_answer_that_is_right_is_noted_as_right(page: Page, server: Server, pictures: Pictures) -> None:
    request_id = ask(page, pictures)
    page.get_by_role("button", name="Right").click()

    thanks = page.get_by_text(f"Thank you. Noted: {pictures.sure_label}.")
    expect(thanks).to_be_focused()
    assert noted(server, request_id) == (True, pictures.sure_label)


def test_an_answer_that_is_wrong_is_noted_with_the_class_that_was_chosen(
    page: Page, server: Server, pictures: Pictures
) -> None:
    request_id = ask(page, pictures)
    choice = page.get_by_role("group", name="What is it?")
    expect(choice).to_be_hidden()
    page.get_by_role("button", name="Wrong").click()
    others = [name for name in pictures.classes if name != pictures.sure_label]
    assert choice.get_by_role("button").all_inner_texts() == [*others, "something else"]
    choice.get_by_role("button", name=others[0]).click()

    expect(page.get_by_text(f"Noted: {others[0]}.")).to_be_visible()
    assert noted(server, request_id) == (False, others[0])


def test_what_is_none_of_the_classes_is_noted_as_wrong(
    page: Page, server: Server, pictures: Pictures
) -> None:
    request_id = ask(page, pictures)
    page.get_by_role("button", name="Wrong").click()
    page.get_by_role("button", name="something else").click()

    expect(page.get_by_text("Noted: something else.")).to_be_visible()
    assert noted(server, request_id) == (False, None)


def test_feedback_that_cannot_be_sent_can_be_tried_again(
    start: Callable[..., Server], open_page: Callable[..., Page], pictures: Pictures
) -> None:
    server = start()
    page = open_page(server.url)
    page.set_input_files("#files", CAT)
    expect(page.get_by_role("button", name="Wrong")).to_be_visible()
    server.stop()
    page.get_by_role("button", name="Right").click()

    expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_visible()
    expect(page.get_by_role("button", name="Right")).to_be_visible()

"""Feedback on predictions is written to the request log."""

import json
import time

import pytest
from playwright.sync_api import Page, Route, expect

from serving.monitoring.database import Database
from tests.serving.page.conftest import Photos, Server, refuse_at_first

pytestmark = pytest.mark.slow


def wait_for_feedback(server: Server, request_id: str, expected: tuple[bool, str | None]) -> None:
    """Wait until the log says whether the prediction was right, and the correct class."""
    deadline = time.monotonic() + 60
    logged: list[tuple[bool, str | None]] = []
    while time.monotonic() < deadline:
        _, feedback = Database(server.request_log).read(0, time.time() + 1)
        rows = feedback[feedback["request_id"] == request_id]
        logged = [
            (bool(correct), label if isinstance(label, str) else None)
            for correct, label in zip(rows["feedback_correct"], rows["feedback_label"], strict=True)
        ]
        if logged == [expected]:
            return
        time.sleep(0.1)
    raise AssertionError(f"the log has {logged}, not {expected}")


def classify(page: Page, photos: Photos) -> str:
    """Have the page show a prediction, and return its request id."""
    with page.expect_response("**/predict*") as answer:
        page.set_input_files("#files", photos.sure)
    expect(page.get_by_text(f"Is “{photos.sure_label}” right?")).to_be_visible()
    return str(answer.value.headers["x-request-id"])


def test_a_right_prediction_is_logged(page: Page, server: Server, photos: Photos) -> None:
    request_id = classify(page, photos)
    page.get_by_role("button", name="Right").click()

    thanks = page.get_by_text(f"Thank you. Noted: {photos.sure_label}.")
    expect(thanks).to_be_focused()
    wait_for_feedback(server, request_id, (True, photos.sure_label))


def test_a_wrong_prediction_is_logged_with_the_chosen_class(
    page: Page, server: Server, photos: Photos
) -> None:
    request_id = classify(page, photos)
    choice = page.get_by_role("group", name="What is it?")
    expect(choice).to_be_hidden()
    page.get_by_role("button", name="Wrong").click()
    others = [name for name in photos.classes if name != photos.sure_label]
    assert choice.get_by_role("button").all_inner_texts() == [*others, "something else"]
    choice.get_by_role("button", name=others[0]).click()

    expect(page.get_by_text(f"Noted: {others[0]}.")).to_be_visible()
    wait_for_feedback(server, request_id, (False, others[0]))


def test_something_else_is_logged_as_wrong_without_a_class(
    page: Page, server: Server, photos: Photos
) -> None:
    request_id = classify(page, photos)
    page.get_by_role("button", name="Wrong").click()
    page.get_by_role("button", name="something else").click()

    expect(page.get_by_text("Noted: something else.")).to_be_visible()
    wait_for_feedback(server, request_id, (False, None))


def test_feedback_can_be_corrected(page: Page, server: Server, photos: Photos) -> None:
    request_id = classify(page, photos)
    page.get_by_role("button", name="Right").click()
    page.get_by_role("button", name="Change").click()
    expect(page.get_by_role("button", name="Right")).to_be_focused()
    page.get_by_role("button", name="Wrong").click()
    page.get_by_role("button", name="something else").click()

    expect(page.get_by_text("Noted: something else.")).to_be_focused()
    wait_for_feedback(server, request_id, (False, None))


def test_late_feedback_on_a_photo_does_not_appear_below_the_next_one(
    page: Page, server: Server, photos: Photos
) -> None:
    held: list[Route] = []
    page.route("**/feedback", lambda route: held.append(route))
    request_id = classify(page, photos)
    page.get_by_role("button", name="Right").click()
    page.set_input_files("#files", photos.unsure)
    question = page.get_by_text(f"Is “{photos.unsure_label}” right?")
    expect(question).to_be_visible()
    with page.expect_response("**/feedback"):
        held[0].continue_()
    wait_for_feedback(server, request_id, (True, photos.sure_label))

    expect(question).to_be_visible()
    expect(page.get_by_text("Thank you.")).to_have_count(0)


def test_feedback_that_is_lost_after_the_next_photo_was_chosen_is_reported(
    page: Page, photos: Photos
) -> None:
    held: list[Route] = []
    page.route("**/feedback", lambda route: held.append(route))
    classify(page, photos)
    page.get_by_role("button", name="Right").click()
    page.set_input_files("#files", photos.unsure)
    expect(page.get_by_role("heading", name="unsure.png")).to_be_visible()
    held[0].abort()

    alert = page.get_by_role("alert").filter(has_text="The feedback on an earlier photo was lost")
    expect(alert).to_be_visible()


def test_feedback_can_be_given_and_corrected_in_the_grid(page: Page, server: Server, photos: Photos) -> None:
    page.set_input_files("#files", [photos.sure, photos.unsure])
    menu = page.get_by_label("Feedback on sure.png")
    other = next(name for name in photos.classes if name != photos.sure_label)
    with page.expect_request("**/feedback") as sent:
        menu.select_option(label="Right")
    expect(page.get_by_role("status")).to_have_text(f"Noted: {photos.sure_label}.")
    request_id = json.loads(sent.value.post_data or "")["request_id"]
    menu.select_option(label=other)
    expect(page.get_by_role("status")).to_have_text(f"Noted: {other}.")
    wait_for_feedback(server, request_id, (False, other))

    # The photo in full shows what was chosen, and the grid what is chosen there.
    page.get_by_title("sure.png", exact=True).click()
    expect(page.get_by_text(f"Noted: {other}.")).to_be_visible()
    page.get_by_role("button", name="Change").click()
    page.get_by_role("button", name="Right").click()
    expect(page.get_by_text(f"Noted: {photos.sure_label}.")).to_be_visible()
    page.get_by_role("button", name="Back to all photos").click()
    expect(menu.locator("option:checked")).to_have_text("Right")
    wait_for_feedback(server, request_id, (True, photos.sure_label))
    expect(page.get_by_label("Feedback on unsure.png").locator("option:checked")).to_have_text("Is it right?")

    page.context.set_offline(True)
    menu.select_option(label=other)
    expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_visible()
    expect(menu.locator("option:checked")).to_have_text("Right")


def test_only_the_last_of_quick_choices_in_a_menu_is_logged(
    page: Page, server: Server, photos: Photos
) -> None:
    """The arrow keys choose each class on the way to the wanted one."""
    held: list[Route] = []
    sent: list[str] = []

    def hold_the_first(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "")["label"])
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/feedback", hold_the_first)
    page.set_input_files("#files", [photos.sure, photos.unsure])
    menu = page.get_by_label("Feedback on sure.png")
    first, last = [name for name in photos.classes if name != photos.sure_label][:2]
    for label in ("Right", first, last):
        menu.select_option(label=label)
    page.evaluate("fetch('ping').then(() => null)")  # requests that were sent before have been seen by then
    assert sent == [photos.sure_label]
    request_id = json.loads(held[0].request.post_data or "")["request_id"]
    held[0].continue_()

    expect(page.get_by_role("status")).to_have_text(f"Noted: {last}.")
    expect(menu.locator("option:checked")).to_have_text(last)
    assert sent == [photos.sure_label, last]
    wait_for_feedback(server, request_id, (False, last))


def test_feedback_can_be_sent_again_after_a_failure(page: Page, server: Server, photos: Photos) -> None:
    request_id = classify(page, photos)
    page.context.set_offline(True)
    page.get_by_role("button", name="Right").click()
    expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_visible()

    page.context.set_offline(False)
    page.get_by_role("button", name="Right").click()
    expect(page.get_by_text(f"Thank you. Noted: {photos.sure_label}.")).to_be_visible()
    wait_for_feedback(server, request_id, (True, photos.sure_label))


def test_feedback_that_a_busy_server_refuses_is_sent_again(
    page: Page, server: Server, photos: Photos
) -> None:
    refused = refuse_at_first(page, "**/feedback", 503)
    request_id = classify(page, photos)
    page.get_by_role("button", name="Right").click()

    expect(page.get_by_text(f"Thank you. Noted: {photos.sure_label}.")).to_be_visible()
    assert len(refused) == 1
    wait_for_feedback(server, request_id, (True, photos.sure_label))


def test_feedback_that_a_captive_portal_answers_is_not_shown_as_noted(page: Page, photos: Photos) -> None:
    classify(page, photos)
    page.route("**/feedback", lambda route: route.fulfill(status=200, body="<!doctype html>"))
    page.get_by_role("button", name="Right").click()

    alert = page.get_by_role("alert").filter(has_text="did not come from the service")
    expect(alert).to_be_visible()
    expect(page.get_by_text("Thank you.")).to_have_count(0)


def test_on_an_iphone_the_menu_neither_takes_its_title_for_an_answer_nor_zooms_in(
    page: Page, photos: Photos
) -> None:
    page.set_input_files("#files", [photos.sure, photos.unsure])
    menu = page.get_by_label("Feedback on sure.png")
    expect(menu.locator("option:checked")).to_have_text("Is it right?")
    expect(menu.locator("option:checked")).to_be_disabled()  # iPhones show hidden entries
    assert float(menu.evaluate("menu => parseFloat(getComputedStyle(menu).fontSize)")) >= 16

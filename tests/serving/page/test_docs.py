"""/docs in a real browser: Swagger UI under the strict content security policy, with requests that work."""

import hashlib
import re
from collections.abc import Callable

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.serving.page.conftest import KEY, ROOT, Photos, Server

pytestmark = pytest.mark.slow

# The fixture `open_page` fails a test whose page violates the policy or contacts another host.


def operation(page: Page, path: str) -> str:
    """Open the operation of a path and return a selector for it."""
    selector = f".opblock:has([data-path='{path}'])"
    page.locator(f"{selector} .opblock-summary-control").click()
    expect(page.locator(f"{selector} .execute")).to_be_visible()
    return selector


@pytest.mark.parametrize("kind", ["multipart/form-data", "application/octet-stream"])
def test_a_photo_is_classified_from_the_page(
    open_page: Callable[..., Page], server: Server, photos: Photos, kind: str
) -> None:
    policy = requests.get(f"{server.url}/docs", timeout=60).headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    page = open_page(f"{server.url}/docs")
    predict = operation(page, "/predict")
    expect(page.locator(f"{predict} [data-param-name='X-Live-Frame']")).to_be_visible()
    page.locator(f"{predict} .opblock-section-request-body select.content-type").select_option(kind)
    page.locator(f"{predict} input[type=file]").set_input_files(photos.sure)
    page.locator(f"{predict} .execute").click()

    response = page.locator(f"{predict} .live-responses-table .response").first
    expect(response.locator(".response-col_status")).to_contain_text("200")
    expect(response).to_contain_text(f'"label": "{photos.sure_label}"')


def test_no_marks_of_markdown_are_shown(open_page: Callable[..., Page], server: Server) -> None:
    page = open_page(f"{server.url}/docs")
    operation(page, "/invocations")
    text = page.locator("#swagger").inner_text()
    assert "Classify the images of a table with a column image, as MLflow's scoring server does" in text
    assert "`" not in text


def test_requests_have_the_key_that_was_entered(
    open_page: Callable[..., Page], server_with_key: Server
) -> None:
    page = open_page(f"{server_with_key.url}/docs")
    model = operation(page, "/model")
    page.locator(f"{model} .execute").click()
    status = page.locator(f"{model} .live-responses-table tbody .response-col_status").first
    expect(status).to_contain_text("401")
    page.locator(".btn.authorize").click()
    page.get_by_label("auth-bearer-value").fill(KEY)
    page.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").first.click()
    page.locator(f"{model} .execute").click()
    expect(status).to_contain_text("200")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_both_colour_schemes(open_page: Callable[..., Page], server: Server, scheme: str) -> None:
    page = open_page(f"{server.url}/docs", color_scheme=scheme)
    title = page.get_by_role("heading", name=re.compile("^cifar-mlflow"))
    expect(title).to_be_visible()
    colour = title.evaluate("each => getComputedStyle(each).color")
    brightness = sum(int(part) for part in re.findall(r"\d+", colour)[:3])
    assert (brightness > 500) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_files_of_swagger_ui_are_those_that_the_readme_pins(server: Server) -> None:
    readme = (ROOT / "serving/app/swagger/README.md").read_text()
    pinned = dict(re.findall(r"\| `(.*?)` \| ([0-9a-f]{64}) \|", readme))
    assert len(pinned) == 2
    for name, digest in pinned.items():
        content = requests.get(f"{server.url}/page/swagger/{name}", timeout=60).content
        assert hashlib.sha256(content).hexdigest() == digest
    assert requests.get(f"{server.url}/page/swagger/README.md", timeout=60).status_code == 404

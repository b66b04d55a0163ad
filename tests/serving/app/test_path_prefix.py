"""The service behind a reverse proxy that publishes it below a path prefix."""

import re
from collections.abc import Callable, Iterator

import pytest
import requests

from tests.serving.app.conftest import RED, Server, Store

pytestmark = pytest.mark.slow

PREFIX = "/vision/cifar"
HEADERS = {"X-Forwarded-Prefix": PREFIX, "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}


@pytest.fixture(scope="module")
def proxied(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("proxied")
    server = Server(folder, shared_store.uri, FORWARDED_ALLOW_IPS="127.0.0.1")
    try:
        yield server.wait()
    finally:
        server.stop()


def get(server: Server, path: str, **headers: str) -> requests.Response:
    return requests.get(f"{server.url}{path}", headers=headers, timeout=60, allow_redirects=False)


@pytest.mark.parametrize("path", ["/docs", f"{PREFIX}/docs"], ids=["removed", "kept"])
def test_the_docs_page_has_the_public_address(proxied: Server, path: str) -> None:
    page = get(proxied, path, **HEADERS)
    assert page.status_code == 200
    assert f"https://127.0.0.1:{proxied.port}{PREFIX}/predict" in page.text


@pytest.mark.parametrize("path", ["/openapi.json", f"{PREFIX}/openapi.json"], ids=["removed", "kept"])
def test_the_openapi_document_names_the_prefix_as_its_server(proxied: Server, path: str) -> None:
    assert get(proxied, path, **HEADERS).json()["servers"] == [{"url": PREFIX}]
    assert "servers" not in get(proxied, "/openapi.json").json()


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["removed", "kept"])
def test_every_route_works_below_the_prefix(proxied: Server, prefix: str) -> None:
    for path in ("/", "/page/main.js", "/page/examples/cat.jpg", "/ping", "/ready", "/model", "/metrics"):
        assert get(proxied, f"{prefix}{path}", **HEADERS).status_code == 200, path
    response = requests.post(
        f"{proxied.url}{prefix}/predict",
        data=RED,
        headers={"Content-Type": "image/png", **HEADERS},
        timeout=60,
    )
    assert response.json()["predictions"][0]["label"] == "red"


def test_redirects_stay_below_the_prefix(proxied: Server) -> None:
    location = get(proxied, "/docs/", **HEADERS).headers["Location"]
    assert location == f"https://127.0.0.1:{proxied.port}{PREFIX}/docs"


def test_links_of_the_pages_are_relative(server: Server) -> None:
    for path in ("/", "/docs"):
        links = re.findall(r'(?:href|src)="([^"]*)"', get(server, path).text)
        assert links
        assert not [link for link in links if link.startswith("/")]


@pytest.mark.parametrize("environment", [{}, {"FORWARDED_ALLOW_IPS": "192.0.2.1"}], ids=["unset", "another"])
def test_the_prefix_of_a_client_that_is_no_trusted_proxy_is_ignored(
    start: Callable[..., Server], shared_store: Store, environment: dict[str, str]
) -> None:
    server = start(shared_store.uri, **environment).wait()
    assert PREFIX not in get(server, "/docs", **HEADERS).text
    assert "servers" not in get(server, "/openapi.json", **HEADERS).json()


@pytest.mark.parametrize("prefix", ["//evil.example", '/a"b', "/x y", "https://evil.example", "/<script>"])
def test_a_prefix_that_is_not_a_plain_path_is_ignored(proxied: Server, prefix: str) -> None:
    page = get(proxied, "/docs", **{**HEADERS, "X-Forwarded-Prefix": prefix})
    assert page.status_code == 200
    assert f"https://127.0.0.1:{proxied.port}/predict" in page.text

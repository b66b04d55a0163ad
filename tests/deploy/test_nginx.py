"""Requests pass through nginx to the service, with headers that the service can trust."""

import re
from collections.abc import Callable
from urllib.parse import urljoin

import pytest
import requests

from serving.config import ServeConfig
from tests.deploy.proxy import CLOSE, HOST, PHOTO, POST, TEMPLATE, Recorder, Service, exchange, predict

pytestmark = pytest.mark.slow


def test_every_route_is_answered_as_without_nginx(port: int, service: Service) -> None:
    pages = ("/", "/page/main.js", "/model", "/docs", "/openapi.json", "/v2")
    for path in (*pages, "/ping", "/health", "/ready", "/v2/health/live", "/v2/health/ready"):
        direct = requests.get(f"http://{service.address}{path}", timeout=60)
        proxied = requests.get(f"http://127.0.0.1:{port}{path}", timeout=60)
        assert proxied.status_code == direct.status_code == 200, path
        assert proxied.headers["Content-Type"] == direct.headers["Content-Type"], path
    assert predict(port).json()["predictions"][0]["label"]


def test_a_chunked_upload_is_answered(port: int) -> None:
    answer = requests.post(
        f"http://127.0.0.1:{port}/predict",
        data=iter([PHOTO]),
        headers={"Content-Type": "image/jpeg"},
        timeout=60,
    )
    assert answer.json()["predictions"][0]["label"]


def test_request_ids_pass_in_both_directions(port: int) -> None:
    url = f"http://127.0.0.1:{port}/model"
    assert requests.get(url, headers={"X-Request-ID": "abc.1"}, timeout=60).headers["X-Request-ID"] == "abc.1"
    ids = [requests.get(url, timeout=60).headers["X-Request-ID"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_errors_of_the_service_pass_unchanged(port: int, service: Service) -> None:
    infer = "/v2/models/cifar10/infer"
    for path, body in (("/predict", b"no image"), ("/nowhere", PHOTO), ("/feedback", b"{}"), (infer, b"{}")):
        direct = requests.post(f"http://{service.address}{path}", data=body, timeout=60)
        proxied = requests.post(f"http://127.0.0.1:{port}{path}", data=body, timeout=60)
        assert direct.status_code >= 400
        assert (proxied.status_code, proxied.json()) == (direct.status_code, direct.json())


def test_one_connection_carries_several_requests(port: int) -> None:
    ping = b"GET /ping HTTP/1.1\r\n" + HOST
    answers = exchange(port, ping + b"\r\n" + ping + CLOSE + b"\r\n")
    assert [answer.status for answer in answers] == [200, 200]


def test_a_client_cannot_set_the_forwarded_headers(start: Callable[..., int], recorder: Recorder) -> None:
    port = start(recorder.address)
    forged = {
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "example.org",
        "X-Forwarded-Port": "1",
        "X-Forwarded-Prefix": "/elsewhere",
        "X-Real-IP": "192.0.2.1",
        "X_Forwarded_For": "192.0.2.1",
        "Forwarded": "for=192.0.2.1",
    }
    requests.get(f"http://127.0.0.1:{port}/", headers=forged, timeout=60)
    headers = recorder.headers()
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["host"] == f"127.0.0.1:{port}"
    others = {name.lower() for name in forged} - {"x-forwarded-for", "x-forwarded-proto"}
    assert not others & headers.keys()


def test_the_service_logs_the_address_of_the_client(port: int, service: Service) -> None:
    request = b"GET /model HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n" + HOST + CLOSE + b"\r\n"
    (answer,) = exchange(port, request, source="127.0.0.9")
    line = service.logged("/model", answer.headers["x-request-id"])
    assert line["client"] == "127.0.0.9"


def test_a_trusted_proxy_reports_address_and_scheme(start: Callable[..., int], recorder: Recorder) -> None:
    port = start(recorder.address, changes={"#set_real_ip_from 10.0.0.0/8;": "set_real_ip_from 127.0.0.1;"})
    headers = {"X-Forwarded-For": "198.51.100.1, 192.0.2.1", "X-Forwarded-Proto": "https"}
    requests.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=60)
    assert recorder.headers()["x-forwarded-for"] == "192.0.2.1"
    assert recorder.headers()["x-forwarded-proto"] == "https"


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        (b"/", b"localhost:8000", "localhost:8000"),
        (b"/", b"[::1]:8000", "[::1]:8000"),
        (b"http://localhost:8000/", b"localhost:8000", "localhost:8000"),
        (b"http://evil.example/", b"localhost", "evil.example"),
    ],
)
def test_the_service_sees_the_host_that_the_client_named(
    start: Callable[..., int], recorder: Recorder, target: bytes, host: bytes, expected: str
) -> None:
    port = start(recorder.address)
    exchange(port, b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + CLOSE + b"\r\n")
    assert recorder.headers()["host"] == expected
    assert recorder.received[-1].startswith(b"GET / HTTP/1.1\r\n")


def test_the_service_refuses_an_absolute_address_of_another_host(port: int) -> None:
    request = b"GET http://evil.example/model HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    (answer,) = exchange(port, request)
    assert (answer.status, answer.error_code) == (400, "unknown_host")


def test_the_service_gets_whole_bodies_with_a_length(start: Callable[..., int], recorder: Recorder) -> None:
    port = start(recorder.address)
    exchange(port, POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    headers = recorder.headers()
    assert headers["content-length"] == "5"
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert recorder.received[-1].endswith(b"\r\n\r\nabcde")


def test_the_service_can_be_below_a_prefix(start: Callable[..., int], service: Service) -> None:
    url = f"http://127.0.0.1:{start(service.address, prefix='/cifar')}"
    page = requests.get(f"{url}/cifar", timeout=60)  # follows the redirection
    assert page.url == f"{url}/cifar/"
    assert "page/main.js" in page.text
    assert requests.get(f"{url}/cifar/page/main.js", timeout=60).status_code == 200
    assert requests.get(f"{url}/cifar/ready", timeout=60).status_code == 200
    answer = requests.post(f"{url}/cifar/predict", files={"file": PHOTO}, timeout=60)
    assert answer.json()["predictions"][0]["label"]
    for outside in ("/", "/ready", "/cifarette/ready"):
        refused = requests.get(url + outside, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


def test_the_docs_contain_the_prefix(start: Callable[..., int], service: Service) -> None:
    url = f"http://127.0.0.1:{start(service.address, prefix='/cifar')}/cifar"
    docs = requests.get(f"{url}/docs", timeout=60).text
    assert f"{url}/predict" in docs
    (link,) = re.findall(r'href="([^"]*openapi[^"]*)"', docs)
    openapi = requests.get(urljoin(f"{url}/docs", link), timeout=60)
    assert openapi.json()["servers"][0]["url"] in ("/cifar", url)


def test_the_service_is_told_the_prefix(start: Callable[..., int], recorder: Recorder) -> None:
    port = start(recorder.address, prefix="/cifar")
    exchange(port, b"GET /cifar/model?a=%20b HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
    assert recorder.received[-1].startswith(b"GET /model?a=%20b HTTP/1.1\r\n")
    assert recorder.headers()["x-forwarded-prefix"] == "/cifar"


def test_nginx_waits_longer_than_the_service_works() -> None:
    assert f"proxy_read_timeout {ServeConfig().request_timeout + 5:.0f}s" in TEMPLATE

"""What protects a server: the key, names, the rate of a client, the bound on what waits."""

import concurrent.futures
from collections.abc import Callable

import pytest
import requests

from tests.serving.app.conftest import RED, Server, Store, image, until

pytestmark = pytest.mark.slow

KEY = "correct horse battery staple"


def code(response: requests.Response) -> str:
    found: str = response.json()["error"]["code"]
    return found


def test_with_a_key_only_who_has_it_is_answered(start: Callable[..., Server], shared_store: Store) -> None:
    server = start(shared_store.uri, CIFAR_MLFLOW_API_KEY=KEY).wait()
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": KEY + "x"}):
        for path in ("/predict", "/invocations", "/feedback"):
            refused = requests.post(f"{server.url}{path}", data=RED, headers=headers, timeout=60)
            assert (refused.status_code, code(refused)) == (401, "wrong_key")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/model", "/metrics"):
        assert requests.get(f"{server.url}{path}", timeout=60).status_code == 401
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
        assert server.predict(headers=headers).ok
    for path in ("/", "/page/main.js", "/ping", "/ready", "/docs"):
        assert requests.get(f"{server.url}{path}", timeout=60).ok
    assert KEY not in server.log.read_text()


def test_a_name_that_is_not_the_servers_is_refused(server: Server) -> None:
    """A page of a stranger, whose name is made to point to this machine, calls it by that name."""
    for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1"):
        refused = server.predict(headers={"Host": name})
        assert (refused.status_code, code(refused)) == (400, "unknown_host")
    for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert server.predict(headers={"Host": name}).ok
    assert requests.get(f"{server.url}/ready", headers={"Host": "10.0.0.7"}, timeout=60).ok  # a probe


def test_the_address_that_it_listens_on_is_a_name_of_the_server(
    start: Callable[..., Server], shared_store: Store
) -> None:
    assert start(shared_store.uri, "--host", "127.0.0.2").wait().predict().ok


def test_a_client_that_asks_too_often_is_told_when_to_come_back(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(
        shared_store.uri, "--rate-limit", "60", "--allowed-hosts", "127.0.0.1,*.example.org"
    ).wait()
    assert server.predict(headers={"Host": "a.example.org"}).ok
    answers = [server.predict() for _ in range(30)]
    refused = [each for each in answers if each.status_code == 429]
    assert {each.status_code for each in answers} == {200, 429}
    assert len(refused) >= 15
    assert {code(each) for each in refused} == {"too_many_requests"}
    assert all(1 <= int(each.headers["Retry-After"]) <= 60 for each in refused)
    assert all(requests.get(f"{server.url}/ping", timeout=60).ok for _ in range(30))
    files = ("/", "/page/main.js", "/page/style.css")  # a visit of the page is a dozen of them
    assert all(requests.get(server.url + files[i % 3], timeout=60).ok for i in range(60))


def test_what_is_too_much_is_refused_at_once_and_the_rest_is_answered(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--queue-limit", "8").wait()
    photo = image("lime", (2000, 2000), "jpeg")
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: server.predict(photo), range(200)))
    good = [each for each in answers if each.ok]
    refused = [each for each in answers if not each.ok]
    assert good
    assert {each.json()["predictions"][0]["label"] for each in good} == {"green"}
    assert {(each.status_code, code(each), each.headers["Retry-After"]) for each in refused} == {
        (503, "overloaded", "1")
    }
    assert until(lambda: server.predict(photo).ok)

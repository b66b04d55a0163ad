"""Protection of a server: API key, host names, rate limit, secret request ids, a bound on waiting images."""

import base64
import concurrent.futures
from collections.abc import Callable

import pytest
import requests

from serving.app.auth import AccessControl
from serving.app.errors import Refusal
from serving.config import ServeConfig
from tests.serving.app.conftest import RED, Server, Store, image, until

pytestmark = pytest.mark.slow

KEY = "correct horse battery staple"


def code(response: requests.Response) -> str:
    found: str = response.json()["error"]["code"]
    return found


def test_requests_without_the_key_are_refused(start: Callable[..., Server], shared_store: Store) -> None:
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


def test_a_host_that_is_not_a_name_of_the_server_is_refused(server: Server) -> None:
    """DNS rebinding: a foreign web page whose host name resolves to this machine sends that name."""
    for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1"):
        refused = server.predict(headers={"Host": name})
        assert (refused.status_code, code(refused)) == (400, "unknown_host")
    for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert server.predict(headers={"Host": name}).ok
    assert requests.get(f"{server.url}/ready", headers={"Host": "10.0.0.7"}, timeout=60).ok  # a probe


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.1", "::1"])
def test_a_loopback_address_in_any_spelling_limits_the_names(host: str) -> None:
    access = AccessControl(ServeConfig(host=host))
    access.check("/model", "127.0.0.1", {b"host": b"localhost:8000"})
    with pytest.raises(Refusal, match="unknown_host"):
        access.check("/model", "127.0.0.1", {b"host": b"evil.example"})


def test_the_listening_address_is_a_name_of_the_server(
    start: Callable[..., Server], shared_store: Store
) -> None:
    assert start(shared_store.uri, "--host", "127.0.0.2").wait().predict().ok


def test_a_client_above_the_rate_limit_is_told_when_to_try_again(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(
        shared_store.uri, "--rate-limit", "60", "--allowed-hosts", "127.0.0.1,*.example.org"
    ).wait()
    assert server.predict(headers={"Host": "a.example.org"}).ok
    answers = [server.predict() for _ in range(30)]
    refused = [each for each in answers if each.status_code == 429]
    assert {each.status_code for each in answers} == {200, 429}
    assert {code(each) for each in refused} == {"too_many_requests"}
    assert all(1 <= int(each.headers["Retry-After"]) <= 60 for each in refused)
    assert all(requests.get(f"{server.url}/ping", timeout=60).ok for _ in range(30))
    files = ("/", "/page/main.js", "/page/style.css")  # opening the page loads a dozen of them
    assert all(requests.get(server.url + files[i % 3], timeout=60).ok for i in range(60))


def test_feedback_is_accepted_by_the_secret_id_of_an_answer_only(server: Server) -> None:
    def send_feedback(request_id: str) -> int:
        return server.post("/feedback", {"request_id": request_id, "correct": True}).status_code

    own = server.predict()
    assert own.headers["X-Request-ID"] == own.json()["request_id"]
    assert "X-Feedback-ID" not in own.headers
    assert send_feedback(own.json()["request_id"]) == 204
    table = "image\n" + base64.b64encode(RED).decode() + "\n"
    for route, kind, body in (("/predict", "image/png", RED), ("/invocations", "text/csv", table)):
        headers = {"X-Request-ID": "order-1", "Content-Type": kind}
        answer = requests.post(f"{server.url}{route}", data=body, headers=headers, timeout=60)
        assert answer.ok
        assert answer.headers["X-Request-ID"] == "order-1"
        assert send_feedback("order-1") == 404, "anybody may know or guess the id that a client chose"
        assert send_feedback(answer.headers["X-Feedback-ID"]) == 204


def test_request_ids_cannot_be_predicted_from_earlier_ones(server: Server) -> None:
    """Attack on the Mersenne Twister: a number of its output follows from three of the 624 before it.

    An id from it has 80 of its bits, of which the numbers 3n and 3n + 1 are complete. The number 3n + 624
    depends on 3n, 3n + 1 and 3n + 397, so the lowest 32 bits of an id can be computed from earlier ids.
    """
    with requests.Session() as session:
        ids = [session.get(f"{server.url}/ping", timeout=60).headers["X-Request-ID"] for _ in range(240)]
    low = [int(each, 16) & 0xFFFF_FFFF for each in ids]
    middle = [int(each, 16) >> 32 & 0xFFFF_FFFF for each in ids]
    predicted = [
        _temper(_untemper(middle[n + 132]) ^ _twist(_untemper(low[n]), _untemper(middle[n])))
        for n in range(32)
    ]
    assert not set(predicted) & set(low[208:])
    assert ids == sorted(ids, key=lambda each: each[:12]), "they begin with the time"


def _twist(first: int, second: int) -> int:
    mixed = (first & 0x8000_0000) | (second & 0x7FFF_FFFF)
    return mixed >> 1 ^ (0x9908_B0DF if mixed & 1 else 0)


def _temper(state: int) -> int:
    state ^= state >> 11
    state ^= state << 7 & 0x9D2C_5680
    state ^= state << 15 & 0xEFC6_0000
    return state ^ state >> 18


def _untemper(output: int) -> int:
    """Invert `_temper`: each step is undone by repeating it, a few more bits of which are right each time."""
    output ^= output >> 18
    output ^= output << 15 & 0xEFC6_0000
    state = output
    for _ in range(4):
        state = output ^ (state << 7 & 0x9D2C_5680)
    output = state
    for _ in range(2):
        state = output ^ state >> 11
    return state


def test_images_above_the_limit_are_refused_at_once_and_the_others_answered(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, "--queue-limit", "8").wait()
    photo = image("lime", (2000, 2000), "jpeg")
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: server.predict(photo), range(200)))
    good = [each for each in answers if each.ok]
    refused = [each for each in answers if not each.ok]
    assert {each.json()["predictions"][0]["label"] for each in good} == {"green"}
    assert {(each.status_code, code(each), each.headers["Retry-After"]) for each in refused} == {
        (503, "overloaded", "1")
    }
    assert until(lambda: server.predict(photo).ok)

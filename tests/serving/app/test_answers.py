"""What good requests are answered, by /predict as documented, and by /invocations as MLflow does."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from serving.registry.mlflow_model import save_model
from serving.registry.mlflow_server import mlflow_server
from tests.serving.app.conftest import BLUE, LIME, NAME, RED, ROOT, Server, image
from tests.serving.test_models_serve import CSV, PARQUET, parquet, split, text

pytestmark = pytest.mark.slow

R, B = text(RED), text(BLUE)


def test_many_files_of_a_form_are_answered_in_their_order(server: Server) -> None:
    files = [("file", (name, data)) for name, data in [("a.png", RED), ("x/b.png", LIME), ("c", BLUE)]]
    response = requests.post(f"{server.url}/predict?top_k=2", files=files, timeout=60)
    answer = response.json()
    assert [each["label"] for each in answer["predictions"]] == ["red", "green", "blue"]
    assert [each["filename"] for each in answer["predictions"]] == ["a.png", "b.png", "c"]
    assert {len(each["top_k"]) for each in answer["predictions"]} == {2}
    assert answer["model"] == {"name": NAME, "version": "1"}
    assert answer["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (RED, "image/png"),
        (RED, "application/octet-stream"),
        (json.dumps({"image": R}), "application/json"),
        (json.dumps({"images": [f"data:image/png;base64,{R}"]}), "application/json"),
    ],
)
def test_each_way_to_send_a_picture_is_answered(server: Server, body: Any, kind: str) -> None:
    (answer,) = server.post("/predict", body, kind).json()["predictions"]
    assert answer["label"] == "red"
    assert answer["confidence"] == pytest.approx(0.9999, abs=1e-4)
    assert answer["error"] is None


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif"])
def test_each_kind_and_size_of_picture_is_answered(server: Server, kind: str) -> None:
    (answer,) = server.predict(image("blue", (900, 600), kind)).json()["predictions"]
    assert answer["label"] == "blue"


def test_a_bad_picture_among_good_ones_has_its_own_error(server: Server) -> None:
    answers = server.post("/predict", {"images": [R, "!", B, 5]}).json()["predictions"]
    assert [each["label"] for each in answers] == ["red", None, "blue", None]
    codes = [each["error"] and each["error"]["code"] for each in answers]
    assert codes == [None, "not_base64", None, "wrong_type"]


def test_what_the_network_saw_comes_back_if_asked_for(server: Server) -> None:
    (answer,) = server.predict(RED, params={"input": "true"}).json()["predictions"]
    kind, _, content = answer["input"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content)[:4] == b"\x89PNG"


def test_a_client_may_name_its_request(server: Server) -> None:
    assert server.predict(headers={"X-Request-ID": "mine-7"}).json()["request_id"] == "mine-7"
    odd = server.predict(headers={"X-Request-ID": "no<good>"}).headers["X-Request-ID"]
    assert re.fullmatch(r"[0-9a-f]{32}", odd)


def test_the_model_and_the_state_can_be_asked_for(server: Server) -> None:
    model = requests.get(f"{server.url}/model", timeout=60).json()
    assert model["name"] == NAME
    assert (model["alias"], model["classes"]) == ("champion", ["red", "green", "blue"])
    assert server.ready() == {"ready": True, "model": {"name": NAME, "version": "1"}, "problems": []}


def test_feedback_is_taken_for_an_answer_and_for_nothing_else(server: Server) -> None:
    request_id = server.predict().json()["request_id"]
    good = {"request_id": request_id, "item": 0, "correct": False, "label": "green"}
    assert server.post("/feedback", good).status_code == 204
    assert server.post("/feedback", {**good, "item": 1}).json()["error"]["code"] == "unknown_answer"
    assert server.post("/feedback", {**good, "label": "zebra"}).json()["error"]["code"] == "unknown_label"


def test_the_metrics_count_what_was_answered(server: Server) -> None:
    server.predict(BLUE)
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    assert re.search(r'cifar_requests_total\{route="/predict",status="200"\} [1-9]', text)
    assert re.search(r'cifar_predictions_total\{label="blue"\} [1-9]', text)
    assert f'cifar_model_info{{name="{NAME}",precision="fp32",run_id="0",version="1"}} 1.0' in text
    assert re.search(r"cifar_batch_size_count [1-9]", text)


def test_the_examples_of_the_documentation_work(server: Server, tmp_path: Path) -> None:
    shutil.copy(ROOT / "serving/examples/cat.jpg", tmp_path)
    page = requests.get(f"{server.url}/docs", timeout=60).text
    from html import unescape

    examples = [unescape(each) for each in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    assert len(examples) >= 6
    for example in examples:
        done = subprocess.run(
            ["bash", "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        code = json.loads(done.stdout).get("error", {}).get("code")
        assert code == ("unknown_answer" if "/feedback" in example else None), (example, done.stdout)


# The same requests to MLflow's own server.


@pytest.fixture(scope="module")
def peer(scorer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("peer") / "model"
    save_model(scorer_folder, folder)
    with mlflow_server(str(folder)) as running:
        yield running.address


GOOD: dict[str, tuple[Any, str]] = {
    "split": (split(R, B), "application/json"),
    "split with another column": (split(R, columns=["image"], index=[3]), "application/json"),
    "two columns": (
        {"dataframe_split": {"columns": ["n", "image"], "data": [[1, R], [2, B]]}},
        "application/json",
    ),
    "index": (
        {"dataframe_split": {"columns": ["image"], "index": [7, 3], "data": [[R], [B]]}},
        "application/json",
    ),
    "records": ({"dataframe_records": [{"image": R}, {"image": B}]}, "application/json"),
    "records with more": ({"dataframe_records": [{"image": R, "n": 1}]}, "application/json"),
    "inputs": ({"inputs": [R, B]}, "application/json"),
    "inputs by column": ({"inputs": {"image": [R, B]}}, "application/json"),
    "inputs by row": ({"inputs": [{"image": R}, {"image": B}]}, "application/json"),
    "instances": ({"instances": [R, B]}, "application/json"),
    "instances by row": ({"instances": [{"image": R}]}, "application/json"),
    "data URL": ({"inputs": [f"data:image/png;base64,{R}"]}, "application/json"),
    "top_k": (split(R, params={"top_k": 2}), "application/json"),
    "on_error": (split(R, None, 5, "!", B, params={"on_error": "null"}), "application/json"),
    "charset": (split(R), "application/json; charset=utf-8"),
    "csv": (f"image\n{R}\n{B}\n", CSV),
    "csv of data URLs": (f'n,image\n1,"data:image/png;base64,{R}"\n2,{B}\n', CSV),
    "parquet of bytes": (parquet(image=[RED, BLUE]), PARQUET),
    "parquet of text": (parquet(image=[R, B]), PARQUET),
    "1000 rows": (split(*[R] * 1000), "application/json"),
}


@pytest.mark.parametrize("name", GOOD)
def test_invocations_answers_as_mlflow_does(server: Server, peer: str, name: str) -> None:
    body, kind = GOOD[name]
    data = body if isinstance(body, bytes | str) else json.dumps(body)
    theirs = requests.post(f"{peer}/invocations", data=data, headers={"Content-Type": kind}, timeout=120)
    ours = server.post("/invocations", data, kind)
    assert (ours.status_code, theirs.status_code) == (200, 200), (ours.text[:300], theirs.text[:300])
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]
    assert ours.text == theirs.text


@pytest.mark.parametrize("path", ["/ping", "/health", "/version"])
def test_the_other_routes_are_mlflows_too(server: Server, peer: str, path: str) -> None:
    ours, theirs = (requests.get(f"{url}{path}", timeout=60) for url in (server.url, peer))
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]

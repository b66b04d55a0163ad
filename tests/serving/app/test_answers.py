"""Answers to valid requests: /predict as documented, /invocations as MLflow's scoring server gives them."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from serving.app.schemas import PredictResponse
from serving.registry.mlflow_model import save_model
from serving.registry.mlflow_server import mlflow_server
from tests.scorer_folders import CLASS_MAP
from tests.serving.app.conftest import BLUE, LIME, NAME, RED, ROOT, Server, Store, image
from tests.serving.test_models_serve import CSV, PARQUET, parquet, split, text

pytestmark = pytest.mark.slow

R, B = text(RED), text(BLUE)


def test_files_of_a_form_are_answered_in_order(server: Server) -> None:
    files = [("file", (name, data)) for name, data in [("a.png", RED), ("x/b.png", LIME), ("c", BLUE)]]
    response = requests.post(f"{server.url}/predict?top_k=2", files=files, timeout=60)
    answer = response.json()
    assert [each["label"] for each in answer["predictions"]] == ["red", "green", "blue"]
    assert [each["filename"] for each in answer["predictions"]] == ["a.png", "b.png", "c"]
    assert {len(each["top_k"]) for each in answer["predictions"]} == {2}
    assert answer["model"] == {"name": NAME, "version": "1"}
    assert answer["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ('form-data; name="file"; filename="C:\\\\pictures\\\\cat.png"', "cat.png"),
        ('form-data; name="file"; filename="Zürich 猫.png"', "Zürich 猫.png"),
        (f'form-data; name="file"; filename="{"x" * 300}"', "x" * 255),
        ('form-data; name="file"; filename=""', None),
        ('form-data; name="file"', None),
    ],
)
def test_the_file_name_of_a_form_comes_back_without_folders(
    server: Server, disposition: str, filename: str | None
) -> None:
    body = f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + RED + b"\r\n--b--\r\n"
    (answer,) = server.post("/predict", body, "multipart/form-data; boundary=b").json()["predictions"]
    assert (answer["label"], answer["filename"]) == ("red", filename)


def test_a_form_with_a_large_file_is_answered(server: Server) -> None:
    photo = image("blue", (2000, 2000), "bmp")
    assert len(photo) > 8 * 2**20
    response = requests.post(
        f"{server.url}/predict",
        files={"file": ("large.bmp", photo)},
        data={"note": "not an image"},
        timeout=60,
    )
    assert [each["label"] for each in response.json()["predictions"]] == ["blue"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (RED, "image/png"),
        (RED, "application/octet-stream"),
        (json.dumps({"image": R}), "application/json"),
        (json.dumps({"images": [f"data:image/png;base64,{R}"]}), "application/json"),
    ],
)
def test_an_image_can_be_sent_as_bytes_or_in_json(server: Server, body: Any, kind: str) -> None:
    (answer,) = server.post("/predict", body, kind).json()["predictions"]
    assert answer["label"] == "red"
    assert answer["confidence"] == pytest.approx(0.9999, abs=1e-4)
    assert answer["error"] is None


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif"])
def test_every_supported_image_format_is_answered(server: Server, kind: str) -> None:
    (answer,) = server.predict(image("blue", (900, 600), kind)).json()["predictions"]
    assert answer["label"] == "blue"


def test_a_bad_image_among_good_ones_has_its_own_error(server: Server) -> None:
    answers = server.post("/predict", {"images": [R, "!", B, 5]}).json()["predictions"]
    assert [each["label"] for each in answers] == ["red", None, "blue", None]
    codes = [each["error"] and each["error"]["code"] for each in answers]
    assert codes == [None, "not_base64", None, "wrong_type"]


def test_input_true_returns_the_image_that_the_network_saw(server: Server) -> None:
    (answer,) = server.predict(RED, params={"input": "true"}).json()["predictions"]
    kind, _, content = answer["input"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content)[:4] == b"\x89PNG"


def test_the_answer_has_the_documented_fields(server: Server) -> None:
    files = [("file", ("a.png", RED)), ("file", ("b.png", b"no picture"))]
    for query in ("", "?input=true&top_k=1&another=x"):
        answer = requests.post(f"{server.url}/predict{query}", files=files, timeout=60).json()
        assert PredictResponse.model_validate(answer).model_dump(exclude_unset=True) == answer
        assert [each["error"] is None for each in answer["predictions"]] == [True, False]


def test_the_request_id_of_a_client_comes_back_in_the_header(server: Server) -> None:
    response = server.predict(headers={"X-Request-ID": "mine-7"})
    assert response.headers["X-Request-ID"] == "mine-7"
    assert re.fullmatch(r"[0-9a-f]{32}", response.json()["request_id"])  # feedback needs one nobody can guess
    invalid = server.predict(headers={"X-Request-ID": "no<good>"}).headers["X-Request-ID"]
    assert re.fullmatch(r"[0-9a-f]{32}", invalid)


def test_model_and_ready_describe_the_served_version(server: Server) -> None:
    model = requests.get(f"{server.url}/model", timeout=60).json()
    assert model["name"] == NAME
    assert (model["alias"], model["classes"]) == ("champion", ["red", "green", "blue"])
    assert server.ready() == {"ready": True, "model": {"name": NAME, "version": "1"}, "problems": []}


def test_feedback_is_accepted_for_an_existing_answer_only(server: Server) -> None:
    request_id = server.predict().json()["request_id"]
    good = {"request_id": request_id, "item": 0, "correct": False, "label": "green"}
    assert server.post("/feedback", good).status_code == 204
    assert server.post("/feedback", {**good, "item": 1}).json()["error"]["code"] == "unknown_answer"
    assert server.post("/feedback", {**good, "label": "zebra"}).json()["error"]["code"] == "unknown_label"


@pytest.mark.parametrize("correct", [True, False])
def test_feedback_that_contradicts_itself_is_refused(server: Server, correct: bool) -> None:
    answer = server.predict().json()
    right = answer["predictions"][0]["label"]
    other = next(each["label"] for each in answer["predictions"][0]["top_k"] if each["label"] != right)
    given = {"request_id": answer["request_id"], "correct": correct}
    refused = server.post("/feedback", {**given, "label": other if correct else right})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_feedback")
    assert f"correct is {str(correct).lower()}" in refused.json()["error"]["message"]
    assert server.post("/feedback", {**given, "label": right if correct else other}).status_code == 204


def test_the_metrics_count_answers(server: Server) -> None:
    server.predict(BLUE)
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    assert re.search(r'cifar_requests_total\{route="/predict",status="200"\} [1-9]', text)
    assert re.search(r'cifar_predictions_total\{label="blue"\} [1-9]', text)
    assert f'cifar_model_info{{name="{NAME}",precision="fp32",run_id="0",version="1"}} 1.0' in text
    assert re.search(r"cifar_batch_size_count [1-9]", text)


def test_the_examples_of_the_docs_page_work(server: Server, tmp_path: Path) -> None:
    shutil.copy(ROOT / "serving/examples/cat.jpg", tmp_path)
    page = requests.get(f"{server.url}/docs", timeout=60).text
    examples = [unescape(each) for each in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]
    assert len(examples) >= 6
    for example in examples:
        done = subprocess.run(
            ["bash", "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        code = json.loads(done.stdout).get("error", {}).get("code")
        assert code == ("unknown_answer" if "/feedback" in example else None), (example, done.stdout)


# The same requests to MLflow's own scoring server.


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
    "inputs of one image by column": ({"inputs": {"image": R}}, "application/json"),
    "records without an image": (
        {"dataframe_records": [{"image": R}, {"n": 1}], "params": {"on_error": "null"}},
        "application/json",
    ),
    "another parameter": (split(R, params={"temperature": 1}), "application/json"),
    "empty params": ({"inputs": [R], "params": None}, "application/json"),
    "csv with another column": (f"image,n\n{R},1\n{B},2\n", CSV),
    "parquet with other columns": (parquet(n=[1.5, 2.5], image=[RED, BLUE], text=["a", "b"]), PARQUET),
    "1000 rows": (split(*[R] * 1000), "application/json"),
}


@pytest.mark.parametrize("name", GOOD)
def test_invocations_answers_as_mlflows_server_does(server: Server, peer: str, name: str) -> None:
    body, kind = GOOD[name]
    data = body if isinstance(body, bytes | str) else json.dumps(body)
    theirs = requests.post(f"{peer}/invocations", data=data, headers={"Content-Type": kind}, timeout=120)
    ours = server.post("/invocations", data, kind)
    assert (ours.status_code, theirs.status_code) == (200, 200), (ours.text[:300], theirs.text[:300])
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]
    assert ours.json() == theirs.json()


@pytest.mark.parametrize("path", ["/ping", "/health", "/version"])
def test_the_other_routes_answer_as_mlflows_server_does(server: Server, peer: str, path: str) -> None:
    ours, theirs = (requests.get(f"{url}{path}", timeout=60) for url in (server.url, peer))
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]


def test_an_explanation_has_a_map_that_sums_to_the_logit_and_a_picture(
    start: Callable[..., Server], store: Store
) -> None:
    store.promote(store.add(class_map=CLASS_MAP))
    server = start(store.uri).wait()
    half = Image.new("RGB", (32, 32), "black")
    half.paste("red", (0, 0, 16, 32))
    file = io.BytesIO()
    half.save(file, "png")
    files = [("file", data) for data in (file.getvalue(), b"no image", BLUE)]
    answer = requests.post(f"{server.url}/predict?explain=true", files=files, timeout=60).json()
    first, bad, last = PredictResponse.model_validate(answer).predictions
    assert bad.explanation is None
    assert first.explanation is not None
    assert last.explanation is not None
    assert (first.explanation.label, last.explanation.label) == ("red", "blue")
    class_map = np.array(first.explanation.class_map)
    assert class_map.shape == (4, 4)
    assert class_map.sum() == pytest.approx(5, abs=1e-3)  # the logit is 10 x the mean of the channel
    np.testing.assert_allclose(class_map[:, 2:], 0)
    data = base64.b64decode(first.explanation.overlay.removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as overlay:
        assert (overlay.format, overlay.size, overlay.getpixel((31, 16))) == ("PNG", (32, 32), (0, 0, 0))
    alone = requests.post(f"{server.url}/predict?explain=true", files=[files[2]], timeout=60).json()
    assert alone["predictions"][0]["explanation"] == last.explanation.model_dump()
    assert requests.get(f"{server.url}/model", timeout=60).json()["class_map"] == CLASS_MAP
    assert server.predict().json()["predictions"][0].get("explanation") is None


def test_a_model_that_gives_no_maps_says_so(server: Server) -> None:
    response = requests.post(
        f"{server.url}/predict?explain=true", RED, headers={"Content-Type": "image/png"}, timeout=60
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_explanation"
    assert "register the model again" in response.json()["error"]["message"]
    assert requests.get(f"{server.url}/model", timeout=60).json()["class_map"] is None

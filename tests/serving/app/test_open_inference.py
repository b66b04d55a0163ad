"""The Open Inference Protocol v2 of a server: its routes, both forms of tensors, errors, limits and logs."""

import base64
import gzip
import io
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.serving.app.conftest import BLUE, LIME, NAME, RED, ROOT, Server, Store, image, until

pytestmark = pytest.mark.slow

# The name and version of a model that is not registered: its architecture and its run.
MODEL, VERSION = "model", "0"
INFER = f"/v2/models/{MODEL}/infer"
ROUTE = "/v2/models/{name}/infer"
HEADER = "Inference-Header-Content-Length"
KEY = "correct horse battery staple"
ECHO = "zebra-4711"  # part of the requests; must not come back
CAT = (ROOT / "serving/examples/cat.jpg").read_bytes()
R = base64.b64encode(RED).decode()
IMAGE: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}
PIXELS: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 3]}


@pytest.fixture(scope="module")
def server(scorer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, f"sqlite:///{folder}/mlflow.db", f"--model-uri={scorer_folder}")
    try:
        yield server.wait()
    finally:
        server.stop()


def request_of(tensor: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor], **more}


def encoded(*elements: bytes) -> bytes:
    """Return a tensor of BYTES in the binary form."""
    return b"".join(len(each).to_bytes(4, "little") + each for each in elements)


def infer(server: Server, content: Any, path: str = INFER, **headers: str) -> requests.Response:
    body = json.dumps(content)  # not `json=`, which refuses NaN
    return requests.post(server.url + path, data=body, headers=headers, timeout=120)


def infer_binary(
    server: Server, tensor: dict[str, Any], data: bytes, path: str = INFER, **more: Any
) -> requests.Response:
    """Send a request whose tensor follows the JSON."""
    content = request_of({**tensor, "parameters": {"binary_data_size": len(data)}}, **more)
    body = json.dumps(content).encode()
    return requests.post(server.url + path, data=body + data, headers={HEADER: str(len(body))}, timeout=120)


def values(response: requests.Response, name: str = "label") -> list[Any]:
    """Return the data of an output in JSON."""
    assert response.status_code == 200, response.text
    found: list[Any] = next(each["data"] for each in response.json()["outputs"] if each["name"] == name)
    return found


def error(response: requests.Response) -> str:
    """Return the message of an error, which is all that the response has."""
    assert response.headers["Content-Type"] == "application/json"
    assert response.json().keys() == {"error"}
    assert ECHO not in response.text
    message: str = response.json()["error"]
    assert message.endswith(".")
    return message


def requests_counted(server: Server, route: str) -> dict[str, int]:
    """Return the number of requests to a route by status."""
    text = requests.get(f"{server.url}/metrics", headers={"X-API-Key": KEY}, timeout=60).text
    series = re.findall(r'cifar_requests_total\{route="(.*?)",status="(\d+)"\} ([\d.]+)', text)
    return {status: int(float(count)) for name, status, count in series if name == route}


def test_the_server_and_its_model_are_described(server: Server) -> None:
    def get(path: str) -> Any:
        return requests.get(server.url + path, timeout=60).json()

    assert get("/v2") == {"name": "cifar-mlflow", "version": "1", "extensions": ["binary_tensor_data"]}
    assert get("/v2/health/live") == {"live": True}
    assert get("/v2/health/ready") == {"ready": True}
    for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/{VERSION}"):
        assert get(f"{path}/ready") == {"name": MODEL, "ready": True}
        described = get(path)
        assert (described["name"], described["versions"]) == (MODEL, [VERSION])
        assert described["inputs"] == [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ]
        assert described["outputs"] == [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "class_index", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "uncertain", "datatype": "BOOL", "shape": [-1]},
        ]


def test_images_get_the_answers_of_predict(server: Server) -> None:
    sent = [RED, CAT, image((90, 100, 90), (61, 47), "bmp")]
    texts = [base64.b64encode(each).decode() for each in sent]
    predict = requests.post(f"{server.url}/predict?top_k=3", json={"images": texts}, timeout=60)
    expected = predict.json()["predictions"]
    assert {each["uncertain"] for each in expected} == {True, False}
    three, with_version = {**IMAGE, "shape": [3]}, f"/v2/models/{MODEL}/versions/{VERSION}/infer"
    column = {**IMAGE, "shape": [3, 1]}
    for answer in (
        infer(server, request_of({**three, "data": texts})),
        infer(server, request_of({**column, "data": [[text] for text in texts]}), with_version),
        infer_binary(server, three, encoded(*sent), with_version),
        infer_binary(server, column, encoded(*sent)),
    ):
        for name in ("label", "class_index", "uncertain"):
            assert values(answer, name) == [each[name] for each in expected]
        for row, each in zip(np.reshape(values(answer, "probabilities"), (3, 3)), expected, strict=True):
            confidences = [ranked["confidence"] for ranked in each["top_k"]]
            assert sorted(row, reverse=True) == pytest.approx(confidences, abs=1e-6)
            assert row[each["class_index"]] == max(row)
        assert (answer.json()["model_name"], answer.json()["model_version"]) == (MODEL, VERSION)


@pytest.mark.parametrize("size", [(32, 32), (32, 70), (301, 200)])
def test_pixels_get_the_answer_of_a_file_with_the_same_pixels(server: Server, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    pixels[0, ..., 0] //= 2  # so that swapped channels or images would change the probabilities
    files = []
    for each in pixels:
        file = io.BytesIO()
        Image.fromarray(each).save(file, "png")
        files.append(file.getvalue())
    expected = values(infer_binary(server, {**IMAGE, "shape": [2]}, encoded(*files)), "probabilities")
    tensor = {**PIXELS, "shape": list(pixels.shape)}
    assert values(infer_binary(server, tensor, pixels.tobytes()), "probabilities") == expected
    if pixels.size < 20_000:  # JSON may have 30,000 values
        for data in (pixels.tolist(), pixels.ravel().tolist()):
            assert values(infer(server, request_of({**tensor, "data": data})), "probabilities") == expected


def test_outputs_are_selected_and_sent_as_bytes_on_request(server: Server) -> None:
    def outputs(**more: Any) -> requests.Response:
        return infer(server, request_of({**IMAGE, "data": [R]}, **more))

    everything = outputs(parameters={"binary_data_output": True}, id=ECHO)
    assert everything.headers["Content-Type"] == "application/octet-stream"
    length = int(everything.headers[HEADER])
    header, tensors = json.loads(everything.content[:length]), everything.content[length:]
    assert header["id"] == ECHO
    assert [each["parameters"]["binary_data_size"] for each in header["outputs"]] == [7, 8, 12, 1]
    assert tensors[:15] == encoded(b"red") + bytes(8)
    assert np.frombuffer(tensors[15:27], "<f4").tolist() == pytest.approx(values(outputs(), "probabilities"))
    assert tensors[27:] == b"\0"

    mixed = outputs(
        parameters={"binary_data_output": True},
        outputs=[
            {"name": "uncertain"},
            {"name": "label", "parameters": {"binary_data": False}},
        ],
    )
    header = json.loads(mixed.content[: int(mixed.headers[HEADER])])
    assert "id" not in header
    assert [each["name"] for each in header["outputs"]] == ["uncertain", "label"]
    assert header["outputs"][1] == {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["red"]}
    assert mixed.content.endswith(b"}\0")


def test_tritonclient_gets_answers_and_reads_errors(server: Server) -> None:
    http = pytest.importorskip("tritonclient.http")
    exception = pytest.importorskip("tritonclient.utils").InferenceServerException
    with closing(http.InferenceServerClient(server.url.removeprefix("http://"))) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, VERSION)
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata(MODEL, VERSION)["platform"] == "onnxruntime_onnx"

        files = http.InferInput("image", [2], "BYTES")
        files.set_data_from_numpy(np.array([BLUE, RED], object))
        answer = client.infer(MODEL, [files], model_version=VERSION, request_id="7")
        assert answer.get_response()["id"] == "7"
        assert answer.as_numpy("label").tolist() == [b"blue", b"red"]
        assert answer.as_numpy("class_index").tolist() == [2, 0]
        assert answer.as_numpy("probabilities").shape == (2, 3)
        assert answer.as_numpy("uncertain").dtype == bool

        pixels = http.InferInput("pixels", [1, 40, 50, 3], "UINT8")
        green = np.full((1, 40, 50, 3), (0, 255, 0), np.uint8)
        for is_binary in (True, False):
            pixels.set_data_from_numpy(green, binary_data=is_binary)
            label = http.InferRequestedOutput("label", binary_data=is_binary)
            answer = client.infer(MODEL, [pixels], outputs=[label], request_compression_algorithm="gzip")
            assert answer.as_numpy("label")[0] in (b"green", "green")
            assert answer.as_numpy("uncertain") is None

        with pytest.raises(exception, match="no such model or version"):
            client.infer(MODEL, [files], model_version="2")
        with pytest.raises(exception, match=r"outputs\.0\.name: Input should be 'label'"):
            client.infer(MODEL, [files], outputs=[http.InferRequestedOutput("logits")])
        with pytest.raises(exception, match="parameters: it has unknown names"):
            client.infer(MODEL, [files], outputs=[http.InferRequestedOutput("label", class_count=2)])


def test_the_client_in_the_docs_works(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tritonclient.http")
    docs = (ROOT / "docs" / "service.md").read_text()
    code = next(
        each for each in re.findall(r"```python\n(.*?)```", docs, re.DOTALL) if "tritonclient" in each
    )
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = {}
    local = code.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    exec(local.replace('"cifar10"', f'"{MODEL}"'), found)
    assert found["answer"].as_numpy("label")[0] in (b"red", b"green", b"blue")


# Bad requests.

NAN = float("nan")
HUGE = 10**4000
JSON_ERRORS: dict[str, tuple[Any, int, str]] = {
    "a list": ([], 400, "body: Input should be an object"),
    "no inputs": ({}, 400, "inputs: Field required"),
    "an empty list of inputs": ({"inputs": []}, 400, "at least 1 item"),
    "both inputs": ({"inputs": [{**IMAGE, "data": [R]}, PIXELS]}, 400, "at most 1 item"),
    "an unknown input": (request_of({**IMAGE, "name": ECHO, "data": [R]}), 400, "'image' or 'pixels'"),
    "an unknown output": (
        request_of({**IMAGE, "data": [R]}, outputs=[{"name": ECHO}]),
        400,
        "'label', 'class_index'",
    ),
    "an output twice": (
        request_of({**IMAGE, "data": [R]}, outputs=[{"name": "label"}] * 2),
        400,
        "requested twice",
    ),
    "an unknown parameter": (
        request_of({**IMAGE, "data": [R]}, parameters={ECHO: 1}),
        400,
        "parameters: it has unknown names",
    ),
    "many unknown parameters": (
        request_of({**IMAGE, "data": [R]}, parameters=dict.fromkeys(map(str, range(29_000)))),
        400,
        "unknown names",
    ),
    "a parameter of another type": (
        request_of({**IMAGE, "data": [R]}, parameters={"binary_data_output": ECHO}),
        400,
        "valid boolean",
    ),
    "an id that is a number": (request_of({**IMAGE, "data": [R]}, id=5), 400, "id: "),
    "another datatype": (request_of({**IMAGE, "datatype": "UINT8", "data": [1]}), 400, "datatype BYTES"),
    "an unknown datatype": (
        request_of({**IMAGE, "datatype": "FP32", "data": [1]}),
        400,
        "'BYTES' or 'UINT8'",
    ),
    "no data": (request_of(IMAGE), 400, "either data or binary_data_size"),
    "fewer elements than the shape": (request_of({**IMAGE, "shape": [2], "data": [R]}), 400, "length"),
    "more elements than the shape": (request_of({**IMAGE, "data": [R, R]}), 400, "length"),
    "a nested shape": (request_of({**IMAGE, "shape": [1, 2], "data": [R, R]}), 400, r"\[n\] or \[n, 1\]"),
    "no images": (request_of({**IMAGE, "shape": [0], "data": []}), 400, "no images"),
    "an empty shape": (request_of({**IMAGE, "shape": [], "data": []}), 400, "at least 1 item"),
    "a negative size": (request_of({**IMAGE, "shape": [-1], "data": []}), 400, "greater than or equal to 0"),
    "a huge size": (request_of({**IMAGE, "shape": [HUGE], "data": []}), 413, "1,000 images"),
    "a size that is no number": (request_of({**IMAGE, "shape": [NAN], "data": []}), 400, "valid integer"),
    "a size of 1.0": (request_of({**IMAGE, "shape": [1.0], "data": [R]}), 400, "valid integer"),
    "too many sizes": (request_of({**PIXELS, "shape": [1] * 20_000}), 400, "at most 4 items"),
    "too many images": (request_of({**IMAGE, "shape": [1001], "data": ["x"] * 1001}), 413, "1,000 images"),
    "a number for an image": (request_of({**IMAGE, "data": [5]}), 400, "image 0: A picture must be bytes"),
    "NaN for an image": (request_of({**IMAGE, "data": [NAN]}), 400, "image 0: The picture is missing"),
    "a list for an image": (request_of({**IMAGE, "data": [[R]]}), 400, "image 0: "),
    "a bad image after a good one": (
        request_of({**IMAGE, "shape": [2], "data": [R, f"{ECHO}!"]}),
        400,
        "image 1: The text is not base64",
    ),
    "pixels without channels": (request_of({**PIXELS, "shape": [1, 2, 2], "data": [0] * 4}), 400, "width, 3"),
    "pixels with four channels": (
        request_of({**PIXELS, "shape": [1, 1, 1, 4], "data": [0] * 4}),
        400,
        "width, 3",
    ),
    "pixels without rows": (request_of({**PIXELS, "shape": [1, 0, 5, 3], "data": []}), 400, "one pixel"),
    "a huge product": (request_of({**PIXELS, "shape": [1, HUGE, HUGE, 3], "data": [1]}), 400, "length"),
    "a product that overflows": (
        request_of({**PIXELS, "shape": [1, 2**32, 2**32, 3], "data": []}),
        400,
        "length",
    ),
    "a pixel of 256": (request_of({**PIXELS, "data": [256] * 12}), 400, "0 to 255"),
    "a pixel of -1": (request_of({**PIXELS, "data": [-1] * 12}), 400, "0 to 255"),
    "a pixel of 1.5": (request_of({**PIXELS, "data": [1.5] * 12}), 400, "0 to 255"),
    "a pixel of NaN": (request_of({**PIXELS, "data": [NAN] * 12}), 400, "0 to 255"),
    "a pixel of true": (request_of({**PIXELS, "data": [True] * 12}), 400, "0 to 255"),
    "a pixel that is text": (request_of({**PIXELS, "data": ["1"] * 12}), 400, "0 to 255"),
    "rows of unequal length": (
        request_of({**PIXELS, "data": [[[[1, 2, 3], [1, 2]], [[1, 2, 3], [1, 2, 3, 4]]]]}),
        400,
        "length",
    ),
    "numbers among rows": (request_of({**PIXELS, "data": [[[[1, 2, 3], [1, 2, 3]], 5]]}), 400, "length"),
    "too many values": (request_of({**PIXELS, "data": [0] * 40_000}), 413, "30,000 values"),
    "a size without bytes": (
        request_of({**PIXELS, "parameters": {"binary_data_size": 12}}),
        400,
        "the number of bytes after the JSON, 0",
    ),
    "a negative size of bytes": (
        request_of({**PIXELS, "parameters": {"binary_data_size": -12}}),
        400,
        "greater than or equal to 0",
    ),
}


@pytest.mark.parametrize("name", JSON_ERRORS)
def test_a_bad_request_is_refused_with_a_reason(server: Server, name: str) -> None:
    content, status, message = JSON_ERRORS[name]
    response = infer(server, content)
    assert re.search(message, error(response)), response.text
    assert response.status_code == status


def test_a_body_that_is_not_json_is_refused(server: Server) -> None:
    for body in (b"", b"[" * 20_000, b'{"inputs": "\xff"}', RED, b'{"id": ' + b"1" * 5000 + b"}"):
        response = requests.post(server.url + INFER, data=body, timeout=60)
        assert (response.status_code, error(response)) == (
            400,
            f"The body is not JSON, or not up to {HEADER}.",
        )


def test_bytes_that_do_not_fit_the_tensor_are_refused(server: Server) -> None:
    two, pixels = {**IMAGE, "shape": [2]}, PIXELS
    outside = (2**32 - 1).to_bytes(4, "little")
    for tensor, data, message in (
        (two, encoded(RED), "as many elements"),
        (two, encoded(RED, RED, RED), "as many elements"),
        (two, encoded(RED, RED) + b"\0", "as many elements"),
        (two, encoded(RED) + outside + RED, "as many elements"),
        (two, encoded(RED) + b"\1\0", "as many elements"),
        (two, b"\0", "as many elements"),
        (two, outside * 2**18, "as many elements"),
        (two, encoded(RED, b""), "image 1: The picture is empty"),
        (two, encoded(RED, ECHO.encode()), "image 1: This is not a picture"),
        (pixels, bytes(11), "length"),
        (pixels, bytes(13), "length"),
        ({**pixels, "shape": [1, 2**32, 2**32, 3]}, bytes(12), "length"),
        ({**pixels, "shape": [1, 1, 70_000, 3]}, bytes(210_000), "image 0: The picture has 70000 x 1"),
    ):
        response = infer_binary(server, tensor, data)
        assert message in error(response)
        assert response.status_code == (413 if "70000" in message else 400)


def test_a_wrong_length_of_the_json_is_refused(server: Server) -> None:
    content = request_of({**PIXELS, "parameters": {"binary_data_size": 12}})
    body = json.dumps(content).encode()
    for length, message in (
        (str(len(body) + 13), "exceeds the length of the body"),
        (str(len(body) - 1), "not JSON"),
        (str(len(body) + 1), "not JSON"),
        ("0", "not JSON"),
        ("-1", "greater than or equal to 0"),
        ("1" * 5000, "inference-header-content-length: "),
        (ECHO, "valid integer"),
    ):
        response = requests.post(
            server.url + INFER, data=body + bytes(12), headers={HEADER: length}, timeout=60
        )
        assert response.status_code == 400
        assert message in error(response)
    for data in (b"", bytes(11), bytes(13)):
        response = requests.post(
            server.url + INFER, data=body + data, headers={HEADER: str(len(body))}, timeout=60
        )
        assert (response.status_code, f"after the JSON, {len(data)};" in error(response)) == (400, True)
    both = request_of({**PIXELS, "data": [0] * 12, "parameters": {"binary_data_size": 12}})
    body = json.dumps(both).encode()
    response = requests.post(
        server.url + INFER, data=body + bytes(12), headers={HEADER: str(len(body))}, timeout=60
    )
    assert "either data or binary_data_size" in error(response)


def test_every_error_has_the_form_of_the_protocol(server: Server) -> None:
    good = request_of({**IMAGE, "data": [R]})
    for response, status in (
        (requests.get(server.url + "/v2/nothing", timeout=60), 404),
        (requests.get(server.url + INFER, timeout=60), 405),
        (requests.get(server.url + "/v2", headers={"Host": "evil.example"}, timeout=60), 400),
        (requests.get(server.url + f"/v2/models/{ECHO}", timeout=60), 404),
        (requests.get(server.url + f"/v2/models/{ECHO}/ready", timeout=60), 404),
        (requests.get(server.url + f"/v2/models/{MODEL}/versions/{ECHO}", timeout=60), 404),
        (infer(server, good, f"/v2/models/{ECHO}/infer"), 404),
        (infer(server, good, f"/v2/models/{MODEL}/versions/{ECHO}/infer"), 404),
        (requests.post(server.url + INFER, data=bytes(17 * 2**20), timeout=60), 413),
        (requests.post(server.url + INFER, data=b"x", headers={"Content-Encoding": "br"}, timeout=60), 415),
        (requests.post(server.url + INFER, data=b"x", headers={"Content-Encoding": "gzip"}, timeout=60), 400),
    ):
        error(response)
        assert response.status_code == status
    assert requests.get(
        f"{server.url}/v2/health/ready", headers={"Host": "10.0.0.7"}, timeout=60
    ).ok  # a probe
    assert requests.get(f"{server.url}/v20", timeout=60).json()["error"]["code"] == "not_found"


def test_requests_are_counted_and_logged_like_those_to_predict(server: Server) -> None:
    before = requests_counted(server, ROUTE)
    good = infer(server, request_of({**IMAGE, "shape": [2], "data": [R, R]}), **{"X-Request-ID": "mine"})
    request_id = good.json()["parameters"]["request_id"]
    assert good.headers["X-Feedback-ID"] == request_id
    infer_binary(server, {**IMAGE, "shape": [2]}, encoded(BLUE, b"x"), f"/v2/models/{MODEL}/versions/0/infer")
    infer_binary(server, {**PIXELS, "shape": [1, 40, 50, 3]}, bytes(6000))
    infer(server, {})
    infer(server, request_of({**IMAGE, "data": [R]}), f"/v2/models/{ECHO}/infer")
    infer(
        server, request_of({**IMAGE, "data": [R]}), f"{INFER}%0A"
    )  # the router accepts a newline at the end
    after = requests_counted(server, ROUTE)
    counted = {status: count - before.get(status, 0) for status, count in after.items()}
    assert {status: count for status, count in counted.items() if count} == {"200": 3, "400": 2, "404": 1}
    assert ECHO not in requests.get(f"{server.url}/metrics", timeout=60).text

    def rows() -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(server.folder / "requests.db")) as log:
            return log.execute(
                "SELECT item, status, error_code, label, image_format, model_version FROM request_log "
                "WHERE route = ? AND id > (SELECT max(id) FROM request_log WHERE request_id = ?) - 2",
                (ROUTE, request_id),
            ).fetchall()

    until(lambda: len(rows()) >= 8)
    served = f"{MODEL}/{VERSION}"
    assert rows() == [
        (0, 200, None, "red", "PNG", served),
        (1, 200, None, "red", "PNG", served),
        (0, 400, None, "blue", "PNG", served),
        (1, 400, "not_an_image", None, None, served),
        (0, 200, None, "red", "BMP", served),
        (0, 400, "bad_tensor", None, None, None),
        (0, 404, "unknown_model", None, None, None),
        (0, 200, None, "red", "PNG", served),
    ]
    assert server.post("/feedback", {"request_id": request_id, "item": 1, "correct": True}).status_code == 204


# Servers with other settings.


@pytest.fixture(scope="module")
def protected(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server with an API key and a small queue limit."""
    folder = tmp_path_factory.mktemp("protected")
    server = Server(folder, shared_store.uri, "--queue-limit", "2", CIFAR_MLFLOW_API_KEY=KEY)
    try:
        yield server.wait()
    finally:
        server.stop()


def test_the_key_protects_everything_but_the_probes(protected: Server) -> None:
    url, model = protected.url, f"/v2/models/{NAME}"
    for path in ("/v2", model, f"{model}/versions/1"):
        refused = requests.get(url + path, timeout=60)
        assert (refused.status_code, "key is missing" in error(refused)) == (401, True)
        assert requests.get(url + path, headers={"X-API-Key": KEY}, timeout=60).ok
    content = request_of({**IMAGE, "data": [R]})
    for path in (f"{model}/infer", f"{model}/versions/1/infer"):
        assert infer(protected, content, path).status_code == 401
        assert values(infer(protected, content, path, Authorization=f"Bearer {KEY}")) == ["red"]
    for path in ("/v2/health/live", "/v2/health/ready", f"{model}/ready", f"{model}/versions/1/ready"):
        assert requests.get(url + path, timeout=60).ok


def test_a_busy_server_refuses_images_but_not_probes(protected: Server) -> None:
    model = f"/v2/models/{NAME}"
    photo = base64.b64encode(image("lime", (3000, 3000), "jpeg")).decode()
    content = request_of({**IMAGE, "data": [photo]})
    refused, stop = threading.Event(), threading.Event()

    def send_requests() -> set[int]:
        statuses = set()
        while not stop.is_set():
            response = infer(protected, content, f"{model}/infer", **{"X-API-Key": KEY})
            statuses.add(response.status_code)
            if response.status_code == 503:
                assert "Try again in a second" in error(response)
                assert response.headers["Retry-After"] == "1"
                refused.set()
        return statuses

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(send_requests) for _ in range(8)]
        try:
            assert refused.wait(60)
            for probe in ("/v2/health/live", "/v2/health/ready", f"{model}/ready") * 10:
                assert requests.get(protected.url + probe, timeout=60).ok
        finally:
            stop.set()
    assert set.union(*(client.result() for client in clients)) == {200, 503}
    assert requests_counted(protected, ROUTE)["503"] > 0


def test_only_the_served_version_is_known(start: Callable[..., Server], store: Store) -> None:
    server = start(store.uri, "--follow-seconds", "0.2").wait()
    content = request_of({**IMAGE, "data": [R]})

    def status(version: str) -> int:
        return infer(server, content, f"/v2/models/{NAME}/versions/{version}/infer").status_code

    number = store.add()
    assert (status("1"), status(number)) == (200, 404)
    store.promote(number)
    until(lambda: server.ready()["model"]["version"] == number)
    assert (status("1"), status(number)) == (404, 200)
    assert infer(server, content, f"/v2/models/{NAME}/infer").json()["model_version"] == number
    assert requests.get(f"{server.url}/v2/models/{NAME}", timeout=60).json()["versions"] == [number]


def test_mutated_requests_are_answered_or_refused(server: Server) -> None:
    tensor = {**IMAGE, "shape": [2], "parameters": {"binary_data_size": len(encoded(RED, LIME))}}
    body = json.dumps(request_of(tensor, outputs=[{"name": "label"}])).encode()
    seed = bytearray(body + encoded(RED, LIME))

    @settings(max_examples=600, deadline=None, derandomize=True)
    @given(
        st.lists(st.tuples(st.integers(0, len(seed)), st.integers(0, 4), st.binary(max_size=5)), max_size=3),
        st.integers(-3, 3),
        st.booleans(),
    )
    def is_answered(changes: list[tuple[int, int, bytes]], shift: int, compressed: bool) -> None:
        data = bytearray(seed)
        for start, length, replacement in changes:
            data[start : start + length] = replacement
        headers = {HEADER: str(len(body) + shift)}
        if compressed:
            headers["Content-Encoding"] = "gzip"
        response = requests.post(
            server.url + INFER,
            data=gzip.compress(bytes(data)) if compressed else bytes(data),
            headers=headers,
            timeout=60,
        )
        assert response.status_code in (200, 400, 413, 415)
        if response.status_code != 200:
            error(response)

    is_answered()

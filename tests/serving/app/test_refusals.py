"""Errors of clients: a status, a code, a sentence; no traceback, no path and no echo of the request."""

import io
import json
import struct
import zlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from PIL import Image
from pydantic import BaseModel, ValidationError

from serving.app.schemas import ImageList, InvocationsBody, SingleImage
from tests.serving.app.conftest import RED, Server, image
from tests.serving.test_models_serve import CSV, PARQUET, parquet, split, text

pytestmark = pytest.mark.slow

JSON = "application/json"
FORM = "multipart/form-data; boundary=b"
ECHO = "zebra-4711"  # part of the requests; must not come back
R = text(RED)


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header declares this size, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def tiff() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "tiff")
    return file.getvalue()


def part(name: str, content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)


def parquet_of(compression: str = "snappy", /, **columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, store_schema=False, compression=compression)
    return file.getvalue()


def parquet_with(**metadata: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [RED]}).replace_schema_metadata(metadata), file)
    return file.getvalue()


def repeated(value: bytes, kind: pa.DataType) -> pa.Array:
    """Return a column of 300 equal values, which a Parquet file stores once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([value], kind))


PREDICT: dict[str, tuple[Any, str, int, str]] = {
    "not JSON": (f'{{"image": {ECHO}', JSON, 400, "not_json"),
    "not UTF-8": (b'{"image": "\xff"}', JSON, 400, "not_json"),
    "nested deeply": ("[" * 20_000, JSON, 400, "not_json"),
    "a number of 5,000 digits": ('{"image": ' + "1" * 5000 + "}", JSON, 400, "not_json"),
    "a list": ([R], JSON, 400, "no_pictures"),
    "another key": ({ECHO: R}, JSON, 400, "no_pictures"),
    "many other keys": (dict.fromkeys(map(str, range(29_000)), 1), JSON, 400, "no_pictures"),
    "no pictures": ({"images": []}, JSON, 400, "no_pictures"),
    "too many pictures": ({"images": ["x"] * 1001}, JSON, 413, "too_many_pictures"),
    "too many values": ('{"images": [' + "{}," * 30_000 + "{}]}", JSON, 413, "too_many_values"),
    "lists in lists": ('{"images": [' + "[[[[[[[[]]]]]]]]," * 4_000 + "[]]}", JSON, 413, "too_many_values"),
    "a number for a picture": ({"image": 5}, JSON, 400, "wrong_type"),
    "not base64": ({"image": f"{ECHO}!"}, JSON, 400, "not_base64"),
    "null": ({"image": None}, JSON, 400, "missing_image"),
    "text": (ECHO, "text/plain", 415, "unsupported_media_type"),
    "no content type": (RED, "", 415, "unsupported_media_type"),
    "an empty body": (b"", "image/png", 400, "empty_image"),
    "no picture": (ECHO, "image/png", 400, "not_an_image"),
    "a TIFF": (tiff(), "image/tiff", 415, "unsupported_format"),
    "cut short": (image(size=(300, 300), kind="jpeg")[:-200], "image/jpeg", 400, "truncated_image"),
    "a bomb": (png_of(60_000, 60_000), "image/png", 413, "too_many_pixels"),
    "too large": (bytes(17 * 2**20), "image/png", 413, "too_large"),
    "no boundary": (part("file", RED) + b"--b--\r\n", "multipart/form-data", 400, "bad_form"),
    "another boundary": (
        part("file", RED) + b"--b--\r\n",
        "multipart/form-data; boundary=c",
        400,
        "bad_form",
    ),
    "a form cut short": (part("file", RED), FORM, 400, "bad_form"),
    "a form without file": (part(ECHO, RED) + b"--b--\r\n", FORM, 400, "no_pictures"),
    "a form with too many": (part("file", b"") * 1001 + b"--b--\r\n", FORM, 413, "too_many_pictures"),
    "a form of other files": (
        b'--b\r\nContent-Disposition: form-data; name="x"; filename="x"\r\n\r\n\r\n' * 2000 + b"--b--\r\n",
        FORM,
        413,
        "too_many_pictures",
    ),
    "a form part without a name": (
        b"--b\r\nContent-Disposition: form-data\r\n\r\n\r\n--b--\r\n",
        FORM,
        400,
        "bad_form",
    ),
    "a form of other fields": (part("x", b"") * 2000 + b"--b--\r\n", FORM, 413, "too_many_pictures"),
}

INVOCATIONS: dict[str, tuple[Any, str, int, str]] = {
    "not JSON": (f'{{"inputs": ["{ECHO}"', JSON, 400, "not_json"),
    "an empty body": (b"", JSON, 400, "not_json"),
    "too many values": ('{"inputs": [' + "[]," * 30_000 + "[]]}", JSON, 413, "too_many_values"),
    "a list": ([R], JSON, 400, "bad_table"),
    "none of the four keys": ({ECHO: [R]}, JSON, 400, "bad_table"),
    "two of the four keys": ({"inputs": [R], "instances": [R]}, JSON, 400, "bad_table"),
    "more cells than columns": (
        {"dataframe_split": {"columns": ["image"], "data": [[R, ECHO]]}},
        JSON,
        400,
        "bad_table",
    ),
    "a column whose name is an object": (
        {"dataframe_split": {"columns": [{ECHO: 1}], "data": [[R]]}},
        JSON,
        400,
        "bad_table",
    ),
    "flat rows": ({"dataframe_split": {"columns": ["image"], "data": [R]}}, JSON, 400, "bad_table"),
    "two columns of one name": (
        {"dataframe_split": {"columns": ["image", "image"], "data": [[R, R]]}}, JSON, 400, "bad_table"
    ),
    "records that are an object": ({"dataframe_records": {"image": R}}, JSON, 400, "bad_table"),
    "inputs that are text": ({"inputs": R}, JSON, 400, "bad_table"),
    "inputs without the column": ({"inputs": {ECHO: [R]}}, JSON, 400, "no_image_column"),
    "params that are a list": ({"inputs": [R], "params": [1]}, JSON, 400, "bad_param"),
    "top_k that is text": (split(R, params={"top_k": ECHO}), JSON, 400, "bad_param"),
    "nested deeply": ("[" * 20_000, JSON, 400, "not_json"),
    "no column image": ({"dataframe_records": [{ECHO: R}]}, JSON, 400, "no_image_column"),
    "no rows": (split(), JSON, 400, "no_rows"),
    "too many rows": (split(*[R] * 1001), JSON, 413, "too_many_rows"),
    "a bad row": (split(R, f"{ECHO}!"), JSON, 400, "not_base64"),
    "top_k of 0": (split(R, params={"top_k": 0}), JSON, 400, "bad_param"),
    "top_k of 9": (split(R, params={"top_k": 9}), JSON, 400, "bad_param"),
    "another on_error": (split(R, params={"on_error": ECHO}), JSON, 400, "bad_param"),
    "another type": (ECHO, "application/xml", 415, "unsupported_media_type"),
    "another charset": (json.dumps(split(R)), f"{JSON}; charset=utf-16", 415, "unsupported_media_type"),
    "no content type": (json.dumps(split(R)), "", 415, "unsupported_media_type"),
    "CSV without the column": (f"{ECHO}\n{R}\n", CSV, 400, "no_image_column"),
    "CSV of zeros": (bytes(1000), CSV, 400, "no_image_column"),
    "CSV of many columns": ("image," * 250_000, CSV, 413, "too_many_rows"),
    "CSV of many columns in many lines": ('\ufeff\r \r"\n",' + "image," * 250_000, CSV, 413, "too_many_rows"),
    "CSV of an index of many columns": ("image\n" + "1," * 250_000, CSV, 413, "too_many_rows"),
    "no Parquet": (ECHO, PARQUET, 400, "bad_table"),
    "Parquet cut short": (parquet(image=[RED])[:-20], PARQUET, 400, "bad_table"),
    "Parquet of one large value in many rows": (
        parquet_of(image=repeated(bytes(2**20), pa.binary())), PARQUET, 413, "too_many_rows"
    ),
    "Parquet of one large value of a fixed length": (
        parquet_of(image=repeated(bytes(2**20), pa.binary(2**20))), PARQUET, 413, "too_many_rows"
    ),
    "Parquet with a column of lists": (
        parquet_of(image=[RED], other=[[0] * 2**20]), PARQUET, 400, "bad_table"
    ),
    "Parquet compressed by much": (
        parquet_of("zstd", image=[bytes(2**20)]), PARQUET, 400, "bad_table"
    ),
    "Parquet of many columns": (
        parquet_of(image=[RED], **{f"other{i}": [0] for i in range(200)}), PARQUET, 413, "too_many_rows"
    ),
    "Parquet with a large footer": (
        parquet_with(note="x" * 2**21), PARQUET, 413, "too_many_rows"
    ),
    "too large": (bytes(17 * 2**20), JSON, 413, "too_large"),
}  # fmt: skip


def check(response: requests.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text[:300]
    assert response.json().keys() == {"error"}
    assert response.json()["error"].keys() == {"code", "message"}
    assert response.json()["error"]["message"].endswith(".")
    assert response.headers["Content-Type"] == JSON
    for secret in ("Traceback", ".py", "/site-packages", "/home", "/tmp", ECHO):
        assert secret not in response.text


@pytest.mark.parametrize("name", PREDICT)
def test_predict_refuses(server: Server, name: str) -> None:
    body, kind, status, code = PREDICT[name]
    check(server.post("/predict", body, kind), status, code)


@pytest.mark.parametrize(
    ("schema", "content"),
    [
        (SingleImage, dict.fromkeys("abcdefgh", 1)),
        (ImageList, dict.fromkeys("abcdefgh", 1)),
        (InvocationsBody, {"dataframe_records": [1] * 9}),
        (InvocationsBody, {"dataframe_split": {"columns": ["image"], "data": [1] * 9}}),
        (InvocationsBody, {"dataframe_split": {"columns": [{}] * 9, "data": []}}),
        (InvocationsBody, {"dataframe_split": dict.fromkeys("abcdefgh", 1)}),
    ],
)
def test_many_mistakes_are_few_errors(schema: type[BaseModel], content: dict[str, Any]) -> None:
    """Each error takes kilobytes and time: 300,000 of them kept all other requests waiting for seconds."""
    with pytest.raises(ValidationError) as error:
        schema.model_validate_json(json.dumps(content))
    assert error.value.error_count() <= 4


@pytest.mark.parametrize("name", INVOCATIONS)
def test_invocations_refuses(server: Server, name: str) -> None:
    body, kind, status, code = INVOCATIONS[name]
    check(server.post("/invocations", body, kind), status, code)


@pytest.mark.parametrize(
    "params", [{"top_k": 0}, {"top_k": 4}, {"top_k": ECHO}, {"top_k": "٣"}, {"input": ECHO}]
)
def test_predict_refuses_invalid_query_parameters(server: Server, params: dict[str, Any]) -> None:
    check(server.predict(params=params), 400, "bad_param")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        ({"request_id": "a", "correct": True}, "text/plain", 415, "unsupported_media_type"),
        ({"request_id": "a", "correct": True}, JSON, 404, "unknown_answer"),
        ({"request_id": "a"}, JSON, 400, "bad_feedback"),
        ({"request_id": ECHO * 20, "correct": True}, JSON, 400, "bad_feedback"),
        ({"request_id": "a", "correct": "yes"}, JSON, 400, "bad_feedback"),
        ({"request_id": "a", "item": -1, "correct": True}, JSON, 400, "bad_feedback"),
        ({"request_id": "a", "correct": True, ECHO: 1}, JSON, 400, "bad_feedback"),
        ([ECHO], JSON, 400, "bad_feedback"),
        ([[]] * 30_000, JSON, 413, "too_large"),
        ('{"request_id": "a", ', JSON, 400, "not_json"),
    ],
)
def test_feedback_refuses(server: Server, body: Any, kind: str, status: int, code: str) -> None:
    check(server.post("/feedback", body, kind), status, code)


def test_other_methods_and_paths_are_refused(server: Server) -> None:
    check(requests.get(f"{server.url}/predict", timeout=60), 405, "wrong_method")
    check(requests.delete(f"{server.url}/model", timeout=60), 405, "wrong_method")
    check(requests.get(f"{server.url}/{ECHO}", timeout=60), 404, "not_found")
    check(requests.post(f"{server.url}/{ECHO}", data=RED, timeout=60), 404, "not_found")


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/..%2fapp.py",
        "/page/..%5capp.py",
        "/page//etc/passwd",
        "//etc/passwd",
        "/page/examples/../../config.py",
        "/page/examples/%2e%2e/%2e%2e/config.py",
        "/page/%00",
        "/page/" + "a" * 5000,
        "/page/",
        "/page/examples",
    ],
)
def test_no_path_leads_out_of_the_folder_of_the_page(server: Server, path: str) -> None:
    answer = server.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] in (b"404", b"400", b"405"), answer[:300]
    assert json.loads(body)["error"]["code"]


def test_every_response_has_the_security_headers(server: Server) -> None:
    for path in ("/", "/predict", "/model", "/nothing", "/page/main.js", "/docs"):
        headers = requests.get(f"{server.url}{path}", timeout=60).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Access-Control-Allow-Origin" not in headers
        assert "Server" not in headers

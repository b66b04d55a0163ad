"""A registered model behind plain `mlflow models serve`: answers to good, bad and hostile requests."""

import base64
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
from PIL import Image, features

from serving.registry.mlflow_model import save_model

pytestmark = pytest.mark.slow

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving-errors.md").read_text()
LABELS = {"red": "red", "lime": "green", "blue": "blue"}

Request = tuple[bytes | str, str | None]


class Server:
    """An `mlflow models serve` process and its children."""

    def __init__(self, model: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = ["models", "serve", "-m", str(model), "--env-manager", "local", "-p", str(port)]
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *command],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 180
        while True:
            try:
                if requests.get(f"{self.url}/ping", timeout=5).ok:
                    return
            except requests.ConnectionError:
                pass
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def post(self, body: bytes | str, content_type: str | None = JSON) -> requests.Response:
        headers = {"Content-Type": content_type} if content_type else {}
        return requests.post(f"{self.url}/invocations", data=body, headers=headers, timeout=120)

    def predict(self, body: Any) -> list[dict[str, Any]]:
        response = self.post(json.dumps(body))
        assert response.status_code == 200, response.text
        answers: list[dict[str, Any]] = response.json()["predictions"]
        return answers

    def memory(self, kind: str) -> int:
        """Return the current (VmRSS) or peak (VmHWM) memory in bytes of the largest process."""
        sizes = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                in_group = os.getpgid(int(process.name)) == self._process.pid
                status = (process / "status").read_text()
            except (ProcessLookupError, FileNotFoundError):
                continue
            if in_group and (found := re.search(rf"{kind}:\s+(\d+) kB", status)):
                sizes.append(int(found[1]) * 1024)
        return max(sizes)


@pytest.fixture(scope="module")
def server(scorer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    save_model(scorer_folder, folder / "model")
    server = Server(folder / "model", folder)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def image(colour: Any = "red", size: tuple[int, int] = (32, 32), kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pd.DataFrame(columns).to_parquet(file)
    return file.getvalue()


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
RED, BLUE = text(image("red")), text(image("blue"))


def split(*cells: Any, columns: Any = ("image",), **more: Any) -> dict[str, Any]:
    """Return a request with one column."""
    return {"dataframe_split": {"columns": columns, "data": [[cell] for cell in cells]}, **more}


def assert_still_serving(server: Server) -> None:
    assert [answer["label"] for answer in server.predict(split(RED, BLUE))] == ["red", "blue"]


# Good requests.


@pytest.mark.parametrize("content", [RED, f"data:image/png;base64,{RED}"], ids=["base64", "data URL"])
@pytest.mark.parametrize(
    "body",
    [
        lambda cell: {"dataframe_split": {"columns": ["image"], "data": [[cell], [BLUE]]}},
        lambda cell: {"dataframe_split": {"columns": ["n", "image"], "data": [[1, cell], [2, BLUE]]}},
        lambda cell: {"dataframe_split": {"columns": ["image"], "index": [7, 3], "data": [[cell], [BLUE]]}},
        lambda cell: {"dataframe_records": [{"image": cell}, {"image": BLUE}]},
        lambda cell: {"inputs": [cell, BLUE]},
        lambda cell: {"inputs": {"image": [cell, BLUE]}},
        lambda cell: {"inputs": [{"image": cell}, {"image": BLUE}]},
        lambda cell: {"instances": [cell, BLUE]},
        lambda cell: {"instances": [{"image": cell}, {"image": BLUE}]},
    ],
    ids=[
        "split",
        "another column",
        "index",
        "records",
        "inputs",
        "inputs by column",
        "inputs by row",
        "instances",
        "instances by row",
    ],
)
def test_every_json_format_is_answered(server: Server, body: Any, content: str) -> None:
    answers = server.predict(body(content))
    assert [answer["label"] for answer in answers] == ["red", "blue"]
    assert answers[0] == {
        "label": "red",
        "class_index": 0,
        "confidence": pytest.approx(0.9999, abs=1e-4),
        "top_k": [
            {"label": "red", "confidence": pytest.approx(0.9999, abs=1e-4)},
            {"label": "green", "confidence": pytest.approx(0, abs=1e-4)},
            {"label": "blue", "confidence": pytest.approx(0, abs=1e-4)},
        ],
        "uncertain": False,
    }


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (f"image\n{RED}\n{BLUE}\n", CSV),
        (f'n,image\n1,"data:image/png;base64,{RED}"\n2,{BLUE}\n', CSV),
        (parquet(image=[image("red"), image("blue")]), PARQUET),
        (parquet(image=[RED, BLUE]), PARQUET),
    ],
    ids=["csv", "csv of data URLs", "parquet of bytes", "parquet of text"],
)
def test_csv_and_parquet_are_answered(server: Server, body: bytes | str, content_type: str) -> None:
    response = server.post(body, content_type)
    assert [answer["label"] for answer in response.json()["predictions"]] == ["red", "blue"]


@pytest.mark.parametrize(
    "kind", ["png", "jpeg", "webp", "bmp", "gif", pytest.param("avif", marks=needs_avif)]
)
def test_every_image_format_is_answered(server: Server, kind: str) -> None:
    (answer,) = server.predict(split(text(image("blue", (90, 60), kind))))
    assert answer["label"] == "blue"


def test_a_row_gets_the_same_answer_alone_and_in_a_batch(server: Server) -> None:
    colours = [tuple(random.Random(i).choices(range(256), k=3)) for i in range(100)]
    cells = [text(image(colour)) for colour in colours]
    together = server.predict(split(*cells))
    for cell, answer in list(zip(cells, together, strict=True))[::10]:
        (alone,) = server.predict(split(cell))
        assert alone["label"] == answer["label"]
        assert alone["uncertain"] == answer["uncertain"]
        assert alone["confidence"] == pytest.approx(answer["confidence"], abs=1e-5)


def test_a_request_may_have_a_thousand_rows(server: Server) -> None:
    assert len(server.predict(split(*[RED] * 1000))) == 1000


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_is_the_number_of_listed_classes(server: Server, top_k: int) -> None:
    (answer,) = server.predict(split(BLUE, params={"top_k": top_k}))
    assert len(answer["top_k"]) == top_k
    assert answer["top_k"][0] == {"label": "blue", "confidence": answer["confidence"]}


def test_an_image_unlike_the_classes_is_uncertain(server: Server) -> None:
    answers = server.predict(split(RED, text(image("black")), text(image("gray"))))
    assert [answer["uncertain"] for answer in answers] == [False, True, True]


def test_with_null_bad_rows_get_errors_and_good_rows_get_answers(server: Server) -> None:
    cells = [RED, None, BLUE, 5, "!", text(b"GIF89a")]
    answers = server.predict(split(*cells, params={"on_error": "null"}))
    assert [answer["label"] for answer in answers] == ["red", None, "blue", None, None, None]
    codes = [answer["error"] and answer["error"]["code"] for answer in answers]
    assert codes == [None, "missing_image", None, "wrong_type", "not_base64", "truncated_image"]
    assert len({tuple(answer) for answer in answers}) == 1


def test_concurrent_clients_get_their_own_answers(server: Server) -> None:
    def client(number: int) -> list[tuple[list[str], list[str]]]:
        chance = random.Random(number)
        with requests.Session() as session:
            results = []
            for _ in range(15):
                colours = chance.choices(list(LABELS), k=chance.randint(1, 5))
                body = json.dumps(split(*[text(image(colour)) for colour in colours]))
                response = session.post(
                    f"{server.url}/invocations", data=body, headers={"Content-Type": JSON}, timeout=120
                )
                labels = [answer["label"] for answer in response.json()["predictions"]]
                results.append(([LABELS[colour] for colour in colours], labels))
            return results

    with ThreadPoolExecutor(16) as pool:
        for results in pool.map(client, range(16)):
            for expected, labels in results:
                assert labels == expected


# Bad requests that reach the model, with the error code of the response.


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_of(width: int, height: int, compressed: bytes = b"", more: bytes = b"") -> bytes:
    """Return a PNG that declares this size, with any data, and additional chunks before it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """Return 30,000 x 30,000 complete pixels in 3 MB.

    Every row is a separate deflate block, so the bytes of one compressed row are repeated.
    """
    side, row = 30_000, bytes(1 + 30_000 * 3)
    compressor = zlib.compressobj(9)
    header = compressor.compress(b"") + compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(row) + compressor.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", side * len(row) % 65521, 1)  # Adler-32 of zeros
    return png_of(side, side, header + block * side + b"\x03\0" + checksum)


def zip_of(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, image())
    return file.getvalue()


TEXT = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(10**6)))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQ="  # must not be in a response

BAD_CELLS: dict[str, tuple[Any, str]] = {
    "null": (None, "missing_image"),
    "a number": (4711471147114711, "wrong_type"),
    "NaN": (float("nan"), "missing_image"),
    "infinity": (float("inf"), "wrong_type"),
    "true": (True, "wrong_type"),
    "a list": ([SECRET], "wrong_type"),
    "an object": ({"b64": SECRET}, "wrong_type"),
    "floats, as mlflow.pytorch takes them": ([[[0.5] * 32] * 32] * 3, "wrong_type"),
    "empty text": ("", "empty_image"),
    "no base64": ("<secret> what is this?", "not_base64"),
    "base64 cut short": (RED[:-3], "not_base64"),
    "a null character": ("\0secretsecret", "not_base64"),
    "half a surrogate pair": (f"{RED}\ud800", "not_base64"),
    "a path": ("/etc/passwd", "not_an_image"),
    "an address": ("http://169.254.169.254/secret", "not_base64"),
    "a data URL without base64": ("data:image/png,secretsecret", "not_base64"),
    "an empty data URL": ("data:image/png;base64,", "empty_image"),
    "text in base64": (SECRET, "not_an_image"),
    "zero bytes": (text(bytes(1000)), "not_an_image"),
    "only a signature": (text(b"\x89PNG\r\n\x1a\n"), "truncated_image"),
    "a PNG cut short": (text(image("red", (500, 500))[:300]), "truncated_image"),
    "a JPEG cut short": (text(image("red", (500, 500), "jpeg")[:700]), "truncated_image"),
    "a WebP cut short": (text(image("red", (500, 500), "webp")[:60]), "truncated_image"),
    "a PNG with a damaged header": (text(image()[:20] + b"\xff" * 8 + image()[28:]), "truncated_image"),
    "a JPEG of noise": (text(b"\xff\xd8\xff" + random.Random(0).randbytes(5000)), "truncated_image"),
    "a bomb": (text(bomb()), "too_many_pixels"),
    "a bomb in name only": (text(png_of(2**31 - 1, 2**31 - 1)), "too_many_pixels"),
    "100,000 pixels wide": (text(png_of(100_000, 1, zlib.compress(bytes(300_001)))), "too_many_pixels"),
    "sixty compressed texts of 1 MB": (text(png_of(32, 32, more=TEXT * 60)), "too_complex"),
    "no pixels": (text(png_of(0, 0)), "truncated_image"),
    "more than 16 MB": (text(image() + bytes(17 * 2**20)), "too_many_bytes"),
    "an SVG": (text(SVG), "unsupported_format"),
    "a PDF": (text(b"%PDF-1.7 secret"), "unsupported_format"),
    "a TIFF": (text(image("red", (32, 32), "tiff")), "unsupported_format"),
    "an icon": (text(image("red", (32, 32), "ico")), "unsupported_format"),
    "a zip of pictures": (text(zip_of("a.png")), "not_an_image"),
    "a program": (text(b"\x7fELF" + bytes(500)), "not_an_image"),
    "a pickle": (text(b"\x80\x04cposix\nsystem\n(S'id'\ntR."), "not_an_image"),
}
BAD_TABLES: dict[str, tuple[Request, str]] = {
    "another column": ((json.dumps(split(RED, columns=["picture"])), JSON), "no_image_column"),
    "a column in other letters": ((json.dumps(split(RED, columns=["Image"])), JSON), "no_image_column"),
    "no names of columns": ((json.dumps(split(RED, columns=None)), JSON), "no_image_column"),
    "records without the column": (
        (json.dumps({"dataframe_records": [{"x": RED}]}), JSON),
        "no_image_column",
    ),
    "records that are text": ((json.dumps({"dataframe_records": [RED]}), JSON), "no_image_column"),
    "one text as inputs": ((json.dumps({"inputs": RED}), JSON), "no_image_column"),
    "a number as inputs": ((json.dumps({"inputs": 4711}), JSON), "no_image_column"),
    "null as inputs": ((json.dumps({"inputs": None}), JSON), "no_image_column"),
    "nothing as inputs": ((json.dumps({"inputs": {}}), JSON), "no_image_column"),
    "inputs of another column": ((json.dumps({"inputs": {"x": [RED]}}), JSON), "no_image_column"),
    "nested inputs": ((json.dumps({"inputs": [[RED, RED]]}), JSON), "wrong_type"),
    "a chat": ((json.dumps({"messages": [{"role": "user", "content": RED}]}), JSON), "no_image_column"),
    "no rows": ((json.dumps(split()), JSON), "no_rows"),
    "no inputs": ((json.dumps({"inputs": []}), JSON), "no_rows"),
    "10,000 rows": ((json.dumps(split(*[RED] * 10_000)), JSON), "too_many_rows"),
    "10,000 bad rows": (
        (json.dumps(split(*range(10_000), params={"on_error": "null"})), JSON),
        "too_many_rows",
    ),
    "a good row before a bad one": ((json.dumps(split(RED, SECRET)), JSON), "not_an_image"),
    "CSV of another column": ((f"picture\n{RED}\n", CSV), "no_image_column"),
    "CSV without rows": (("image\n", CSV), "no_rows"),
    "CSV of a lone number": (("image\n4711\n", CSV), "not_an_image"),
    "CSV with an empty cell": ((f"image,n\n{RED},1\n,2\n", CSV), "missing_image"),
    "CSV that splits a data URL": ((f"n,image,x\n1,data:image/png;base64,{RED}\n", CSV), "not_base64"),
    "Parquet of another column": ((parquet(picture=[image()]), PARQUET), "no_image_column"),
    "Parquet of null": ((parquet(image=[None, None]), PARQUET), "missing_image"),
    "Parquet of lists": ((parquet(image=[[1, 2], [3]]), PARQUET), "wrong_type"),
    "Parquet of bytes that are no picture": ((parquet(image=[b"secret"]), PARQUET), "not_an_image"),
    "top_k 0": ((json.dumps(split(RED, params={"top_k": 0})), JSON), "bad_param"),
    "top_k negative": ((json.dumps(split(RED, params={"top_k": -1})), JSON), "bad_param"),
    "top_k above the classes": ((json.dumps(split(RED, params={"top_k": 4})), JSON), "bad_param"),
    "top_k huge": ((json.dumps(split(RED, params={"top_k": 10**40})), JSON), "bad_param"),
    "top_k null": ((json.dumps(split(RED, params={"top_k": None})), JSON), "bad_param"),
    "on_error unknown": ((json.dumps(split(RED, params={"on_error": SECRET})), JSON), "bad_param"),
    "on_error empty": ((json.dumps(split(RED, params={"on_error": ""})), JSON), "bad_param"),
    "on_error null": ((json.dumps(split(RED, params={"on_error": None})), JSON), "bad_param"),
}


def assert_refused(response: requests.Response, code: str) -> None:
    body = response.text
    assert response.status_code == 400, body[:1000]
    assert response.headers["content-type"] == JSON
    answer = response.json()
    assert answer.keys() == {"error_code", "message", "error"}
    assert answer["error"] == {"code": code, "message": answer["message"]}
    assert f"| `{code}` |" in PAGE
    assert len(body) < 500
    for leak in (
        "Traceback",
        "File ",
        str(ROOT),
        "site-packages",
        "secret",
        SECRET[:8],
        RED[:12],
        "4711",
        "passwd",
    ):
        assert leak not in body


@pytest.mark.parametrize("name", BAD_CELLS)
def test_a_bad_image_is_refused_and_the_server_keeps_serving(server: Server, name: str) -> None:
    cell, code = BAD_CELLS[name]
    assert_refused(server.post(json.dumps(split(cell))), code)
    assert_still_serving(server)


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_and_the_server_keeps_serving(server: Server, name: str) -> None:
    request, code = BAD_TABLES[name]
    assert_refused(server.post(*request), code)
    assert_still_serving(server)


def test_each_bad_image_among_good_ones_gets_its_own_code(server: Server) -> None:
    cells = [cell for bad, _ in BAD_CELLS.values() for cell in (bad, BLUE)]
    answers = server.predict(split(*cells, params={"on_error": "null"}))
    assert [answer["error"]["code"] for answer in answers[::2]] == [code for _, code in BAD_CELLS.values()]
    assert {answer["label"] for answer in answers[1::2]} == {"blue"}
    assert SECRET not in json.dumps(answers)


def test_memory_stays_bounded(server: Server) -> None:
    bodies: list[Request] = [(json.dumps(split(cell)), JSON) for cell, _ in BAD_CELLS.values()]
    bodies += [request for request, _ in BAD_TABLES.values()]
    before = server.memory("VmRSS")
    for body in bodies:
        server.post(*body)
    # MLflow holds the largest body (24 MB) as bytes, as text and parsed. The bomb would take 2.7 GB.
    assert server.memory("VmHWM") < before + 300 * 2**20

    small = [body for body in bodies if len(body[0]) < 2**20]  # the allocator keeps memory of large bodies
    before = server.memory("VmRSS")
    for body in small * 5:
        server.post(*body)
    assert server.memory("VmRSS") < before + 20 * 2**20
    assert_still_serving(server)


# Requests that MLflow answers itself, as documented in serving-errors.md.

BEFORE_THE_MODEL: dict[str, Request] = {
    "not JSON": (RED, JSON),
    "an empty body": ("", JSON),
    "a list": (json.dumps([RED]), JSON),
    "none of the four keys": (json.dumps({"image": RED}), JSON),
    "two of the four keys": (json.dumps({"inputs": [RED], "instances": [RED]}), JSON),
    "`dataframe_records` is not a list": (json.dumps({"dataframe_records": {"image": RED}}), JSON),
    "`dataframe_split` has no `data`": (json.dumps({"dataframe_split": {"columns": ["image"]}}), JSON),
    "more cells than columns": (
        json.dumps({"dataframe_split": {"columns": ["image"], "data": [[RED, RED]]}}),
        JSON,
    ),
    "two columns named `image`": (
        json.dumps({"dataframe_split": {"columns": ["image", "image"], "data": [[RED, RED]]}}),
        JSON,
    ),
    "a column whose name is a list": (json.dumps(split(RED, columns=[["image"]])), JSON),
    "a column whose name is an object": (json.dumps(split(RED, columns=[{"a": 1}])), JSON),
    "columns of different length in `inputs`": (
        json.dumps({"inputs": {"image": [RED], "n": [1, 2]}}),
        JSON,
    ),
    "rows of different length in `inputs`": (json.dumps({"inputs": [[RED], [RED, RED]]}), JSON),
    "100,000 nested lists": (f'{{"inputs":{"[" * 100_000}"{RED}"{"]" * 100_000}}}', JSON),
    "a number of 5,000 digits": (f'{{"inputs": ["{RED}", {"9" * 5000}]}}', JSON),
    "`top_k` is text, a fraction, NaN, true or a list": (
        json.dumps(split(RED, params={"top_k": "three"})),
        JSON,
    ),
    "`on_error` is not text": (json.dumps(split(RED, params={"on_error": 5})), JSON),
    "`params` is not an object": (json.dumps(split(RED, params=[1])), JSON),
    "CSV without a header": ("", CSV),
    "CSV with an open quote": (f'image\n"{RED}', CSV),
    "CSV that is not UTF-8": (f"image\n{RED}\n".encode() + b"\xff", CSV),
    "not Parquet": (f"PAR1{RED}", PARQUET),
    "Parquet of numbers or dates": (parquet(image=[4711, 4712]), PARQUET),
    "no content type": (json.dumps(split(RED)), None),
    "another content type": (json.dumps(split(RED)), "image/png"),
    "another charset": (json.dumps(split(RED)), f"{JSON}; charset=latin-1"),
}


@pytest.mark.parametrize("name", BEFORE_THE_MODEL)
def test_responses_of_mlflow_itself_are_as_documented(server: Server, name: str) -> None:
    body, content_type = BEFORE_THE_MODEL[name]
    response = server.post(body, content_type)
    kind = "JSON" if response.headers["content-type"].startswith(JSON) else "text"
    trace = "yes" if "Traceback" in response.text else "no"
    echo = "yes" if any(part in response.text for part in (RED[:12], "4711")) else "no"
    row = f"| {name} | {response.status_code} | {kind} | {trace} | {echo} |"
    assert row in PAGE
    assert_still_serving(server)


@pytest.mark.parametrize("top_k", ["1.5", "NaN", "true", "[1]", "{}"])
def test_top_k_of_another_type_is_refused_by_mlflow(server: Server, top_k: str) -> None:
    response = server.post(f'{{"inputs": ["{RED}"], "params": {{"top_k": {top_k}}}}}')
    assert response.status_code == 400
    assert response.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert "Traceback" not in response.text


def test_an_unknown_param_is_ignored_by_mlflow(server: Server) -> None:
    (answer,) = server.predict(split(RED, params={"temperature": 5}))
    assert answer["label"] == "red"


def test_images_are_not_in_the_log_of_the_server(server: Server) -> None:
    server.post(json.dumps(split(SECRET)))
    log = server.log.read_text(errors="replace")
    assert SECRET not in log
    assert RED[:40] not in log
    assert "The model failed" not in log

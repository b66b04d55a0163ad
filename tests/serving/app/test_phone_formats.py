"""HEIC and AVIF, the photo formats of phones."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from tests.serving.app.conftest import Server, Store

pytestmark = pytest.mark.slow

WITHOUT_HEIF = """
import runpy, sys
sys.modules["pillow_heif"] = None  # importing it fails, as if it were not installed
runpy.run_module("cifar_mlflow", run_name="__main__", alter_sys=True)
"""


def two_halves(left: Any, right: Any) -> Image.Image:
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[:, :150], pixels[:, 150:] = left, right
    return Image.fromarray(pixels)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=90, **options)
    return file.getvalue()


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


@needs_avif
def test_avif_is_answered_like_png(server: Server) -> None:
    photo = two_halves((255, 0, 0), (255, 60, 0))
    plain = server.predict(encode(photo, "PNG")).json()["predictions"][0]
    answer = server.predict(encode(photo, "AVIF"), headers={"Content-Type": "image/avif"}).json()[
        "predictions"
    ][0]
    assert (answer["label"], answer["error"]) == ("red", None)
    assert answer["confidence"] == pytest.approx(plain["confidence"], abs=0.02)

    clear = Image.new("RGBA", (64, 64), (0, 0, 255, 0))
    shares = server.predict(encode(clear, "AVIF"), params={"top_k": 3}).json()["predictions"][0]["top_k"]
    assert [each["confidence"] for each in shares] == pytest.approx([1 / 3] * 3, abs=0.02)  # white


@needs_avif
def test_avif_that_is_damaged_or_too_large_is_refused(server: Server) -> None:
    whole = encode(two_halves((255, 0, 0), (0, 0, 255)), "AVIF")
    cut = server.predict(whole[: len(whole) // 2])
    assert (cut.status_code, cut.json()["error"]["code"]) == (400, "truncated_image")
    size = (300).to_bytes(4) + (200).to_bytes(4)
    assert whole.count(size) == 1
    huge = server.predict(whole.replace(size, (60_000).to_bytes(4) * 2))
    assert huge.status_code in (400, 413)
    assert huge.json()["error"]["code"] in ("too_many_pixels", "truncated_image")


def test_heic_is_answered_upright(server: Server) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    stored = two_halves((255, 0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise; the encoder makes it a property of the image
    stored.info["exif"] = exif.tobytes()
    photo = encode(stored, "HEIF")
    answer = server.predict(photo, headers={"Content-Type": "image/heic"}, params={"input": "true"}).json()
    prediction = answer["predictions"][0]
    assert prediction["error"] is None
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(prediction["input"].partition(",")[2]))))
    assert seen[2, 16, 0] > 200  # red above
    assert seen[-3, 16, 2] > 200  # blue below

    cut = server.predict(photo[: len(photo) // 2])
    assert (cut.status_code, cut.json()["error"]["code"]) == (400, "truncated_image")


def test_without_the_extra_heic_is_refused_with_what_to_do(
    start: Callable[..., Server], shared_store: Store
) -> None:
    server = start(shared_store.uri, program=("-c", WITHOUT_HEIF)).wait()
    refused = server.predict(b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(2000))
    assert refused.status_code == 415
    error = refused.json()["error"]
    assert error["code"] == "unsupported_format"
    assert "as JPEG" in error["message"]

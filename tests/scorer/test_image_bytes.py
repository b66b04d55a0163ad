"""Cells of a table may hold bytes, base64 or a data URL; anything else is refused."""

import base64
import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_mlflow.scorer.preprocess import MAX_BYTES, BadImage, decode_image, image_bytes

DATA = bytes(range(256))
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "value",
    [
        DATA,
        bytearray(DATA),
        memoryview(DATA),
        np.frombuffer(DATA, dtype=np.uint8).data,
        TEXT,
        TEXT.rstrip("="),
        base64.urlsafe_b64encode(DATA).decode(),
        base64.urlsafe_b64encode(DATA).decode().rstrip("="),
        base64.encodebytes(DATA).decode(),
        TEXT.replace("A", "A\r\n\t "),
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/jpeg;name=cat.jpg;BASE64,{TEXT}",
        f"data:;base64,{TEXT}\n",
        np.str_(TEXT),
        np.bytes_(DATA[1:]),
    ],
    ids=lambda value: f"{type(value).__name__}-{len(value)}",
)
def test_bytes_and_base64_are_read(value: object) -> None:
    assert image_bytes(value) == (DATA[1:] if isinstance(value, np.bytes_) else DATA)


@pytest.mark.parametrize(
    ("value", "code", "sentence"),
    [
        (None, "missing_image", "missing"),
        (float("nan"), "missing_image", "missing"),
        (np.float64("nan"), "missing_image", "missing"),
        (1.5, "wrong_type", "not float"),
        (7, "wrong_type", "not int"),
        ([1, 2, 3], "wrong_type", "not list"),
        ({"b64": TEXT}, "wrong_type", "not dict"),
        (np.zeros((2, 2)), "wrong_type", "not ndarray"),
        ("cat.jpg", "not_base64", "not base64"),
        ("QUJD*", "not_base64", "not base64"),
        ("QUJDR", "not_base64", "not base64"),
        ("QUI==", "not_base64", "not base64"),
        ("QUI=QUI=", "not_base64", "not base64"),
        ("QÜJD", "not_base64", "not base64"),
        (str(DATA), "not_base64", "not base64"),
        ("data:image/png,QUJD", "not_base64", "data URL"),
        ("data:image/png;base64", "not_base64", "data URL"),
        ("https://example.com/cat.jpg", "not_base64", "not base64"),
        ("QUJD" * (MAX_BYTES // 3 + 2), "too_many_bytes", "more than 16 MB"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_any_other_value_is_refused(value: object, code: str, sentence: str) -> None:
    with pytest.raises(BadImage, match=sentence) as caught:
        image_bytes(value)
    assert caught.value.code == code


def test_the_largest_file_is_accepted_as_base64() -> None:
    assert len(image_bytes(base64.b64encode(bytes(MAX_BYTES)).decode())) == MAX_BYTES


def test_an_empty_text_is_an_empty_image() -> None:
    with pytest.raises(BadImage, match="empty"):
        decode_image(image_bytes(""), 32)


@pytest.mark.slow
@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()))
def test_any_text_is_decoded_or_raises_bad_image(text: str) -> None:
    with contextlib.suppress(BadImage):
        assert isinstance(image_bytes(text), bytes)

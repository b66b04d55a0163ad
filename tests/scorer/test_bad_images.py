"""Untrusted bytes are decoded, or refused by a BadImage that says why, at little cost."""

import contextlib
import pickle
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cifar_mlflow.scorer.preprocess import MAX_BYTES, BadImage, decode_image
from tests.scorer.pictures import bmp_8_bits, chunk, encode, noise, png, with_orientation

PICTURE = Image.fromarray(noise(24, 20))
OTHER_FRAMES = {"save_all": True, "append_images": [PICTURE.rotate(90)]}
EXIF = with_orientation(6).tobytes()
FILES = {
    "JPEG": encode(PICTURE, "JPEG", exif=EXIF),
    "progressive JPEG": encode(PICTURE, "JPEG", progressive=True),
    "CMYK JPEG": encode(PICTURE.convert("CMYK"), "JPEG"),
    "PNG": encode(PICTURE, "PNG", exif=EXIF),
    "palette PNG": encode(PICTURE.quantize(20), "PNG", transparency=bytes(range(20))),
    "16-bit PNG": encode(Image.fromarray(noise(24, 20)[..., 0].astype(np.uint16)), "PNG"),
    "animated PNG": encode(PICTURE, "PNG", **OTHER_FRAMES),
    "GIF": encode(PICTURE.quantize(20), "GIF", transparency=3),
    "animated GIF": encode(PICTURE.quantize(20), "GIF", transparency=3, disposal=2, **OTHER_FRAMES),
    "WebP": encode(PICTURE, "WEBP", exif=EXIF),
    "lossless WebP": encode(PICTURE.convert("RGBA"), "WEBP", lossless=True),
    "animated WebP": encode(PICTURE, "WEBP", **OTHER_FRAMES),
    "BMP": encode(PICTURE, "BMP"),
    "palette BMP": encode(PICTURE.quantize(20), "BMP"),
    "run-length BMP": bmp_8_bits(24, 20, 1, b"\x0c\x09\x0c\xc8\0\0" * 20),
}


def refusal(data: bytes) -> str:
    """Return the error code for `data`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage) as caught:
            decode_image(data, 32)
    assert re.fullmatch(r"[A-Z].*\.", str(caught.value))
    return caught.value.code


# -- not an image --


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_image"),
        (b"hello, world", "not_an_image"),
        (bytes(1000), "not_an_image"),
        (np.random.default_rng(0).bytes(10_000), "not_an_image"),
        (b"\xff\xd8\xff", "truncated_image"),
        (b"BM", "truncated_image"),
        (bytes(MAX_BYTES), "not_an_image"),
        (FILES["PNG"] + bytes(MAX_BYTES), "too_many_bytes"),
        (b"%PDF-1.7\n", "unsupported_format"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
        (b"\n <svg/>", "unsupported_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "unsupported_format"),
        (encode(PICTURE, "TIFF"), "unsupported_format"),
        (encode(PICTURE, "ICO"), "unsupported_format"),
        (encode(PICTURE, "AVIF"), "unsupported_format"),
        (encode(PICTURE, "PPM"), "not_an_image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_but_the_five_formats_is_refused(data: bytes, code: str) -> None:
    assert refusal(data) == code


def test_the_message_helps_and_repeats_nothing_of_the_input() -> None:
    with pytest.raises(BadImage, match=r"^TIFF is not supported; use a JPEG, PNG, WebP, BMP or GIF\.$"):
        decode_image(encode(PICTURE, "TIFF"), 32)
    broken = FILES["PNG"].replace(b"IDAT", b"<b>x")
    with pytest.raises(BadImage, match=r"^The PNG cannot be decoded: it is cut short, damaged, ") as caught:
        decode_image(broken, 32)
    assert "<b>" not in str(caught.value)


def test_a_bad_image_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(BadImage("empty_image", "The picture is empty.")))
    assert (error.code, str(error)) == ("empty_image", "The picture is empty.")


# -- damaged --


@pytest.mark.parametrize("kind", FILES)
def test_an_image_cut_anywhere_is_refused_unless_no_pixel_is_lost(kind: str) -> None:
    data = FILES[kind]
    whole = decode_image(data, 32)
    refused = 0
    for length in range(len(data)):
        try:
            pixels = decode_image(data[:length], 32)
        except BadImage:
            refused += 1
        else:
            np.testing.assert_array_equal(pixels, whole)
    assert refused > len(data) / 4  # cutting the later frames of an animation loses nothing


@pytest.mark.parametrize("size", [(1600, 1200), (100, 100)])
def test_a_photo_cut_short_is_not_filled_with_gray(size: tuple[int, int]) -> None:
    data = encode(noise(*size), "JPEG")
    assert refusal(data[: len(data) * 3 // 4]) == "truncated_image"


def checked(data: bytes) -> bytes:
    """Return the PNG with correct checksums, so that the content of its chunks is read."""
    repaired, position = data[:8], 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        repaired += chunk(data[position + 4 : position + 8], data[position + 8 : end - 4])
        position = end
    return repaired


@pytest.mark.filterwarnings("ignore:Invalid APNG")
@given(
    kind=st.sampled_from(sorted(FILES)),
    edits=st.lists(
        st.tuples(st.integers(0, 10_000), st.sampled_from(["head", "all"]), st.binary(max_size=8)),
        max_size=4,
    ),
    removed=st.integers(0, 8),
)
@settings(max_examples=600)
def test_a_damaged_image_is_decoded_or_refused(
    kind: str, edits: list[tuple[int, str, bytes]], removed: int
) -> None:
    data = FILES[kind]
    for place, where, inserted in edits:
        position = place % min(len(data), 120 if where == "head" else len(data))
        data = data[:position] + inserted + data[position + removed :]
    for variant in (data, checked(data)) if "PNG" in kind else (data,):
        with contextlib.suppress(BadImage):
            pixels = decode_image(variant, 32)
            assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)


# -- bombs: each file is small and is refused for the size that it declares, before any decoding --


def gif(width: int, height: int, frame_width: int, frame_height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<2H3B", width, height, 0, 0, 0)
    return screen + b"," + struct.pack("<4HB", 0, 0, frame_width, frame_height, 0) + b"\x02\x02\x4c\x01\0;"


def webp(width: int, height: int) -> bytes:
    still = encode(Image.new("RGBA", (8, 8)), "WEBP", lossless=True)
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(4) + still[still.index(b"VP8L") :]
    body = (
        b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\x12\0\0\0"
        + sizes
        + b"ANIM"
        + struct.pack("<I", 6)
        + bytes(6)
    )
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    data = encode(Image.new("L", (8, 8)), "JPEG")
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + struct.pack(">2H", height, width) + data[size + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        png(100_000, 100_000, 8, 2, b""),
        png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        png(100_000, 1, 8, 0, bytes(100_001)),
        png(7_072, 7_072, 8, 2, b""),
        png(10_000, 10_000, 8, 2, b""),  # where Pillow would only warn
        jpeg(65_500, 65_500),
        jpeg(7_072, 7_072),
        gif(65_535, 65_535, 1, 1),
        gif(8, 8, 65_535, 65_535),
        gif(8, 8, 8_000, 8_000),
        webp(16_384, 16_384),
        webp(7_072, 7_072),
        bmp_8_bits(30_000, 30_000, 0, b""),
        bmp_8_bits(7_000, 7_000, 1, b"\0\1"),
    ],
    ids=lambda data: f"{data[:4]!r}-{len(data)}",
)
def test_a_file_that_declares_too_many_pixels_is_refused_before_decoding(data: bytes) -> None:
    assert refusal(data) == "too_many_pixels"


def test_the_largest_allowed_image_is_decoded() -> None:
    pixels = decode_image(png(7_071, 7_071, 1, 0, bytes((1 + 884) * 7_071)), 32)
    assert (pixels == 0).all()


INFLATING = zlib.compress(bytes(30_000_000), 9)


@pytest.mark.parametrize(
    "content",
    [
        chunk(b"zTXt", b"key\0\0" + INFLATING),
        chunk(b"iTXt", b"key\0\1\0\0\0" + INFLATING),
        chunk(b"iCCP", b"key\0\0" + INFLATING),
    ],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_a_text_or_profile_that_inflates_hugely_is_refused(content: bytes) -> None:
    assert refusal(png(1, 1, 8, 0, b"\0\0", content)) == "truncated_image"


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_many_texts_that_inflate_a_little_are_refused(kind: bytes) -> None:
    content = (b"key\0\1\0\0\0" if kind == b"iTXt" else b"key\0\0") + zlib.compress(bytes(1_000_000), 9)
    assert refusal(png(1, 1, 8, 0, b"\0\0", *[chunk(kind, content)] * 200)) == "too_complex"


def with_more_scans(count: int, at_the_end: bytes = b"") -> bytes:
    data = encode(PICTURE, "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * (count + 1) + data[-2:] + at_the_end


def test_a_jpeg_of_hundreds_of_scans_is_refused() -> None:
    """Each scan costs a pass over all pixels: 16 MB of them would keep a core busy for an hour."""
    assert refusal(with_more_scans(300)) == "too_complex"
    assert decode_image(with_more_scans(20), 32).shape == (32, 32, 3)


def test_a_jpeg_of_very_many_segments_is_refused() -> None:
    data = encode(PICTURE, "JPEG")
    assert refusal(data[:2] + b"\xff\xfe\0\2" * 1_000_000 + data[2:]) == "too_complex"


def test_scans_after_or_hidden_in_a_jpeg_are_not_counted() -> None:
    """Phones append a video to a photo, and put a thumbnail into it."""
    plain = decode_image(with_more_scans(0), 32)
    np.testing.assert_array_equal(
        decode_image(with_more_scans(0, b"\0\2" + b"\xff\xda\0\2" * 500), 32), plain
    )
    data = with_more_scans(0)
    hidden = data[:2] + b"\xff\xe5" + struct.pack(">H", 20_002) + b"\xff\xda" * 10_000 + data[2:]
    np.testing.assert_array_equal(decode_image(hidden, 32), plain)

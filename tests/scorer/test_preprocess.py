"""Every kind of image is decoded to the input of a network."""

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageCms, ImageOps

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.scorer.preprocess import Fit, decode_image
from tests.scorer.pictures import bmp_8_bits, chunk, encode, noise, png, scene, with_orientation

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def difference(pixels: np.ndarray, expected: np.ndarray | tuple[int, ...]) -> np.ndarray:
    return np.abs(pixels.astype(int) - np.asarray(expected))


def two_halves(left: object, right: object, mode: str) -> Image.Image:
    image = Image.new(mode, (32, 32), left)  # type: ignore[arg-type]
    image.paste(right, (16, 0, 32, 32))  # type: ignore[arg-type]
    return image


# -- the pixels stay as they are --


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PNG", {"interlace": 1})],
)
def test_an_image_of_the_right_size_keeps_its_pixels(file_format: str, options: dict) -> None:
    pixels = decode_image(encode(noise(32, 32), file_format, **options), 32)
    np.testing.assert_array_equal(pixels, noise(32, 32))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("size", [(32, 32), (50, 40), (33, 32)])
def test_training_and_serving_see_the_same_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    files = [encode(noise(*size, seed=seed), "PNG") for seed in range(4)]
    for split in ("train", "test"):
        for i, data in enumerate(files):
            path = tmp_path / "photos" / split / ("a" if i < 2 else "b") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    config = DataConfig(
        dataset="folder", data_dir=tmp_path / "photos", image_size=32, cache_dir=tmp_path / "cache"
    )
    trained_on = load_dataset(config).split("train").images
    np.testing.assert_array_equal(trained_on, np.stack([decode_image(data, 32) for data in files]))


def test_threads_do_not_disturb_each_other() -> None:
    files = [encode(noise(48, 40, seed=seed), "WEBP", lossless=True) for seed in range(16)]
    alone = [decode_image(data, 32) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode_image(data, 32), files))
    np.testing.assert_array_equal(together, alone)


# -- geometry --


def test_crop_uses_the_central_square_and_squash_the_whole_image() -> None:
    image = Image.new("RGB", (120, 60), RED)
    image.paste(BLUE, (30, 0, 90, 60))
    assert (decode_image(encode(image, "PNG"), 32) == BLUE).all()
    squashed = decode_image(encode(image, "PNG"), 32, "squash")
    assert (squashed[:, :5] == RED).all()
    assert (squashed[:, 12:20] == BLUE).all()
    assert (squashed[:, -5:] == RED).all()


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_tiny_or_narrow_image_is_decoded(file_format: str, size: tuple[int, int], fit: Fit) -> None:
    pixels = decode_image(encode(Image.new("RGB", size, (90, 90, 90)), file_format), 32, fit)
    assert pixels.shape == (32, 32, 3)
    assert difference(pixels, (90, 90, 90)).max() <= 1


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert difference(decode_image(encode(stripes, "PNG"), 32)[4:-4, 4:-4], (127, 127, 127)).max() < 16


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels as a camera stores them, by EXIF 2.3: which sides row 0 and column 0 are."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright)[:, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(45, 32), (32, 45)])
def test_an_image_is_turned_upright_without_changing_a_pixel(orientation: int, size: tuple[int, int]) -> None:
    upright = noise(*size)
    for file_format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encode(
            stored(upright, orientation), file_format, exif=with_orientation(orientation), **options
        )
        np.testing.assert_array_equal(decode_image(data, 32), decode_image(encode(upright, "PNG"), 32))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_photo_is_turned_upright(orientation: int, order: str) -> None:
    upright = np.asarray(scene(401, 300))
    exif = with_orientation(orientation)
    exif.endian = order
    exif[0x010F] = "camera"
    data = encode(stored(upright, orientation), "JPEG", quality=95, exif=exif.tobytes())
    fits: tuple[Fit, ...] = ("crop", "squash")
    for fit in fits:
        error = difference(decode_image(data, 32, fit), decode_image(encode(upright, "PNG"), 32, fit))
        assert error.mean() < 1.5


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*",
        b"Exif\0\0" + bytes(40),
        with_orientation(0).tobytes(),
        with_orientation(9).tobytes(),
    ],
)
def test_damaged_exif_is_ignored_without_a_warning(exif: bytes) -> None:
    picture = two_halves(RED, BLUE, "RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(decode_image(encode(picture, "JPEG", exif=exif), 32)[:, :14], RED).max() < 8
        np.testing.assert_array_equal(
            decode_image(encode(picture, "PNG", exif=exif), 32), np.asarray(picture)
        )


# -- large JPEGs --


@pytest.mark.parametrize("size", [(4000, 3000), (2090, 2050), (1100, 1025), (530, 513), (600, 512)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_jpeg_decoded_at_reduced_scale_looks_the_same(
    size: tuple[int, int], progressive: bool
) -> None:
    photo = scene(1000, 750).resize(size)
    data = encode(photo, "JPEG", quality=90, progressive=progressive)
    with Image.open(io.BytesIO(data)) as whole:
        side = min(size)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        square = whole.crop((left, top, left + side, top + side))
        expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))
    error = difference(decode_image(data, 32), expected)
    assert 0 < error.mean() < 1.5  # 0 would mean that it was decoded at full scale
    assert error.max() < 25


def test_a_jpeg_of_less_than_512_pixels_keeps_the_pixels_of_a_full_decode() -> None:
    data = encode(scene(600, 511), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as whole:
        square = whole.crop((44, 0, 555, 511))
        expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode_image(data, 32), expected)


# -- every kind of image --


def kinds() -> dict[str, tuple[bytes, tuple[int, ...], tuple[int, ...]]]:
    """Return by name: a file of two halves, and the colours that each must have."""
    palette = two_halves(0, 1, "P")
    palette.putpalette([*RED, *BLUE])
    gray16 = np.full((32, 32), 0x8000, dtype=np.uint16)
    gray16[:, 16:] = 0x1234
    half_clear = two_halves((*BLUE, 128), (*BLUE, 0), "RGBA")
    left16, right16 = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC), struct.pack(">3H", 0xFFFF, 0x8000, 0)
    rgb16 = (b"\0" + left16 * 16 + right16 * 16) * 32
    rgb16_clear = chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    return {
        "RGBA PNG": (encode(half_clear, "PNG"), (127, 127, 255), WHITE),
        "RGBA WebP": (encode(half_clear, "WEBP", lossless=True), (127, 127, 255), WHITE),
        "LA PNG": (encode(two_halves((0, 0), (40, 255), "LA"), "PNG"), WHITE, (40, 40, 40)),
        "palette PNG": (encode(palette, "PNG"), RED, BLUE),
        "palette PNG, a clear colour": (encode(palette, "PNG", transparency=0), WHITE, BLUE),
        "palette PNG, alpha": (encode(palette, "PNG", transparency=b"\xff\x80"), RED, (127, 127, 255)),
        "palette GIF": (encode(palette, "GIF"), RED, BLUE),
        "palette GIF, a clear colour": (encode(palette, "GIF", transparency=1), RED, WHITE),
        "palette BMP": (encode(palette, "BMP"), RED, BLUE),
        "gray PNG": (encode(two_halves(7, 200, "L"), "PNG"), (7,) * 3, (200,) * 3),
        "gray PNG, a clear colour": (encode(two_halves(7, 9, "L"), "PNG", transparency=7), WHITE, (9,) * 3),
        "RGB PNG, a clear colour": (
            encode(two_halves(RED, BLUE, "RGB"), "PNG", transparency=BLUE),
            RED,
            WHITE,
        ),
        "gray BMP": (encode(two_halves(7, 200, "L"), "BMP"), (7,) * 3, (200,) * 3),
        "run-length BMP": (bmp_8_bits(32, 32, 1, b"\x10\x09\x10\xc8\0\0" * 32), (9,) * 3, (200,) * 3),
        "32-bit BMP": (encode(two_halves((*RED, 255), (*BLUE, 255), "RGBA"), "BMP"), RED, BLUE),
        "1-bit PNG": (encode(two_halves(0, 1, "1"), "PNG"), (0,) * 3, WHITE),
        "1-bit BMP": (encode(two_halves(0, 1, "1"), "BMP"), (0,) * 3, WHITE),
        "1-bit GIF": (encode(two_halves(0, 1, "1"), "GIF"), (0,) * 3, WHITE),
        "2-bit PNG": (png(32, 32, 2, 0, (b"\0" + b"\x55" * 4 + b"\xaa" * 4) * 32), (85,) * 3, (170,) * 3),
        "2-bit PNG, a clear colour": (
            png(32, 32, 2, 0, (b"\0" + b"\x55" * 4 + b"\xaa" * 4) * 32, chunk(b"tRNS", b"\0\2")),
            (85,) * 3,
            WHITE,
        ),
        "4-bit PNG, a clear colour": (
            png(32, 32, 4, 0, (b"\0" + b"\x33" * 8 + b"\x77" * 8) * 32, chunk(b"tRNS", b"\0\3")),
            WHITE,
            (119,) * 3,
        ),
        "16-bit gray PNG": (encode(gray16, "PNG"), (0x80,) * 3, (0x12,) * 3),
        "16-bit gray PNG, a clear colour": (
            png(
                32, 32, 16, 0, (b"\0" + b"\x12\x34" * 16 + b"\x12\x35" * 16) * 32, chunk(b"tRNS", b"\x12\x34")
            ),
            WHITE,
            (0x12,) * 3,
        ),
        "16-bit gray PNG with alpha": (
            png(32, 32, 16, 4, (b"\0" + b"\x80\0\xff\xff" * 16 + b"\x80\0\0\0" * 16) * 32),
            (0x80,) * 3,
            WHITE,
        ),
        "16-bit RGB PNG": (png(32, 32, 16, 2, rgb16), (0x12, 0x56, 0x9A), (255, 128, 0)),
        "16-bit RGB PNG, a clear colour": (png(32, 32, 16, 2, rgb16, rgb16_clear), WHITE, (255, 128, 0)),
        "gray JPEG": (encode(two_halves(7, 200, "L"), "JPEG", quality=100), (7,) * 3, (200,) * 3),
        "progressive JPEG": (
            encode(two_halves(RED, BLUE, "RGB"), "JPEG", quality=100, subsampling=0, progressive=True),
            RED,
            BLUE,
        ),
        "CMYK JPEG": (
            encode(two_halves((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "JPEG", quality=100),
            RED,
            BLUE,
        ),
        "YCCK JPEG": (ycck_jpeg(two_halves(RED, BLUE, "RGB")), RED, BLUE),
        "WebP": (encode(two_halves(RED, BLUE, "RGB"), "WEBP", quality=100), RED, BLUE),
    }


def ycck_jpeg(picture: Image.Image) -> bytes:
    """Encode as Photoshop does: YCbCr of the negative, and inverted black."""
    y, cb, cr = ImageOps.invert(picture).convert("YCbCr").split()
    planes = Image.merge("CMYK", (y, cb, cr, Image.new("L", picture.size, 255)))
    data = encode(ImageChops.invert(planes), "JPEG", quality=100)  # Pillow inverts CMYK when it writes
    marker = data.index(b"\xff\xee\x00\x0eAdobe")
    assert data[marker + 15] == 0  # the transform: 0 is CMYK
    return data[: marker + 15] + b"\2" + data[marker + 16 :]


@pytest.mark.parametrize("kind", kinds())
def test_any_kind_of_image_becomes_rgb_over_white(kind: str) -> None:
    data, left, right = kinds()[kind]
    pixels = decode_image(data, 32)
    tolerance = 4 if "JPEG" in kind or kind == "WebP" else 0
    assert difference(pixels[:, :12], left).max() <= tolerance
    assert difference(pixels[:, 20:], right).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "I;16", "CMYK"])
def test_every_mode_is_resized(mode: str) -> None:
    image = Image.new(mode, (90, 70), 0)
    image.paste(Image.new(mode, (45, 70), 1 if mode in ("1", "P") else 100), (45, 0))
    assert decode_image(encode(image, "JPEG" if mode == "CMYK" else "PNG"), 48).shape == (48, 48, 3)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_used(file_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE, WHITE)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], duration=90, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    assert (decode_image(data, 32) == RED).all()


def test_the_first_frame_of_a_gif_may_cover_a_part_of_it() -> None:
    data = encode(Image.new("P", (16, 32), 1), "GIF", transparency=0, optimize=False, palette=[*RED, *BLUE])
    wider = data[:6] + struct.pack("<2H", 32, 32) + data[10:]
    pixels = decode_image(wider, 32)
    assert (pixels[:, :16] == BLUE).all()
    assert (pixels[:, 16:] == WHITE).all()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_colour_profiles_are_ignored(file_format: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain, profiled = (
        decode_image(encode(noise(32, 32), file_format, icc_profile=icc), 32) for icc in (None, profile)
    )
    np.testing.assert_array_equal(profiled, plain)

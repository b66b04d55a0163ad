"""PNG files of every kind that the format has, and some that Pillow cannot write."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from tests.scorer.pictures import chunk, encode, png, scene, with_orientation

SIDE = 32
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {
    GRAY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GRAY_ALPHA: (8, 16),
    RGB_ALPHA: (8, 16),
}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
SIZES = ((32, 32), (31, 57), (100, 70), (301, 200), (200, 301), (7, 9), (1, 40), (640, 480))


def png_files(images: np.ndarray) -> dict[str, bytes]:
    """Return files by name: these uint8 (N, 32, 32, 3) as they are, and every kind and size of PNG."""
    files = {f"{index:03}.png": encode(image, "PNG") for index, image in enumerate(images)}
    photo = Image.fromarray(images[0])
    files |= dict(_every_kind())
    files |= {f"{width}x{height}.png": encode(scene(width, height), "PNG") for width, height in SIZES}
    files |= {f"orientation{i}.png": encode(photo, "PNG", exif=with_orientation(i)) for i in range(1, 9)}
    files |= {f"turned{i}.png": encode(scene(90, 61), "PNG", exif=with_orientation(i)) for i in range(2, 9)}
    files["interlaced.png"] = _interlaced(images[1])
    files["interlaced-7x5.png"] = _interlaced(images[1][:5, :7])
    files["profile.png"] = encode(photo, "PNG", icc_profile=_profile_with_swapped_primaries())
    files["gamma.png"] = _with_chunk(encode(photo, "PNG"), chunk(b"gAMA", struct.pack(">I", 100_000)))
    files["transparent-scene.png"] = encode(_fading(scene(120, 90)), "PNG")
    return files


def _every_kind() -> Iterator[tuple[str, bytes]]:
    """Yield files of random pixels for each colour type and depth, with and without transparency."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, 768, dtype=np.uint8).tobytes()
    for kind, depths in DEPTHS.items():
        for depth in depths:
            width = (SIDE * depth * CHANNELS[kind] + 7) // 8
            rows = b"".join(b"\0" + rng.bytes(width) for _ in range(SIDE))
            extra = [chunk(b"PLTE", colours[: 3 * 2**depth])] if kind == PALETTE else []
            name = f"type{kind}-{depth}bit"
            yield f"{name}.png", png(SIDE, SIDE, depth, kind, rows, *extra)
            if kind in (GRAY_ALPHA, RGB_ALPHA):
                continue
            transparency = chunk(b"tRNS", _transparency(kind, depth, rows))
            yield f"{name}-transparent.png", png(SIDE, SIDE, depth, kind, rows, *extra, transparency)
            if kind == PALETTE:
                yield f"{name}-short.png", png(SIDE, SIDE, depth, kind, rows, chunk(b"PLTE", colours[:6]))


def _transparency(kind: int, depth: int, rows: bytes) -> bytes:
    """Return the opacity of some palette entries, or the colour of the first pixel."""
    if kind == PALETTE:
        return bytes([0, 77])
    if depth == 16:
        return rows[1 : 1 + 2 * CHANNELS[kind]]
    values = rows[1 : 1 + CHANNELS[kind]]
    return b"".join(bytes([0, value >> (8 - depth)]) for value in values)


def _interlaced(image: np.ndarray) -> bytes:
    height, width, _ = image.shape
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in ADAM7 for row in image[y::dy, x::dx] if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, 8, RGB, 0, 0, 1)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _with_chunk(data: bytes, extra: bytes) -> bytes:
    """Insert a chunk behind the header."""
    return data[:33] + extra + data[33:]


def _profile_with_swapped_primaries() -> bytes:
    """Return an sRGB profile with red and blue swapped: a decoder that applies it changes the colours."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12):
        swapped = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(bytes(profile[at : at + 4]))
        if swapped:
            profile[at : at + 4] = swapped
    return bytes(profile)


def _fading(image: Image.Image) -> Image.Image:
    """Make an image more and more transparent towards the right."""
    alpha = np.linspace(0, 255, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(alpha, (image.height, 1))))
    return image

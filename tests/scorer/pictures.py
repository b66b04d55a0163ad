"""Create image files for the tests of the scorer."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return uint8 (height, width, 3) of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(width: int, height: int) -> Image.Image:
    """Return an image like a photograph: large shapes, edges and some texture."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    shapes = np.stack([np.sin(5 * x + y), np.cos(7 * y), np.sin(9 * x * y)], axis=-1) * 90 + 128
    edges = 40 * ((x * 6).astype(int) % 2)[..., None]
    texture = np.random.default_rng(0).normal(0, 6, (height, width, 1))
    return Image.fromarray((shapes + edges + texture).clip(0, 255).astype(np.uint8))


def encode(picture: Image.Image | np.ndarray, file_format: str, **options: Any) -> bytes:
    """Return the bytes of the file that Pillow writes."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    """Return a PNG of any kind, even if Pillow cannot write it; each of `rows` begins with the filter, 0."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def bmp_8_bits(width: int, height: int, compression: int, pixels: bytes) -> bytes:
    """Return a BMP with a grey palette; compression 0 is none, 1 is run lengths."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(pixels), 0, 0, 256, 0)
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    start = 14 + len(header) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + header + palette + pixels

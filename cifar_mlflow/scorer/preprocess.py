"""Decode an image file to the input of a network; the same code for training folders and for requests.

The bytes of a request are untrusted: the size of the file and the size that it declares are checked before
any pixel is decoded. Every fault raises `BadImage`. Colour profiles (ICC) are ignored: values are interpreted
as sRGB, as in every training data set.
"""

import binascii
import io
import math
import re
import struct
from typing import Literal

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

Fit = Literal["crop", "squash"]

MAX_BYTES = 16 * 2**20
MAX_PIXELS = 50_000_000
MAX_TRUSTED_PIXELS = 500_000_000  # 2 GB while it is decoded; of a JPEG, at most a sixty-fourth of that
MIN_REDUCED_SIDE = 256  # of a JPEG decoded at reduced scale; with less, some photos get another label
MAX_SIDE = 65_535  # the limit of JPEG and GIF; the memory for resizing grows with the length of a side
MAX_RLE_PIXELS = 1_000_000  # Pillow decodes run-length encoding in Python, which takes 0.1 s
MAX_JPEG_SCANS = 50  # a progressive JPEG has about 10; each costs 26 bytes and a pass over all pixels
MAX_JPEG_SEGMENTS = 1_000
MAX_PNG_INFLATED = 50  # compressed texts and profiles; Pillow inflates up to 1 MB for each

EXIF_ORIENTATION = 0x0112
WANTED = "use a JPEG, PNG, WebP, BMP or GIF"


class BadImage(ValueError):  # noqa: N818 - the name says what is wrong
    """The bytes are not an image that can be classified. `code` is for programs, `str()` for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Skip it: Pillow warns of damaged EXIF, and warnings cannot be silenced per thread."""


# Not Image.open(), which also looks for further images inside a JPEG and warns of large ones.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II\*\0|MM\0\*",
    "HEIC, AVIF or video": rb"....ftyp",
    "PDF": rb"%PDF",
    "SVG": rb"\s*<(\?xml|!DOCTYPE svg|svg)",
    "EPS": rb"%!PS",
    "ICO": rb"\0\0\x01\0",
    "PSD": rb"8BPS",
}
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
TURNS = {  # EXIF orientation: the transformation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BASE64URL = bytes.maketrans(b"-_", b"+/")


def image_bytes(value: object) -> bytes:
    """Return the bytes of an image file from a table cell: bytes, base64 text, or a data URL.

    Base64 may use either alphabet (`+/` or `-_`), contain white space and lack its padding.

    Raises:
        BadImage: the value is missing, of another type, not base64, or above MAX_BYTES (found before
            decoding).
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return _from_base64(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise BadImage("missing_image", "The picture is missing (null or NaN).")
    kind = type(value).__name__
    raise BadImage("wrong_type", f"A picture must be bytes or base64 text, not {kind}.")


def decode_image(data: bytes, size: int, fit: Fit = "crop", *, trusted: bool = False) -> np.ndarray:
    """Decode an image file to uint8 (size, size, 3) RGB: upright, transparent parts white.

    An image of size x size keeps its exact pixels. Any other is resized with antialiasing (bicubic); a large
    JPEG is first decoded at 1/2, 1/4 or 1/8 of its scale, with at least 256 and 2 x size pixels on the
    shorter side.
    Of an animation, only the first frame is used; of 16 bits per channel, only the upper 8.

    Args:
        fit: "crop" uses the central square, "squash" the whole image.
        trusted: the file is the user's own, so only MAX_TRUSTED_PIXELS limits it.

    Raises:
        BadImage: the file is too large, of another format, cut short, damaged, or built to keep the decoder
            busy.
    """
    if not data:
        raise BadImage("empty_image", "The picture is empty (0 bytes).")
    if len(data) > MAX_BYTES and not trusted:
        raise _too_many_bytes()
    kind = picture_format(data)
    if not trusted:
        _check_effort(data, kind)
    try:
        return _prepare(_READERS[kind](io.BytesIO(data)), size, fit, trusted)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow's own limit: a frame that is larger than its GIF exceeds it before our check.
        raise BadImage("too_many_pixels", f"The picture has more than {MAX_PIXELS:,} pixels.") from None
    except Exception:
        # Pillow's parsers raise many kinds of errors, whose text may repeat parts of the file.
        raise BadImage(
            "truncated_image",
            f"The {kind} cannot be decoded: it is cut short, damaged, or of a rare variant.",
        ) from None


def _from_base64(text: str) -> bytes:
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadImage("not_base64", "A data URL of a picture must begin like data:image/png;base64,")
    try:
        digits = text.encode("ascii").translate(_BASE64URL, b" \t\r\n\v\f")
        if len(digits) * 3 // 4 > MAX_BYTES + 2:  # the padding
            raise _too_many_bytes()
        if b"=" not in digits:
            digits += b"=" * (-len(digits) % 4)
        return binascii.a2b_base64(digits, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise BadImage(
            "not_base64", "The text is not base64; send the bytes of the picture as base64 or as a data URL."
        ) from None


def _too_many_bytes() -> BadImage:
    return BadImage("too_many_bytes", f"The picture has more than {MAX_BYTES // 2**20} MB.")


def picture_format(data: bytes) -> str:
    """Return JPEG, PNG, WebP, GIF or BMP, by the first bytes.

    Raises:
        BadImage: the bytes are of another format, or not an image.
    """
    for kind, signature in _SIGNATURES.items():
        if re.match(signature, data, re.DOTALL):
            if kind in _READERS:
                return kind
            raise BadImage("unsupported_format", f"{kind} is not supported; {WANTED}.")
    raise BadImage("not_an_image", f"This is not a picture; {WANTED}.")


def _check_effort(data: bytes, kind: str) -> None:
    """Refuse a file within the size limits that would still keep the decoder busy for minutes."""
    inflated = sum(map(data.count, (b"iCCP", b"iTXt", b"zTXt"))) if kind == "PNG" else 0
    if inflated > MAX_PNG_INFLATED or (kind == "JPEG" and _has_too_many_scans(data)):
        raise BadImage("too_complex", f"The {kind} has too many parts for a picture.")


def _has_too_many_scans(data: bytes) -> bool:
    """Count the scans as the decoder does: skip the content of segments, stop at the end of the image."""
    scans, position = 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = _JPEG_MARKER.search(data, position)
        if marker is None or marker[1] == b"\xd9":
            return scans > MAX_JPEG_SCANS
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return True


def _check_size(image: ImageFile.ImageFile, trusted: bool) -> None:
    width, height = image.size
    limit = MAX_TRUSTED_PIXELS if trusted else MAX_PIXELS
    if width * height > limit or max(width, height) > MAX_SIDE:
        bounds = f"the limit is {limit:,}, and {MAX_SIDE:,} per side"
        raise BadImage("too_many_pixels", f"The picture has {width} x {height} pixels; {bounds}.")
    if trusted:
        return
    if image.info.get("compression") in (1, 2) and width * height > MAX_RLE_PIXELS:
        raise BadImage(
            "too_many_pixels",
            f"The picture has {width} x {height} pixels; a compressed BMP may have {MAX_RLE_PIXELS:,}.",
        )


def _prepare(opened: ImageFile.ImageFile, size: int, fit: Fit, trusted: bool) -> np.ndarray:
    _check_size(opened, trusted)
    width, height = opened.size
    reduced = max(2 * size, MIN_REDUCED_SIDE)
    drafted = opened.draft(None, (reduced, reduced))
    scale = width / drafted[1][2] if drafted else 1
    _correct_transparent_colour(opened)
    opened.load()
    orientation = orientation_of(opened.info.get("exif"))
    wanted = _middle_square(width, height, orientation) if fit == "crop" else (0, 0, width, height)
    left, top, right, bottom = (edge / scale for edge in wanted)  # may lie within a pixel of a reduced image
    if math.prod(opened.size) > MAX_PIXELS:  # crop() refuses what Pillow takes for a decompression bomb
        box = (left, top, min(right, opened.width), min(bottom, opened.height))
        small = _rgb(opened).resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=3)
    else:
        x, y = math.floor(left), math.floor(top)
        part = opened.crop((x, y, math.ceil(right), math.ceil(bottom)))
        opened.close()  # so that a large image is not in memory twice
        box = (left - x, top - y, right - x, bottom - y)
        small = _rgb(part).resize((size, size), Image.Resampling.BICUBIC, box)
    turn = TURNS.get(orientation)
    return np.array(small if turn is None else small.transpose(turn))


def _middle_square(width: int, height: int, orientation: int) -> tuple[int, int, int, int]:
    """Return the box of the central square; an odd pixel is cut off where an upright image would lose it."""
    side = min(width, height)
    left = (width - side + (orientation in (2, 3, 7, 8))) // 2
    top = (height - side + (orientation in (3, 4, 6, 7))) // 2
    return left, top, left + side, top + side


def _correct_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Convert the transparent colour of a PNG to 8 bits; Pillow converts only the pixels."""
    if "transparency" not in image.info:
        return
    depth, colour = image.tile[0][3], image.info["transparency"]
    if depth == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif depth in ("L;2", "L;4"):
        image.info["transparency"] = colour * (85 if depth == "L;2" else 17)


def orientation_of(exif: object) -> int:
    """Return 1 to 8; 1 without EXIF or if it is damaged (Pillow's own reader would warn of that)."""
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(entries):
            tag, value = struct.unpack_from(order + "H6xH", tiff, start + 2 + 12 * entry)
            if tag == EXIF_ORIENTATION:
                return int(value)
    except struct.error:
        pass
    return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # convert() would clip the values at 255
        gray = np.asarray(image)
        eight_bits = (gray >> 8).astype(np.uint8)
        if (colour := image.info.get("transparency")) is not None:
            eight_bits[gray == colour] = 255
        return Image.fromarray(eight_bits).convert("RGB")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        over_white = Image.new("RGB", image.size, "white")
        over_white.paste(image, mask=image)
        return over_white
    return image if image.mode == "RGB" else image.convert("RGB")

"""Convert HEIC and AVIF, the formats of phones, to one that `preprocess` reads.

Requests, `classify`, the MLflow model and training go through the same code, so that a photo gives the same
pixels in all. Pillow reads AVIF. HEIC needs pillow-heif (the extra `heif`), which contains a decoder in C
that untrusted files would reach, so the operator decides whether to install it.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, features

from .preprocess import (
    MAX_BYTES,
    MAX_PIXELS,
    MAX_TRUSTED_PIXELS,
    TURNS,
    BadImage,
    orientation_of,
)

# A photo with damaged EXIF data counts as upright, in these formats as in the others.
warnings.filterwarnings("ignore", "(Possibly c|C)orrupt EXIF data", UserWarning)

BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"},
}
DECODERS = {
    "AVIF": "a Pillow with AVIF (11.3 or newer) where this runs.",
    "HEIC": "pillow-heif where this runs. To have an iPhone take JPEG photos, choose Settings > Camera > "
    "Formats > Most Compatible.",
}
# Large enough for every network, and small enough for the size limit of the scorer as a BMP.
MAX_SIDE = 2048


def can_decode(kind: str) -> bool:
    """Return whether a library that reads this format, HEIC or AVIF, is installed."""
    try:
        _reader(kind)
    except ImportError:
        return False
    return True


class MissingDecoder(BadImage):
    """No installed library reads the format.

    Attributes:
        kind: HEIC or AVIF.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(
            "unsupported_format",
            f"{kind} cannot be read here: save or export the photo as JPEG, or install {DECODERS[kind]}",
        )
        self.kind = kind


def phone_format(data: bytes) -> str | None:
    """Return HEIC or AVIF by the brands in the first box of the file; None for other files."""
    if data[4:8] != b"ftyp":
        return None
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4]), 256), 4))}
    return next((name for name, known in BRANDS.items() if brands & known), None)


def in_common_format(data: bytes, *, trusted: bool = False) -> bytes:
    """Return a HEIC or AVIF file as BMP, and any other file as it is.

    Raises:
        BadImage: see `rgb_pixels`.
    """
    kind = phone_format(data)
    return data if kind is None else bmp_file(rgb_pixels(data, kind, trusted=trusted))


def rgb_pixels(data: bytes, kind: str, *, trusted: bool = False) -> np.ndarray:
    """Decode a file to uint8 (H, W, 3), at most MAX_SIDE on each side: upright, transparent parts white.

    Args:
        kind: as `phone_format` returns it.
        trusted: see `decode_image`.

    Raises:
        MissingDecoder: there is no decoder for it here.
        BadImage: the file is too large, cut short or damaged.
    """
    if len(data) > MAX_BYTES and not trusted:
        raise BadImage("too_many_bytes", f"The picture has more than {MAX_BYTES // 2**20} MB.")
    try:
        reader = _reader(kind)
    except ImportError:
        raise MissingDecoder(kind) from None
    try:
        image = reader(io.BytesIO(data))  # reads the header only
        width, height = image.size
        limit = MAX_TRUSTED_PIXELS if trusted else MAX_PIXELS
        if width * height > limit:
            raise BadImage(
                "too_many_pixels", f"The picture has {width} x {height} pixels; the limit is {limit:,}."
            )
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        turn = TURNS.get(orientation_of(image.info.get("exif")))
        return on_white(image if turn is None else image.transpose(turn))
    except BadImage:
        raise
    except Exception:
        # The decoders raise many kinds of errors, whose text may repeat parts of the file.
        raise BadImage(
            "truncated_image", f"The {kind} cannot be decoded: it is cut short or damaged."
        ) from None


def on_white(image: Image.Image) -> np.ndarray:
    """Return uint8 (H, W, 3); transparent parts become white."""
    opaque = image.convert("RGBA")
    white = Image.new("RGB", opaque.size, "white")
    white.paste(opaque, mask=opaque)
    return np.asarray(white)


def bmp_file(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) as BMP, so that limits, resizing and logging apply as to any image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "bmp")
    return file.getvalue()


def _reader(kind: str) -> type[ImageFile.ImageFile]:
    """Return the class that reads the format; raise ImportError if it is not installed."""
    if kind == "HEIC":
        from pillow_heif import HeifImageFile

        return HeifImageFile
    from PIL.AvifImagePlugin import AvifImageFile  # since Pillow 11.3

    if not features.check("avif"):
        raise ImportError("Pillow was built without AVIF")
    return AvifImageFile

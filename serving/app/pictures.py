"""From the bytes of one picture to what the network takes, and what is noted of it on the way."""

import base64
import hashlib
import io
import time
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cifar_mlflow.scorer.predictor import Scorer
from cifar_mlflow.scorer.preprocess import BadImage, image_bytes, picture_format
from serving.monitoring.drift import image_statistics

# A picture of this size and kind is decoded faster than it is handed to another thread.
SMALL_BYTES = 16 * 1024
SMALL_SIDE = 128
_INFLATED = (b"iCCP", b"iTXt", b"zTXt")


class Picture(NamedTuple):
    """A decoded picture, or what is wrong with it: one of `pixels` and `error` is None.

    `pixels` is uint8 (S, S, 3); `known` has the fields of its `Record`; `data` are the bytes it came as, for
    who stores them.
    """

    pixels: np.ndarray | None
    error: BadImage | None
    known: dict[str, Any]
    data: bytes = b""


def decode(scorer: Scorer, content: Any) -> Picture:
    """The picture that is in bytes, or in text of base64 or of a data URL."""
    begun = time.perf_counter()
    known: dict[str, Any] = {}
    try:
        data = image_bytes(content)
        known |= {"image_sha256": hashlib.sha256(data).hexdigest(), "image_bytes": len(data)}
        pixels = scorer.decode(data)
        known["image_format"] = picture_format(data)
    except BadImage as error:
        known |= {"error_code": error.code, "decode_ms": 1000 * (time.perf_counter() - begun)}
        return Picture(None, error, known)
    known["decode_ms"] = 1000 * (time.perf_counter() - begun)
    known["brightness"], known["contrast"] = image_statistics(pixels)
    return Picture(pixels, None, known, data)


def is_small(content: Any) -> bool:
    """Whether it takes a tenth of a millisecond to decode or refuse, by what it declares."""
    if not isinstance(content, bytes | str):
        return True
    if len(content) > SMALL_BYTES:
        return False
    try:
        data = image_bytes(content)
    except BadImage:
        return True
    if data[:8] + data[12:16] != b"\x89PNG\r\n\x1a\nIHDR" or data.count(b"IHDR") > 1:
        return False
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return max(width, height) <= SMALL_SIDE and not any(part in data for part in _INFLATED)


def data_url(pixels: np.ndarray) -> str:
    """A PNG of uint8 (S, S, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

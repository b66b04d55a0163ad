"""The record of one image: what the request log stores, and what metrics and drift are computed from."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Record:
    """One image of a request. A request that is refused as a whole has a single record, item 0.

    Numbers must be Python's own, not NumPy's.

    Attributes:
        request_id: the answer's `request_id`.
        item: position of the image in the request, from 0.
        time: arrival of the request, in Unix seconds.
        route: "/predict", "/invocations" or "/v2/models/{name}/infer".
        status: HTTP status of the answer; 0 or 499 if the connection was closed before it.
        error_code: error of the image or of the whole request, such as not_an_image.
        model_version: such as "cifar10/3".
        image_sha256: SHA-256 of the image file, as 64 hex digits.
        image_bytes: size of the image file.
        image_format: JPEG, PNG, WebP, BMP, GIF, HEIC or AVIF.
        confidence: probability of the label, 0..1.
        ood: out-of-distribution score; the higher it is, the less the image is like the training images.
        brightness: mean of all values that the network sees, 0..1.
        contrast: standard deviation of these values, 0..1.
        decode_ms: time to decode and resize the image.
        score_ms: time in the queue and in the network.
        total_ms: time from the first byte of the request to its answer.
        live: whether it is a frame of a live view. Drift and class counts leave those out: a minute of one
            scene is a thousand images.
    """

    request_id: str
    item: int = 0
    time: float
    route: str
    status: int
    error_code: str | None = None
    model_version: str | None = None
    image_sha256: str | None = None
    image_bytes: int | None = None
    image_format: str | None = None
    label: str | None = None
    confidence: float | None = None
    uncertain: bool | None = None
    ood: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    decode_ms: float | None = None
    score_ms: float | None = None
    total_ms: float
    live: bool = False

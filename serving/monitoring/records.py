"""What is noted of each picture that was asked about."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Record:
    """One picture of a request; a request that is refused as a whole has one of these too, item 0.

    Attributes:
        request_id: what the answer's header X-Request-ID says.
        time: Unix seconds, when the request came.
        route: "/predict" or "/invocations".
        status: of the answer.
        error_code: of the picture or of the request, such as not_an_image.
        model_version: such as "cifar10/3".
        image_format: JPEG, PNG, WebP, BMP or GIF.
        ood: energy score, the higher the stranger.
        brightness: mean of what the network sees, 0..1.
        contrast: standard deviation of it, 0..1.
        score_ms: waiting for the batch, and the network.
        total_ms: of the whole request, from its first byte to its answer.
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

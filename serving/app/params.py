"""What a request says beside its pictures."""

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from serving.app.errors import Refusal
from serving.app.uploads import parsed_json

MAX_FEEDBACK_BYTES = 64 * 1024


class PredictParams(NamedTuple):
    """`input`: with each answer comes the picture that the network saw."""

    top_k: int
    input: bool


class Feedback(BaseModel):
    """What a person says of an answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Of the answer.")
    item: int = Field(0, ge=0, lt=10_000, description="Which picture of the request, from 0.")
    correct: bool | None = Field(None, description="Whether the label was right.")
    label: str | None = Field(None, description="What it should have been.")


def predict_params(query: QueryParams, classes: int) -> PredictParams:
    """Those of the address.

    Raises:
        Refusal: 400, one of them is out of its bounds.
    """
    top_k = query.get("top_k", str(min(3, classes)))
    if not (top_k.isascii() and top_k.isdigit() and len(top_k) < 6 and 1 <= int(top_k) <= classes):
        raise Refusal(400, "bad_param", f"top_k must be a whole number from 1 to {classes}.")
    with_input = query.get("input", "false")
    if with_input not in ("true", "false", "1", "0"):
        raise Refusal(400, "bad_param", "input must be true or false.")
    return PredictParams(int(top_k), with_input in ("true", "1"))


def check_is_json(content_type: str) -> None:
    """Raise Refusal (415) for another kind, which a page of a stranger could send without asking us first."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "unsupported_media_type", "Send application/json.")


def feedback_of(body: bytearray, classes: list[str]) -> Feedback:
    """What is in a body.

    Raises:
        Refusal: 400, it is no feedback, or names a class that there is not; 413, it is too large to be any.
    """
    if len(body) > MAX_FEEDBACK_BYTES:
        raise Refusal(413, "too_large", "This is too large for feedback.")
    try:
        given = Feedback.model_validate(parsed_json(body))
    except ValidationError:
        raise Refusal(
            400,
            "bad_feedback",
            'Send {"request_id": "…", "item": 0, "correct": true or false, "label": "…" or null}.',
        ) from None
    if given.correct is None and given.label is None:
        raise Refusal(400, "bad_feedback", "Say whether the answer was correct, or what the label is.")
    if given.label is not None and given.label not in classes:
        raise Refusal(400, "unknown_label", "The label is none of the model's classes; /model lists them.")
    return given

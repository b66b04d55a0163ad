"""POST /feedback: store people's feedback on answers."""

import asyncio

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request

from serving.app.dependencies import app_state
from serving.app.errors import Refusal, bad_json
from serving.app.openapi import errors, json_schema, request_body
from serving.app.schemas import Feedback

router = APIRouter()

MAX_BYTES = 64 * 1024


async def _read_feedback(request: Request) -> Feedback:
    # A web page of another site may send other content types without a preflight request (CORS).
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "unsupported_media_type", "Send application/json.")
    body = await request.body()
    if len(body) > MAX_BYTES:
        raise Refusal(413, "too_large", "The body is too large for feedback.")
    try:
        feedback = Feedback.model_validate_json(body)
    except ValidationError as error:
        message = 'Send {"request_id": "…", "item": 0, "correct": true or false, "label": "…" or null}.'
        raise bad_json(error, Refusal(400, "bad_feedback", message)) from None
    if feedback.correct is None and feedback.label is None:
        raise Refusal(400, "bad_feedback", "Say whether the answer was correct, or what the label is.")
    return feedback


@router.post(
    "/feedback",
    status_code=204,
    response_description="The feedback was stored.",
    responses=errors(404, 408, 413, 415),
    openapi_extra=request_body({"application/json": json_schema(Feedback)}),
)
async def feedback(request: Request) -> None:
    """Store whether an answer was right, and what it should have been."""
    state, feedback = app_state(request), await _read_feedback(request)
    if feedback.label is not None and feedback.label not in state.champion.current.scorer.classes:
        raise Refusal(400, "unknown_label", "The label is not a class of the model; see /model.")
    state.telemetry.flush()
    # Not in the decoding threads: it may wait for the database.
    await asyncio.to_thread(state.telemetry.feedback, feedback)

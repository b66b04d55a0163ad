"""POST /predict: classify uploaded images."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from serving.app.classify import classify
from serving.app.decoding import DecodedImage, data_url
from serving.app.dependencies import Context, State
from serving.app.errors import Refusal, image_status
from serving.app.openapi import BINARY, errors, json_schema, request_body
from serving.app.schemas import ImageList, ModelName, Prediction, PredictResponse, SingleImage, Timings
from serving.app.uploads import FIELD, read_uploads

router = APIRouter()

FORM = {
    "schema": {
        "type": "object",
        "properties": {FIELD: {"type": "array", "items": BINARY["schema"], "minItems": 1}},
        "required": [FIELD],
        "additionalProperties": False,
    }
}


@router.post(
    "/predict",
    response_model_exclude_unset=True,
    response_description="An answer for each image; `error` says what is wrong with one.",
    responses=errors(408, 413, 415, 504),
    openapi_extra=request_body(
        {
            "multipart/form-data": FORM,
            "image/*": BINARY,
            "application/octet-stream": BINARY,
            "application/json": json_schema(SingleImage, ImageList),
        }
    ),
)
async def predict(
    request: Request,
    state: State,
    context: Context,
    top_k: Annotated[
        int | None,
        Query(ge=1, description="How many of the likeliest classes to return; default 3, at most all."),
    ] = None,
    input: Annotated[  # noqa: A002 - the name of the query parameter
        bool, Query(description="Whether to return the image that the network saw, as a data URL of a PNG.")
    ] = False,
) -> PredictResponse:
    """Classify images. The response has, for each, its label, a confidence and the likeliest classes."""
    uploads = await read_uploads(request, state.config.max_pictures)
    with state.champion.use() as served:
        result = await classify(request, state.inference, served, [each.content for each in uploads], top_k)
    _refuse_if_all_failed(result.images)
    predictions = [
        Prediction(**answer, filename=upload.filename)
        for answer, upload in zip(result.answers, uploads, strict=True)
    ]
    if input:
        for prediction, image in zip(predictions, result.images, strict=True):
            prediction.input = None if image.pixels is None else data_url(image.pixels)
    return PredictResponse(
        request_id=context.request_id,
        model=ModelName(name=served.name, version=served.version),
        predictions=predictions,
        timings_ms=Timings(**context.timings(result.decode_ms, result.score_ms)),
    )


def _refuse_if_all_failed(images: Sequence[DecodedImage]) -> None:
    """Raise Refusal with the first error if no image has an answer."""
    errors = [image.error for image in images if image.error is not None]
    if len(errors) == len(images):
        statuses = {image_status(error.code) for error in errors}
        raise Refusal(statuses.pop() if len(statuses) == 1 else 400, errors[0].code, errors[0].message)

"""POST /predict: classify uploaded images."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from cifar_mlflow.evaluation.overlay import draw_overlay
from serving.app.classify import Classified, classify
from serving.app.decoding import SMALL_SIDE, DecodedImage, data_url
from serving.app.dependencies import app_state, request_context
from serving.app.errors import Refusal, image_status
from serving.app.openapi import BINARY, errors, json_schema, request_body
from serving.app.request_context import LIVE_HEADER
from serving.app.schemas import ImageList, PredictParameters, PredictResponse, SingleImage
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
# The middleware reads it.
LIVE_FRAME = {
    "name": LIVE_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "1 for a frame of a live view: drift and class counts leave it out, and the request log "
    "keeps one per second.",
}


@router.post(
    "/predict",
    response_model=PredictResponse,
    response_description="An answer for each image; `error` says what is wrong with one.",
    responses=errors(408, 413, 415, 504),
    openapi_extra={
        "parameters": [LIVE_FRAME],
        **request_body(
            {
                "multipart/form-data": FORM,
                "image/*": BINARY,
                "application/octet-stream": BINARY,
                "application/json": json_schema(SingleImage, ImageList),
            }
        ),
    },
)
async def predict(request: Request, parameters: Annotated[PredictParameters, Query()]) -> Response:
    """Classify images. The response has, for each, its label, a confidence and the likeliest classes."""
    state, context = app_state(request), request_context(request)
    uploads = await read_uploads(request, state.config.max_pictures)
    contents = [each.content for each in uploads]
    with state.champion.use() as served:
        result = await classify(
            request, state.inference, served, contents, parameters.top_k, parameters.explain
        )
    _refuse_if_all_failed(result.images)
    predictions = [
        {**answer, "filename": upload.filename}
        for answer, upload in zip(result.answers, uploads, strict=True)
    ]
    if parameters.input or parameters.explain:
        stride = served.scorer.card["class_map"]["stride"] if parameters.explain else None
        pictures = (predictions, result, parameters.input, stride)
        if len(predictions) == 1 and served.scorer.image_size <= SMALL_SIDE:
            _add_pictures(*pictures)  # sooner done than handed to another thread
        else:
            await state.inference.run(request, _add_pictures, *pictures)
    # Validating the response with `PredictResponse` would take as long as writing it; a test does it instead.
    answer = {
        "request_id": context.request_id,
        "model": {"name": served.name, "version": served.version},
        "predictions": predictions,
        "timings_ms": context.timings(result.decode_ms, result.score_ms),
    }
    return Response(to_json(answer), media_type="application/json")


def _add_pictures(
    predictions: list[dict[str, Any]], result: Classified, with_input: bool, stride: int | None
) -> None:
    """Add the network's input and the explanation of its answer to each prediction.

    Args:
        with_input: add the input.
        stride: of the class maps, see `draw_overlay`; None adds no explanation.
    """
    maps = iter(() if result.scores is None else result.scores.class_maps)
    for prediction, image in zip(predictions, result.images, strict=True):
        pixels = image.pixels
        if with_input:
            prediction["input"] = None if pixels is None else data_url(pixels)
        if stride is not None and pixels is not None:
            class_map = next(maps)
            prediction["explanation"] = {
                "label": prediction["label"],
                "class_map": class_map.astype(float).round(5).tolist(),
                "overlay": data_url(draw_overlay(pixels, class_map, stride)),
            }


def _refuse_if_all_failed(images: Sequence[DecodedImage]) -> None:
    """Raise Refusal with the first error if no image has an answer."""
    failures = [image.error for image in images if image.error is not None]
    if len(failures) == len(images):
        statuses = {image_status(error.code) for error in failures}
        raise Refusal(statuses.pop() if len(statuses) == 1 else 400, failures[0].code, failures[0].message)

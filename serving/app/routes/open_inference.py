"""The Open Inference Protocol v2, which Triton, KServe and MLServer speak: /v2 and the paths below it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import Response

from serving.app.champion import ServedModel
from serving.app.classify import classify
from serving.app.decoding import DecodedImage
from serving.app.dependencies import app_state, request_context
from serving.app.errors import Refusal, image_status
from serving.app.open_inference import EXTENSIONS, model_metadata, read_request, write_response
from serving.app.openapi import BINARY, errors, json_schema, request_body
from serving.app.schemas import (
    InferRequest,
    InferResponse,
    LiveResponse,
    ModelMetadata,
    ModelReadyResponse,
    OpenInferenceError,
    ServerMetadata,
    ServerReadyResponse,
)
from serving.app.state import AppState

router = APIRouter(prefix="/v2")

ERRORS = errors(model=OpenInferenceError)
MODEL_ERRORS = errors(404, model=OpenInferenceError)
INFER_ERRORS = errors(404, 408, 413, 415, 504, model=OpenInferenceError)
PATH_PARAMETERS = {
    "name": "Name of the served model; for a model that is not registered, its architecture.",
    "version": "The served version.",
}
Route = Callable[..., Any]


@router.get("", response_description="The server.", responses=ERRORS)
async def server_metadata(request: Request) -> ServerMetadata:
    """Describe the server."""
    return ServerMetadata(name=request.app.title, version=request.app.version, extensions=EXTENSIONS)


@router.get("/health/live", response_description="The process is alive.", responses=ERRORS)
async def live() -> LiveResponse:
    """Report that the process is alive."""
    return LiveResponse(live=True)


@router.get("/health/ready", response_description="The server is ready.", responses=ERRORS)
async def ready(request: Request) -> ServerReadyResponse:
    """Report whether the server is ready to classify images."""
    _check_ready(app_state(request))
    return ServerReadyResponse(ready=True)


def model_route(
    method: str, path: str = "", openapi: dict[str, Any] | None = None, **options: Any
) -> Callable[[Route], Route]:
    """Register a function for a path below a model, with and without the version of the model.

    The function finds both in `request.path_params`.
    """

    def register(function: Route) -> Route:
        for prefix, names in (
            ("/models/{name}", ["name"]),
            ("/models/{name}/versions/{version}", ["name", "version"]),
        ):
            parameters = [
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": PATH_PARAMETERS[name],
                    "schema": {"type": "string"},
                }
                for name in names
            ]
            router.add_api_route(
                prefix + path,
                function,
                methods=[method],
                openapi_extra={**(openapi or {}), "parameters": parameters},
                **options,
            )
        return function

    return register


@model_route("GET", response_description="The model.", responses=MODEL_ERRORS)
async def model(request: Request) -> ModelMetadata:
    """Describe the tensors of the served model. `/model` lists its classes."""
    with _use_model(request) as served:
        return model_metadata(served)


@model_route("GET", "/ready", response_description="The model is ready.", responses=MODEL_ERRORS)
async def model_ready(request: Request) -> ModelReadyResponse:
    """Report whether the model is ready to classify images."""
    with _use_model(request) as served:
        _check_ready(app_state(request))
        return ModelReadyResponse(name=served.name, ready=True)


@model_route(
    "POST",
    "/infer",
    response_description="The requested tensors.",
    responses={
        200: {"model": InferResponse, "content": {"application/octet-stream": BINARY}},
        **INFER_ERRORS,
    },
    openapi=request_body({"application/json": json_schema(InferRequest), "application/octet-stream": BINARY}),
)
async def infer(
    request: Request,
    inference_header_content_length: Annotated[
        int | None,
        Header(
            ge=0, description="Length of the JSON if tensors follow it as bytes; also in such a response."
        ),
    ] = None,
) -> Response:
    """Classify a batch of images: files, or RGB values. One bad image fails the request."""
    state, context = app_state(request), request_context(request)
    body = await request.body()
    infer_request, images = read_request(body, inference_header_content_length, state.config.max_pictures)
    with _use_model(request) as served:
        classified = await classify(request, state.inference, served, images, top_k=1)
        _refuse_if_any_failed(classified.images)
        return write_response(infer_request, served, classified, context.request_id)


@contextmanager
def _use_model(request: Request) -> Iterator[ServedModel]:
    """Yield the served model.

    Raises:
        Refusal: 404, the path has another name or version.
    """
    name, version = request.path_params["name"], request.path_params.get("version")
    with app_state(request).champion.use() as served:
        if name != served.name or version not in (None, served.version):
            raise Refusal(404, "unknown_model", "The server has no such model or version; see /model.")
        yield served


def _check_ready(state: AppState) -> None:
    failure = state.failure()
    if failure is not None:
        raise Refusal(503, "not_ready", failure)


def _refuse_if_any_failed(images: Sequence[DecodedImage]) -> None:
    """Raise Refusal with the first error of an image: a tensor has no place for errors."""
    for index, image in enumerate(images):
        if image.error is not None:
            raise Refusal(
                image_status(image.error.code), image.error.code, f"image {index}: {image.error.message}"
            )

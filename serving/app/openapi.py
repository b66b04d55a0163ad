"""The OpenAPI document: what FastAPI derives from the routes, and what it cannot know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.app.auth import PUBLIC_PATHS
from serving.app.schemas import (
    ErrorResponse,
    Feedback,
    ImageList,
    InferRequest,
    InvocationsBody,
    SingleImage,
)

# Bodies that the routes read themselves, because their media type decides how.
_BODIES: list[type[BaseModel]] = [SingleImage, ImageList, InvocationsBody, Feedback, InferRequest]
_REFERENCE = "#/components/schemas/{model}"
_DESCRIPTIONS = {
    400: "The request, or every image in it, is wrong.",
    401: "The key is missing or wrong.",
    404: "The answer or the model is unknown.",
    408: "The body came too slowly.",
    413: "The request or an image is too large.",
    415: "The content type or the image format is not supported.",
    429: "Too many requests from this client.",
    500: "The server failed.",
    503: "The server is overloaded; retry after the seconds in Retry-After.",
    504: "The server was too slow.",
}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def errors(*statuses: int, model: type[BaseModel] = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of a route, of the form `model`: these statuses, and those that every route has."""
    return {
        status: {"model": model, "description": _DESCRIPTIONS[status]}
        for status in sorted({400, 401, 429, 500, 503, *statuses})
    }


def json_schema(*models: type[BaseModel]) -> dict[str, Any]:
    """Return a media type object for JSON of one of the models."""
    references = [{"$ref": _REFERENCE.format(model=model.__name__)} for model in models]
    return {"schema": references[0] if len(references) == 1 else {"oneOf": references}}


def request_body(content: dict[str, Any]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose body has one of these media types."""
    return {"requestBody": {"required": True, "content": content}}


def build_openapi(app: FastAPI, needs_key: bool) -> dict[str, Any]:
    """Return the document of an app."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # our handler answers 400
            summary = operation["description"].partition(".")[0]
            operation["summary"] = summary.replace("`", "")  # plain text; a description is Markdown
            operation["tags"] = ["Open Inference Protocol" if path.startswith("/v2") else "Service"]
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    bodies = [(model, "validation") for model in _BODIES]
    _, definitions = models_json_schema(bodies, ref_template=_REFERENCE)  # type: ignore[arg-type]
    schemas |= definitions["$defs"]
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in PUBLIC_PATHS else [{"key": []}]
    return document

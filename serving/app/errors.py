"""Errors as clients see them: a status, a code for programs and a sentence for people."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

# Statuses of the error codes of an image; every other code has 400.
_IMAGE_STATUS = {
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "unsupported_format": 415,
}


class Refusal(Exception):  # noqa: N818 - it becomes a response, not a failure of the server
    """A request that is refused. `message` repeats nothing of the request and names no path of the server."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


def image_status(code: str) -> int:
    """Return the status of a request that is refused because of the error code of its image."""
    return _IMAGE_STATUS.get(code, 400)


def overloaded(message: str = "The server has too much to do.") -> Refusal:
    return Refusal(503, "overloaded", f"{message} Try again in a second.", {"Retry-After": "1"})


def too_slow() -> Refusal:
    return Refusal(504, "timeout", "The server was too slow for this request.")


def bad_parameter(errors: Sequence[Any]) -> Refusal:
    """Return the refusal for pydantic's errors about the query parameters."""
    return Refusal(400, "bad_param", f"{errors[0]['loc'][-1]}: {errors[0]['msg']}.")


def bad_json(error: ValidationError, otherwise: Refusal) -> Refusal:
    """Return the refusal of a body that is not JSON, or `otherwise` if it is JSON of another form."""
    if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
        return Refusal(400, "not_json", "The body is not JSON.")
    return otherwise


def error_response(refusal: Refusal) -> ASGIApp:
    """Return a response in our own form, or for paths below /v2 in that of the Open Inference Protocol."""

    def response(error: object) -> Response:
        content = json.dumps({"error": error})
        return Response(content, refusal.status, refusal.headers, "application/json")

    own = response({"code": refusal.code, "message": refusal.message})
    open_inference = response(refusal.message)

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_open_inference = path == "/v2" or path.startswith("/v2/")
        await (open_inference if is_open_inference else own)(scope, receive, send)

    return respond


async def refused(request: Request, refusal: Refusal) -> ASGIApp:
    """Exception handler: respond with a refusal, and note its code for the logs."""
    request.scope["context"].error_code = refusal.code
    return error_response(refusal)


async def http_error(request: Request, error: HTTPException) -> ASGIApp:
    """Exception handler: respond to an unknown path or method."""
    if error.status_code == 405:
        message = "This path does not support this method; /docs lists both."
        return await refused(request, Refusal(405, "wrong_method", message, error.headers))
    return await refused(request, Refusal(404, "not_found", "There is nothing at this path; see /docs."))


async def invalid_parameter(request: Request, error: RequestValidationError) -> ASGIApp:
    """Exception handler: respond to a query parameter that FastAPI rejects."""
    return await refused(request, bad_parameter(error.errors()))

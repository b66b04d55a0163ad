"""What the OpenAPI document says of each route, and the page that shows it to people, with examples."""

import base64
import hashlib
import html
from typing import Any

from serving.app.params import Feedback

DESCRIPTION = "What is in a picture: a class, how sure the model is, and whether that is enough to rely on."
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #8882; padding: .7rem 1rem; overflow-x: auto; border-radius: .4rem; }
h2 { margin-top: 2.5rem; } h2 code { font-size: 1rem; } :root { color-scheme: light dark; }
"""
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_STRING, _NUMBER, _BOOLEAN = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
_FRACTION = {"type": "number", "minimum": 0, "maximum": 1}


def _object(optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _content(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


_ERROR = _object(code=_STRING, message=_STRING)
_ANSWER = {
    "label": _or_null(_STRING),
    "class_index": _or_null({"type": "integer", "minimum": 0}),
    "confidence": _or_null(_FRACTION),
    "top_k": _list(_object(label=_STRING, confidence=_FRACTION)),
    "uncertain": _or_null(_BOOLEAN),
}
_NAME = _object(name=_STRING, version=_STRING)
_FAILURES = {
    400: "The request, or every picture in it, is wrong.",
    401: "The key is missing or wrong.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    413: "The request, or the picture, is too large.",
    415: "Not of a kind that is taken.",
    429: "Too many requests of this client.",
    500: "A fault of the server.",
    503: "Too much to do: try again when Retry-After says.",
    504: "The server was too slow.",
}


def _responses(description: str, content: dict[str, Any] | None, *failures: int) -> dict[str, Any]:
    good = {"description": description, **({"content": content} if content else {})}
    bad = {
        str(status): {"description": _FAILURES[status], "content": _content(_object(error=_ERROR))}
        for status in sorted({400, 401, 429, 500, 503, *failures})
    }
    return {"200" if content else "204": good, **bad}


def _route(description: str, content: dict[str, Any] | None, *failures: int, **more: Any) -> dict[str, Any]:
    """What FastAPI is told of a route: it derives nothing from the code, which takes the bare request."""
    return {
        "openapi_extra": {"responses": _responses(description, content, *failures), **more},
        "status_code": 200 if content else 204,
        "response_model": None,
    }


_BYTES = {"type": "string", "format": "binary"}
_TEXT = {"type": "string", "description": "Base64, or a data URL."}
PREDICT = _route(
    "An answer for each picture; `error` says what is wrong with one.",
    _content(
        _object(
            request_id=_STRING,
            model=_NAME,
            predictions=_list(
                _object(
                    ("input",),
                    filename=_or_null(_STRING),
                    **_ANSWER,
                    error=_or_null(_ERROR),
                    input=_or_null(_STRING),
                )
            ),
            timings_ms=_object(decode=_NUMBER, score=_NUMBER, total=_NUMBER),
        )
    ),
    408, 413, 415, 504,
    parameters=[
        {
            "name": "top_k", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 3},
            "description": "How many of the likeliest classes; at most all.",
        },
        {
            "name": "input", "in": "query", "schema": {"type": "boolean", "default": False},
            "description": "With each answer the picture that the network saw, as a data URL of a PNG.",
        },
    ],
    requestBody={
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _object(file={**_list(_BYTES), "minItems": 1})},
            "image/*": {"schema": _BYTES},
            "application/octet-stream": {"schema": _BYTES},
            "application/json": {
                "schema": {"oneOf": [_object(image=_TEXT), _object(images={**_list(_TEXT), "minItems": 1})]}
            },
        },
    },
)  # fmt: skip
_PARAMS = _object(
    ("top_k", "on_error"),
    top_k={"type": "integer", "minimum": 1},
    on_error={"enum": ["raise", "null"]},
)
_TABLE = _object(("params",), inputs=_object(image=_list(_TEXT)), params=_PARAMS)
INVOCATIONS = _route(
    "An answer for each row.",
    _content(_object(predictions=_list(_object(("error",), **_ANSWER, error=_or_null(_ERROR))))),
    408, 413, 415, 504,
    requestBody={
        "required": True,
        "description": "dataframe_split, dataframe_records, inputs or instances, as MLflow has them.",
        "content": {
            "application/json": {"schema": _TABLE},
            "text/csv": {"schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": _BYTES},
        },
    },
)  # fmt: skip
FEEDBACK = _route(
    "Noted.", None, 404, 408, 413, 415,
    requestBody={"required": True, "content": _content(Feedback.model_json_schema())},
)  # fmt: skip
MODEL = _route("The model.", _content({"type": "object", "required": ["name", "version", "classes"]}))
READY = _route("It answers.", _content(_object(ready=_BOOLEAN, model=_NAME, problems=_list(_STRING))))
METRICS = _route("Prometheus' text.", _content(_STRING, "text/plain"), 404)
PING = _route("An empty line.", _content({}))
VERSION = _route("Such as 3.17.2.", _content({}))

# Each is run by a test, beside a picture cat.jpg.
EXAMPLES = {
    "/predict": [
        "curl -F file=@cat.jpg {url}/predict",
        "curl -F file=@cat.jpg -F file=@cat.jpg '{url}/predict?top_k=2'",
        "curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg {url}/predict",
        "(printf '{{\"image\": \"'; base64 -w0 cat.jpg; printf '\"}}') |\n"
        "    curl -H 'Content-Type: application/json' --data-binary @- {url}/predict",
    ],
    "/invocations": [
        "(echo image; base64 -w0 cat.jpg) |\n"
        "    curl -H 'Content-Type: text/csv' --data-binary @- {url}/invocations",
    ],
    "/feedback": [
        "curl -H 'Content-Type: application/json' {url}/feedback \\\n"
        '    -d \'{{"request_id": "ID-OF-AN-ANSWER", "correct": false, "label": null}}\'',
    ],
    "/model": ["curl {url}/model"],
    "/ready": ["curl {url}/ready"],
}


def page(openapi: dict[str, Any], url: str) -> str:
    """HTML of the document, for a person."""
    parts = [f"<h1>{html.escape(openapi['info']['title'])}</h1><p>{html.escape(DESCRIPTION)}"]
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {path}</code></h2><p>{html.escape(route['description'])}"
            )
            parts += [
                f"<pre>{html.escape(example.format(url=url))}</pre>" for example in EXAMPLES.get(path, [])
            ]
            parts += [
                f"<p><code>{each['name']}</code>: {html.escape(each['description'])}"
                for each in route.get("parameters", [])
            ]
    parts.append(
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>. Where the server has a key, add '
        "<code>-H 'Authorization: Bearer KEY'</code>."
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>cifar-mlflow</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style>" + "\n".join(parts)
    )

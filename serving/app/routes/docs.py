"""GET /docs: the OpenAPI document as a page for people, with an example of each route."""

import base64
import hashlib
from html import escape
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from serving.app.dependencies import app_state

router = APIRouter(include_in_schema=False)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #8882; padding: .7rem 1rem; overflow-x: auto; border-radius: .4rem; }
h2 { margin-top: 2.5rem; } h2 code { font-size: 1rem; } :root { color-scheme: light dark; }
"""
STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{STYLE_DIGEST}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# A test runs each of them, beside an image cat.jpg.
EXAMPLES = {
    "/predict": [
        "curl -F file=@cat.jpg {url}/predict",
        "curl -F file=@cat.jpg -F file=@cat.jpg '{url}/predict?top_k=2'",
        "curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg {url}/predict",
        "(printf '{{\"image\": \"'; base64 < cat.jpg | tr -d '\\n'; printf '\"}}') |\n"
        "    curl -H 'Content-Type: application/json' --data-binary @- {url}/predict",
    ],
    "/invocations": [
        "(echo image; base64 < cat.jpg | tr -d '\\n') |\n"
        "    curl -H 'Content-Type: text/csv' --data-binary @- {url}/invocations",
    ],
    "/v2/models/{name}/infer": [
        '(printf \'{{"inputs": [{{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["\'\n'
        " base64 -w0 cat.jpg; printf '\"]}}]}}') |\n"
        "    curl --data-binary @- {url}/v2/models/{name}/infer",
    ],
    "/feedback": [
        "curl -H 'Content-Type: application/json' {url}/feedback \\\n"
        '    -d \'{{"request_id": "ID-OF-AN-ANSWER", "correct": false, "label": null}}\'',
    ],
    "/model": ["curl {url}/model"],
    "/ready": ["curl {url}/ready"],
}


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    name = quote(app_state(request).champion.current.name)
    html = render(request.app.openapi(), str(request.base_url).rstrip("/"), name)
    return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})


def render(openapi: dict[str, Any], url: str, name: str) -> str:
    """Return the page; the examples have the address of the service and the name of the model."""
    info = openapi["info"]
    parts = [f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])}"]
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            parts.append(
                f"<h2><code>{method.upper()} {path}</code></h2><p>{escape(operation['description'])}"
            )
            examples = [example.format(url=url, name=name) for example in EXAMPLES.get(path, [])]
            parts += [f"<pre>{escape(example)}</pre>" for example in examples]
            parts += [
                f"<p><code>{parameter['name']}</code>: {escape(parameter['description'])}"
                for parameter in operation.get("parameters", [])
            ]
    parts.append(
        '<p>For programs: <a href="openapi.json">openapi.json</a>. If the server has a key, add '
        "<code>-H 'Authorization: Bearer KEY'</code>."
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>cifar-mlflow</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style>" + "\n".join(parts)
    )

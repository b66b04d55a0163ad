"""GET /docs: the OpenAPI document in Swagger UI, and examples for the command line."""

from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse

from serving.app.dependencies import app_state

router = APIRouter(include_in_schema=False)


class _File(NamedTuple):
    media_type: str
    stored_as: str


FOLDER = Path(__file__).parents[1] / "swagger"
FILES = {
    "swagger-ui-bundle.js": _File("text/javascript", "swagger-ui-bundle.js.gz"),
    "swagger-ui.css": _File("text/css", "swagger-ui.css.gz"),
    "docs.js": _File("text/javascript", "docs.js"),
    "docs.css": _File("text/css", "docs.css"),
}

# A test runs each of them in a folder with an image cat.jpg.
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


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>cifar-mlflow: HTTP API</title>
<link rel="icon" href="page/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="page/swagger/swagger-ui.css">
<link rel="stylesheet" href="page/swagger/docs.css">
<script src="page/swagger/swagger-ui-bundle.js" defer></script>
<script src="page/swagger/docs.js" defer></script>
<p><a href="./">Classify photos</a> | <a href="#examples">Examples for the command line</a> |
<a href="openapi.json">openapi.json</a></p>
<noscript><p>The description needs JavaScript; the examples and openapi.json do not.</p></noscript>
<div id="swagger"></div>
<section id="examples">
<h2>Examples for the command line</h2>
<p>If the server has a key, add <code>-H 'Authorization: Bearer KEY'</code>.</p>
{examples}
</section>
"""


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    name = quote(app_state(request).champion.current.name)
    return HTMLResponse(render(str(request.base_url).rstrip("/"), name))


@router.get("/page/swagger/{name}")
async def swagger_file(name: str) -> FileResponse:
    if name not in FILES:
        raise HTTPException(404)
    file = FILES[name]
    # Browsers accept gzip; the files are stored in this form only.
    headers = {"Content-Encoding": "gzip"} if file.stored_as.endswith(".gz") else {}
    return FileResponse(FOLDER / file.stored_as, media_type=file.media_type, headers=headers)


def render(url: str, name: str) -> str:
    """Return the page; the examples have the address of the service and the name of the model."""
    parts = []
    for path, examples in EXAMPLES.items():
        parts.append(f"<h3><code>{escape(path)}</code></h3>")
        parts += [
            f'<pre class="example">{escape(example.format(url=url, name=name))}</pre>' for example in examples
        ]
    return PAGE.format(examples="\n".join(parts))

"""The routes of the service. What they need is in `serving/app/`; every request comes through its gate."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from mlflow.version import VERSION
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from serving.app import documents as docs
from serving.app.card import model_card
from serving.app.errors import Refusal, error_response
from serving.app.invocations import question
from serving.app.middleware import RequestMiddleware
from serving.app.params import check_is_json, feedback_of, predict_params
from serving.app.protocol import Door
from serving.app.request_context import RequestContext
from serving.app.schemas import answers, predictions, rows
from serving.app.state import AppState
from serving.app.uploads import uploads

PAGE = Path(__file__).parents[1] / "page"
EXAMPLES = Path(__file__).parents[1] / "examples"
# Above, the pictures of a request are taken out of its body in a thread.
INLINE_BYTES = 64 * 1024
JSON = "application/json"


class _PlainRoute(APIRoute):
    """A route that takes the request and gives the answer itself: FastAPI documents it, and does no more."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        endpoint: Callable[[Request], Awaitable[Response]] = self.endpoint
        return endpoint


def create_app(service: AppState) -> ASGIApp:
    """The application of one process; it closes the service when it is shut down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Door]]:
        service.start()
        measuring = asyncio.create_task(measure_often())
        yield {
            "door": Door(
                frozenset(path for _, path in direct), service.config.queue_limit, observer.turned_away
            )
        }
        measuring.cancel()
        observer.flush()
        await asyncio.to_thread(service.close)

    def measure() -> None:
        observer.measure(gate.inside, work.waiting, champion)

    async def measure_often() -> None:
        while True:  # with several workers each shows what the others measured
            measure()
            await asyncio.sleep(1)

    app = FastAPI(
        title="cifar-mlflow",
        version="1",
        description=docs.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={Refusal: _refused, HTTPException: _not_found},
    )
    app.router.route_class = _PlainRoute
    champion, work, bodies, observer = service.champion, service.work, service.bodies, service.observer

    async def read(request: Request) -> bytearray:
        body = await bodies.read(request)
        request.scope["exchange"].body_bytes = len(body)
        return body

    async def parse(function: Callable[..., Any], body: bytearray, *arguments: Any) -> Any:
        if len(body) <= INLINE_BYTES:
            return function(*arguments)
        return await work.run(function, *arguments)

    @app.post("/predict", **docs.PREDICT)
    async def predict(request: Request) -> Response:
        """What is in the pictures: for each its label, how sure the model is, and the likeliest classes."""
        exchange = request.scope["exchange"]
        body = await read(request)
        kind = request.headers.get("content-type", "")
        found = await parse(uploads, body, kind, body, service.config.max_pictures)
        with work.admitted(len(found)), champion.use() as served:
            exchange.model_version = str(served)
            params = predict_params(request.query_params, len(served.scorer.classes))
            scored = await work.score(served.scorer, [each.content for each in found])
            said = predictions(
                found,
                scored.pictures,
                answers(served, scored, params.top_k, exchange),
                params.input,
            )
        return _json(
            {
                "request_id": exchange.request_id,
                "model": {"name": served.name, "version": served.version},
                "predictions": said,
                "timings_ms": exchange.timings(scored.decode_ms, scored.score_ms),
            }
        )

    @app.post("/invocations", **docs.INVOCATIONS)
    async def invocations(request: Request) -> Response:
        """As MLflow's scoring server has it: a table with a column `image`, a row for each picture."""
        exchange = request.scope["exchange"]
        body = await read(request)
        kind = request.headers.get("content-type")
        plain = kind == JSON and len(body) <= INLINE_BYTES
        async with nullcontext() if plain else work.table():
            return await answer_table(exchange, body, kind)

    async def answer_table(exchange: RequestContext, body: bytearray, kind: str | None) -> Response:
        with champion.use() as served:
            exchange.model_version = str(served)
            asked = await parse(question, body, kind, body, len(served.scorer.classes))
            with work.admitted(len(asked.cells)):
                scored = await work.score(served.scorer, asked.cells)
            said = rows(
                scored.pictures,
                answers(served, scored, asked.top_k, exchange),
                asked.on_error,
            )
        return _json({"predictions": said})

    @app.post("/feedback", **docs.FEEDBACK)
    async def feedback(request: Request) -> Response:
        """Whether an answer was right, and what it should have been."""
        check_is_json(request.headers.get("content-type", ""))
        given = feedback_of(await read(request), champion.current.scorer.classes)
        observer.flush()
        # Not in the threads of the pictures: it may wait for the database.
        await asyncio.to_thread(observer.feedback, given)
        return Response(status_code=204)

    @app.get("/model", **docs.MODEL)
    async def model(request: Request) -> Response:
        """The model that is served now: what it was trained on, and how good it is."""
        return _json(model_card(champion.current))

    @app.get("/ready", **docs.READY)
    async def ready(request: Request) -> Response:
        """Whether pictures are answered, and what an operator should look after."""
        served = champion.current
        return _json(
            {
                "ready": True,
                "model": {"name": served.name, "version": served.version},
                "problems": service.problems(),
            }
        )

    @app.get("/metrics", **docs.METRICS)
    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        measure()
        content, kind = observer.metrics()
        return Response(content, media_type=kind)

    @app.get("/ping", **docs.PING)
    @app.get("/health", **docs.PING)
    async def ping(request: Request) -> Response:
        """Whether the process lives, as MLflow's scoring server says it."""
        return Response("\n", media_type=JSON)

    @app.get("/version", **docs.VERSION)
    async def version(request: Request) -> Response:
        """The version of MLflow."""
        return Response(VERSION, media_type=JSON)

    @app.get("/docs", include_in_schema=False)
    async def documentation(request: Request) -> Response:
        return HTMLResponse(
            docs.page(app.openapi(), str(request.base_url).rstrip("/")),
            headers={"Content-Security-Policy": docs.POLICY},
        )

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    app.mount("/page/examples", StaticFiles(directory=EXAMPLES))
    app.mount("/page", StaticFiles(directory=PAGE))
    direct = {("POST", "/predict"): predict, ("POST", "/invocations"): invocations}
    gate = RequestMiddleware(
        app, direct, service.security, observer, bodies, most=2 * service.config.queue_limit
    )
    return gate


def _json(content: Any) -> Response:
    return Response(json.dumps(content), media_type=JSON)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    request.scope["exchange"].error_code = error.code
    return error_response(error)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = Refusal(405, "wrong_method", "This address is not asked in this way.", error.headers)
    else:
        refusal = Refusal(404, "not_found", "There is nothing at this address; /docs says where what is.")
    return await _refused(request, refusal)

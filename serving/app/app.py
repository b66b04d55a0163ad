"""The HTTP application of one process: its routes, error handlers and lifespan."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving.app.direct_routes import DirectRoute, DirectRoutes
from serving.app.errors import Refusal, http_error, invalid_parameter, refused
from serving.app.middleware import RequestMiddleware
from serving.app.openapi import build_openapi
from serving.app.path_prefix import PathPrefix
from serving.app.routes import docs, feedback, invocations, model, open_inference, page, predict, status
from serving.app.routes.status import update_metrics
from serving.app.schemas import PredictParameters
from serving.app.state import AppState

ROUTES = (predict, invocations, open_inference, feedback, model, status, docs, page)
DESCRIPTION = "Classify images: the class, how confident the model is, and whether that is enough to rely on."


def create_app(state: AppState) -> FastAPI:
    """Return the application. Its lifespan starts the state and closes it at shutdown."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state.start()
        metrics = asyncio.create_task(_update_metrics(state))
        yield
        metrics.cancel()
        state.telemetry.flush()
        await asyncio.to_thread(state.close)

    app = FastAPI(
        title="cifar-mlflow",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.app_state = state
    for routes in ROUTES:
        app.include_router(routes.router)
    app.add_exception_handler(Refusal, refused)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid_parameter)  # type: ignore[arg-type]
    document = build_openapi(app, needs_key=state.config.api_key is not None)
    app.openapi = lambda: document  # type: ignore[method-assign]
    direct = {"/predict": DirectRoute(predict.predict, PredictParameters)}
    app.add_middleware(DirectRoutes, routes=direct)
    app.add_middleware(RequestMiddleware, state=state)
    app.add_middleware(PathPrefix)
    return app


async def _update_metrics(state: AppState) -> None:
    """Set the gauges every second: a worker reports the values that the others set last."""
    while True:
        update_metrics(state)
        await asyncio.sleep(1)

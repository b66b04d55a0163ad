"""Routes for operators and probes: /ready, /metrics, and those of MLflow's scoring server."""

from fastapi import APIRouter
from mlflow.version import VERSION
from starlette.responses import Response

from serving.app.dependencies import State
from serving.app.errors import Refusal
from serving.app.openapi import errors
from serving.app.schemas import ModelName, ReadyResponse
from serving.app.state import AppState

router = APIRouter()

JSON = "application/json"


@router.get("/ready", response_description="Images are answered.", responses=errors())
async def ready(state: State) -> ReadyResponse:
    """Tell whether images are answered, and what an operator should look at."""
    failure = state.failure()
    if failure is not None:
        raise Refusal(503, "not_ready", failure)
    served = state.champion.current
    return ReadyResponse(
        ready=True,
        model=ModelName(name=served.name, version=served.version),
        problems=state.problems(),
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()},
    response_description="The text format of Prometheus.",
)
async def metrics(state: State) -> Response:
    """Return metrics for Prometheus."""
    update_metrics(state)
    content, content_type = state.telemetry.metrics()
    return Response(content, media_type=content_type)


@router.get("/ping", responses=errors(), response_description="An empty line.")
@router.get("/health", responses=errors(), response_description="An empty line.")
async def ping() -> Response:
    """Tell that the process lives, as MLflow's scoring server does."""
    return Response("\n", media_type=JSON)


@router.get("/version", responses=errors(), response_description="Such as 3.17.2.")
async def version() -> Response:
    """Return the version of MLflow, as MLflow's scoring server does."""
    return Response(VERSION, media_type=JSON)


def update_metrics(state: AppState) -> None:
    """Set the gauges, which are states and not events."""
    state.telemetry.measure(state.admission.in_flight, state.inference.waiting, state.champion)

"""Routes for operators and probes: /ready, /metrics, and those of MLflow's scoring server."""

from fastapi import APIRouter
from mlflow.version import VERSION
from starlette.requests import Request
from starlette.responses import Response

from serving.app.dependencies import app_state
from serving.app.errors import Refusal
from serving.app.openapi import errors
from serving.app.schemas import ModelName, ReadyResponse
from serving.app.state import AppState

router = APIRouter()

JSON = "application/json"


@router.get("/ready", response_description="The service is ready.", responses=errors())
async def ready(request: Request) -> ReadyResponse:
    """Report whether the service is ready to classify images, and problems for the operator."""
    state = app_state(request)
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
async def metrics(request: Request) -> Response:
    """Return metrics for Prometheus."""
    state = app_state(request)
    update_metrics(state)
    content, content_type = state.telemetry.metrics()
    return Response(content, media_type=content_type)


@router.get("/ping", responses=errors(), response_description="An empty line.")
@router.get("/health", responses=errors(), response_description="An empty line.")
async def ping() -> Response:
    """Report that the process is alive, as MLflow's scoring server does."""
    return Response("\n", media_type=JSON)


@router.get("/version", responses=errors(), response_description="Such as 3.17.2.")
async def version() -> Response:
    """Return the version of MLflow, as MLflow's scoring server does."""
    return Response(VERSION, media_type=JSON)


def update_metrics(state: AppState) -> None:
    """Set the gauges, which show the current state."""
    state.telemetry.measure(state.admission.in_flight, state.inference.waiting, state.champion)

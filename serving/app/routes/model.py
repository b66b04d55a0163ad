"""GET /model: the description of the served model."""

from urllib.parse import quote, urlsplit

import mlflow
from fastapi import APIRouter
from starlette.requests import Request

from cifar_mlflow.models.card import ServedCard
from serving.app.dependencies import app_state
from serving.app.openapi import errors
from serving.app.schemas import ModelResponse, TrainingData
from serving.registry.versions import facts

router = APIRouter()


@router.get("/model", response_description="The model.", responses=errors())
async def model(request: Request) -> ModelResponse:
    """Describe the served model: its training data, settings and metrics."""
    state = app_state(request)
    served = state.champion.current
    mlflow_url = _mlflow_url(state.config.mlflow_url)
    is_registered = served.version.isdigit()
    card = ServedCard.model_validate(served.scorer.card)
    return ModelResponse(
        name=served.name,
        version=served.version,
        alias=served.alias,
        run_url=f"{mlflow_url}/#/runs/{quote(card.run_id)}" if mlflow_url and card.run_id else None,
        versions_url=f"{mlflow_url}/#/models/{quote(served.name)}" if mlflow_url and is_registered else None,
        trained_on=TrainingData(**card.model_dump()),
        decision=facts(served.tags).get("decision"),
        promotion=served.tags.get("promoted"),
        promoted_at=served.tags.get("promoted_at"),
        **card.model_dump(),
    )


def _mlflow_url(setting: str | None) -> str | None:
    """Return the address of MLflow's UI without a password; None if MLflow keeps its runs in files."""
    address = urlsplit(setting or mlflow.get_tracking_uri())
    if address.scheme not in ("http", "https"):
        return None
    host = address.netloc.rpartition("@")[2]
    return f"{address.scheme}://{host}{address.path.rstrip('/')}"

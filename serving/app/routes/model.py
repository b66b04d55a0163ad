"""GET /model: the description of the served model."""

from fastapi import APIRouter

from cifar_mlflow.models.card import ServedCard
from serving.app.dependencies import State
from serving.app.openapi import errors
from serving.app.schemas import ModelResponse, TrainingData

router = APIRouter()


@router.get("/model", response_description="The model.", responses=errors())
async def model(state: State) -> ModelResponse:
    """Describe the served model: its training data, settings and metrics."""
    served = state.champion.current
    card = ServedCard.model_validate(served.scorer.card)
    return ModelResponse(
        name=served.name,
        version=served.version,
        alias=served.alias,
        trained_on=TrainingData(**card.model_dump()),
        decision=served.tags.get("decision"),
        promoted_at=served.tags.get("promoted_at"),
        **card.model_dump(),
    )

"""POST /invocations: the contract of MLflow's scoring server."""

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request

from serving.app.classify import classify
from serving.app.decoding import DecodedImage
from serving.app.dependencies import State
from serving.app.errors import Refusal
from serving.app.mlflow_table import CSV, JSON, PARQUET, Table, media_type, read_table
from serving.app.openapi import BINARY, errors, json_schema, request_body
from serving.app.schemas import InvocationsBody, InvocationsResponse, InvocationsRow
from serving.app.state import AppState

router = APIRouter()


@router.post(
    "/invocations",
    response_model_exclude_unset=True,
    response_description="An answer for each row.",
    responses=errors(408, 413, 415, 504),
    openapi_extra=request_body(
        {JSON: json_schema(InvocationsBody), CSV: {"schema": {"type": "string"}}, PARQUET: BINARY}
    ),
)
async def invocations(request: Request, state: State) -> InvocationsResponse:
    """Classify the images of a table with a column `image`, as MLflow's scoring server does."""
    kind = media_type(request.headers.get("content-type", ""))
    body = await request.body()
    if kind == JSON:
        return await _answer(request, state, read_table(kind, body))
    async with state.inference.table():
        return await _answer(request, state, await state.inference.run(read_table, kind, body))


async def _answer(request: Request, state: AppState, table: Table) -> InvocationsResponse:
    with state.champion.use() as served:
        result = await classify(request, state.inference, served, table.cells, table.params.top_k)
    if table.params.on_error == "raise":
        _refuse_if_any_failed(result.images)
        for answer in result.answers:
            del answer["error"]
    return InvocationsResponse(predictions=[InvocationsRow(**answer) for answer in result.answers])


def _refuse_if_any_failed(images: Sequence[DecodedImage]) -> None:
    """Raise Refusal with the first error of a row."""
    for row, image in enumerate(images):
        if image.error is not None:
            raise Refusal(400, image.error.code, f"row {row}: {image.error.message}")

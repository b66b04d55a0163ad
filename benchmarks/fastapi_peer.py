"""Peer of the service: our scorer behind a plain FastAPI app, without limits, log and metrics.

`python -m benchmarks.fastapi_peer --model-uri URI --port PORT`
"""

from typing import Any

import click
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from cifar_mlflow.scorer.predictor import Scorer
from serving.registry.loader import load_scorer


def create_app(scorer: Scorer) -> FastAPI:
    app = FastAPI()

    def classify(data: bytes) -> dict[str, Any]:
        (answer,) = scorer.answers(scorer.score(scorer.decode(data)[None]), top_k=3)
        return answer

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(classify, await request.body())

    return app


@click.command()
@click.option("--model-uri", required=True)
@click.option("--port", type=int, required=True)
def main(model_uri: str, port: int) -> None:
    uvicorn.run(create_app(load_scorer(model_uri)), port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()

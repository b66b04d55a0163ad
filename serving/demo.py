"""The last step of the demo: classify a photo over HTTP, as any client would."""

import base64
from pathlib import Path

import requests

from serving.registry.mlflow_server import mlflow_server

PHOTO = Path(__file__).parent / "examples" / "cat.jpg"


def classify_over_http(model_uri: str) -> str:
    """Return the answer of `mlflow models serve` for the photo, as text.

    Raises:
        CifarError: the server did not start.
    """
    image = base64.b64encode(PHOTO.read_bytes()).decode()
    with mlflow_server(model_uri) as server:
        response = requests.post(
            f"{server.address}/invocations", json={"inputs": {"image": [image]}}, timeout=60
        )
    response.raise_for_status()
    (answer,) = response.json()["predictions"]
    ranking = ", ".join(f"{each['label']} {each['confidence']:.1%}" for each in answer["top_k"])
    return f"{ranking}{' (uncertain)' if answer['uncertain'] else ''}"

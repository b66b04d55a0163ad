"""Peers of the service: LitServe around the network in PyTorch, or around our scorer.

The batching is that of LitServe's documentation.
`python -m benchmarks.litserve_peer (--classifier FILE | --model-uri URI) --port PORT`; FILE is a module that
`torch.save` wrote.
"""

import base64
import io
from pathlib import Path
from typing import Any

import click
import litserve
import numpy as np
import torch
from PIL import Image

from serving.registry.loader import load_scorer


class Base64Api(litserve.LitAPI):
    """Receives an image in base64, and scores images in batches."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.005)


class TorchApi(Base64Api):
    def __init__(self, classifier: Path) -> None:
        super().__init__()
        self._file = classifier

    def setup(self, device: str) -> None:
        self._classifier = torch.load(self._file, map_location=device, weights_only=False).eval()

    def decode_request(self, request: dict[str, Any]) -> torch.Tensor:
        image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        return self._classifier(batch).softmax(dim=1)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        confidence, index = output.max(dim=0)
        return {"class_index": int(index), "confidence": float(confidence)}


class ScorerApi(Base64Api):
    def __init__(self, model_uri: str) -> None:
        super().__init__()
        self._model_uri = model_uri

    def setup(self, device: str) -> None:
        self._scorer = load_scorer(self._model_uri)

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        return self._scorer.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, batch: np.ndarray) -> list[dict[str, Any]]:
        return self._scorer.answers(self._scorer.score(batch), top_k=3)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


@click.command()
@click.option("--classifier", type=click.Path(path_type=Path))
@click.option("--model-uri")
@click.option("--port", type=int, required=True)
def main(classifier: Path | None, model_uri: str | None, port: int) -> None:
    if classifier is not None:
        api: Base64Api = TorchApi(classifier)
    elif model_uri is not None:
        api = ScorerApi(model_uri)
    else:
        raise click.UsageError("give --classifier or --model-uri")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(
        host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning"
    )


if __name__ == "__main__":
    main()

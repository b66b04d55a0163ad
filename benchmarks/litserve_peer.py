"""The peer of the service: the network behind LitServe, as its documentation shows a model in batches.

`python -m benchmarks.litserve_peer --model FILE --port PORT`; FILE is a module that `torch.save` wrote.
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


class Classify(litserve.LitAPI):
    def __init__(self, model: Path) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.005)
        self._file = model

    def setup(self, device: str) -> None:
        self._model = torch.load(self._file, map_location=device, weights_only=False).eval()

    def decode_request(self, request: dict[str, Any]) -> torch.Tensor:
        picture = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        return self._model(batch).softmax(dim=1)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        confidence, index = output.max(dim=0)
        return {"class_index": int(index), "confidence": float(confidence)}


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True)
@click.option("--port", type=int, required=True)
def main(model: Path, port: int) -> None:
    server = litserve.LitServer(Classify(model), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning"
    )


if __name__ == "__main__":
    main()

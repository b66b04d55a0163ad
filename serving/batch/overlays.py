"""Write a picture for each classified image that shows which parts speak for its answer."""

import io
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_mlflow.errors import UsageError
from cifar_mlflow.evaluation.overlay import draw_overlay
from cifar_mlflow.files import atomic_write, write_errors
from cifar_mlflow.scorer.predictor import Scorer
from serving.batch.sorting import numbered, valid_name

SHOWN_SIDE = 256  # pixels; a smaller image is enlarged by a whole factor


class Overlays:
    """Writes `<directory>/<file name>.png`: the network's input with the map of its answer over it.

    Thread-safe. Nothing is overwritten: if the name is taken by another picture, the new one gets a number.

    Raises:
        UsageError: the model gives no maps.
    """

    def __init__(self, directory: Path, scorer: Scorer) -> None:
        if not scorer.engine.explains:
            raise UsageError(
                "--explain: this model cannot explain its answers: an earlier release registered it, or its "
                "architecture allows no exact map. Register its run again, or choose another --model-uri"
            )
        self._directory = directory
        self._naming = threading.Lock()
        self._stride: int = scorer.card["class_map"]["stride"]

    def write(self, path: str, pixels: np.ndarray, class_map: np.ndarray) -> None:
        """Write the picture of one image.

        Args:
            path: of the image, for the name.
            pixels: uint8 (S, S, 3).
            class_map: float32 (h, w).

        Raises:
            CifarError: it cannot be written.
        """
        content = _png(draw_overlay(pixels, class_map, self._stride))
        stem = valid_name(path.replace("\\", "/").rpartition("/")[2])
        with self._naming:
            for name in numbered(stem, ".png"):
                target = self._directory / name
                with write_errors(target):
                    if target.is_file() and target.read_bytes() == content:
                        return
                    if target.exists():
                        continue
                with atomic_write(target) as beside:
                    beside.write_bytes(content)
                return


def _png(pixels: np.ndarray) -> bytes:
    factor = max(1, SHOWN_SIDE // len(pixels))
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1)).save(file, "png", compress_level=1)
    return file.getvalue()

"""Classify images with the model of a scorer folder."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from .engine import Engine
from .preprocess import decode_image

CARD_FILE = "scorer.json"
MODEL_FILE = "model.onnx"
FORMAT = 1


class Scores(NamedTuple):
    """The network's scores of N images.

    Attributes:
        probabilities: float32 (N, classes), rows that sum to 1.
        ood: float32 (N,), energy plus feature distance: the higher, the less the image is like the training
            images. Models of earlier releases have only the energy.
        uncertain: bool (N,), whether the confidence is below its threshold or `ood` above its own.
        class_maps: float32 (N, h, w), what each part of an image adds to the logit of its likeliest class: a
            map sums to this logit. (N, 0, 0) if the caller did not ask for an explanation.
    """

    probabilities: np.ndarray
    ood: np.ndarray
    uncertain: np.ndarray
    class_maps: np.ndarray


class Scorer:
    """Classify images with the model of a scorer folder. Thread-safe.

    Attributes:
        card: the content of `scorer.json`.
        classes: names, in the order of the network's outputs.
        image_size: side of the network's input in pixels.
        engine: runs the network.
    """

    def __init__(
        self, folder: Path, card: dict[str, Any], threads: int | None = None, share: int = 1
    ) -> None:
        self.card = card
        self.classes: list[str] = card["classes"]
        self.image_size: int = card["image_size"]
        self.engine = Engine(folder / MODEL_FILE, threads, share)

    @classmethod
    def load(cls, folder: Path, threads: int | None = None, share: int = 1) -> Self:
        """Load a folder after checking that its files are those that its card describes.

        Args:
            folder: contains `model.onnx` and `scorer.json`.
            threads, share: see `Engine`.

        Raises:
            ValueError: a file is missing, changed or unknown, or the folder has another format.
        """
        if not (folder / CARD_FILE).is_file():
            raise ValueError(f"{folder} is not a scorer folder: it has no {CARD_FILE}")
        card = json.loads((folder / CARD_FILE).read_bytes())
        if card.get("format") != FORMAT:
            raise ValueError(
                f"{folder / CARD_FILE} has format {card.get('format')}; this code reads {FORMAT}"
            )
        _verify(folder, card["files"])
        return cls(folder, card, threads, share)

    def decode(self, data: bytes) -> np.ndarray:
        """Decode the bytes of an image file to uint8 (S, S, 3) RGB.

        Raises:
            BadImage: the bytes are not an image that can be classified.
        """
        return decode_image(data, self.image_size, self.card["fit"])

    def score(self, images: np.ndarray, explain: bool = False) -> Scores:
        """Score images, uint8 (N, S, S, 3); concurrent calls share batches.

        Raises:
            ValueError: `explain` is true for a network without maps.
        """
        return self.scores(self.engine.run(images, explain))

    def scores(self, outputs: np.ndarray) -> Scores:
        """Convert what the engine returns, float32 (N, columns), to scores."""
        temperature, classes, columns = self.card["temperature"], self.engine.classes, self.engine.columns
        logits, distance = outputs[:, :classes] / temperature, outputs[:, classes:columns]
        highest = np.maximum.reduce(logits, axis=1, keepdims=True)
        exponentials = np.exp(logits - highest)
        total = np.add.reduce(exponentials, axis=1, keepdims=True)
        ood = -temperature * (highest + np.log(total))[:, 0] + np.add.reduce(distance, axis=1)
        low_confidence = 1 / total[:, 0] < self.card["uncertain"]["confidence_below"]
        uncertain = low_confidence | (ood > self.card["ood"]["above"])
        return Scores(exponentials / total, ood, uncertain, _class_maps(outputs[:, columns:], logits))

    def answers(self, scores: Scores, top_k: int) -> list[dict[str, Any]]:
        """Return one JSON-serializable answer per image; `top_k` is 1 to the number of classes."""
        answers = []
        for probabilities, uncertain in zip(
            scores.probabilities.tolist(), scores.uncertain.tolist(), strict=True
        ):
            best = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)[:top_k]
            ranked = [
                {"label": self.classes[index], "confidence": round(probabilities[index], 6)} for index in best
            ]
            answers.append(
                {
                    "label": ranked[0]["label"],
                    "class_index": best[0],
                    "confidence": ranked[0]["confidence"],
                    "top_k": ranked,
                    "uncertain": uncertain,
                }
            )
        return answers

    def close(self) -> None:
        """Close the engine; later calls of `score` raise."""
        self.engine.close()


def _class_maps(flat: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Select the map of each image's likeliest class, (N, h, w), from the flattened maps of all classes."""
    count, classes = logits.shape
    if not flat.shape[1]:
        return np.empty((count, 0, 0), np.float32)
    side = math.isqrt(flat.shape[1] // classes)
    maps = flat.reshape(count, classes, side, side)
    return maps[np.arange(count), logits.argmax(axis=1)]


def _verify(folder: Path, digests: dict[str, str]) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
        CARD_FILE
    }
    if missing := {MODEL_FILE, *digests} - found:
        raise ValueError(f"{folder} lacks {', '.join(sorted(missing))}")
    if unknown := found - digests.keys():
        raise ValueError(f"{folder} has {', '.join(sorted(unknown))}, unknown to its {CARD_FILE}")
    for name, digest in digests.items():
        with (folder / name).open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != digest:
            raise ValueError(f"{folder / name} was changed: its sha256 is {actual}, not {digest}")

"""Models to export: untrained networks that tell images of coloured blocks apart, and such images."""

import numpy as np
import torch

from cifar_mlflow.data import Split
from cifar_mlflow.export.format import ModelToExport
from cifar_mlflow.export.images import EvalSet
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.verb_config import ExportConfig, ServedPrecision

CLASSES = ("cat", "Hund", "größerer Vogel", "鳥")
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def block_images(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Return uint8 (count, size, size, 3): 4 x 4 coloured blocks, which an untrained network tells apart."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return blocks.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def untrained(name: str, size: int = 32) -> tuple[ImageClassifier, ModelCard]:
    """Return a network with running statistics and a head that spreads its answers over the classes."""
    width = 0.25 if name in ("cnn", "fast") else 1.0
    card = ModelCard(
        model=name,
        classes=CLASSES,
        image_size=size,
        mean=MEAN,
        std=STD,
        width=width,
        temperature=0.37,
        run_id="f" * 32,
        metrics={"test/accuracy": 0.8125},
    )
    torch.manual_seed(0)
    network = build_network(name, len(CLASSES), width=width)
    classifier = ImageClassifier(network, MEAN, STD)
    pixels = torch.from_numpy(block_images(64, 0, size)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        for _ in range(20):
            classifier(pixels)
        head = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
        logits = classifier.eval()(pixels)
        head.weight /= logits.std()
        if head.bias is not None:
            head.bias.copy_(head.bias - logits.mean(0) / logits.std())
    return classifier, card


def to_export(
    name: str,
    precision: ServedPrecision = "fp32",
    config: ExportConfig | None = None,
    reference: str = "models:/cifar10/7",
    size: int = 32,
) -> ModelToExport:
    classifier, card = untrained(name, size)
    images = block_images(100, 1, size)
    eval_set = EvalSet("val", Split(images, np.zeros(len(images), np.int64)))
    return ModelToExport(
        classifier, card, reference, block_images(40, 2, size), eval_set, precision,
        config or ExportConfig(license="CC-BY-4.0"),
    )  # fmt: skip

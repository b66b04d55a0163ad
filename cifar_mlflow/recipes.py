"""Training recipes: named sets of settings that work well together.

`cnn`, `resnet`, `vgg` and `fast` are made for the model families of the same name and are chosen by the model
unless `--recipe` says otherwise; `demo` is `fast` for the embedded sample.
"""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "cnn": {"model": "cnn", "epochs": 30, "lr": 0.05, "batch_size": 128, "dropout": 0.1},
    "resnet": {"epochs": 30, "lr": 0.1, "batch_size": 128},
    "vgg": {"epochs": 30, "lr": 0.05, "batch_size": 128, "dropout": 0.2},
    "fast": {
        "model": "fast",
        "epochs": 8,
        "batch_size": 1000,
        "optimizer": "muon",
        "lr": 0.24,
        "aux_lr": 0.05,
        "momentum": 0.6,
        "weight_decay": 2e-6,
        "label_smoothing": 0.2,
        "schedule": "linear",
        "warmup": 0.0,
        "crop_padding": 2,
        "flip": "alternating",
        "tta": "crops",
    },
}
RECIPES["demo"] = RECIPES["fast"] | {"dataset": "sample", "epochs": 12, "batch_size": 250}


def recipe_for_model(model: str) -> str:
    """Name of the recipe made for a model: resnet18 -> resnet."""
    return model.rstrip("0123456789")

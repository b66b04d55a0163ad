"""Image classification on CIFAR-10, tracked with MLflow: data, models, training, evaluation, export.

`cifar_mlflow.train` and `cifar_mlflow.load` are the Python interface; see `cifar_mlflow.api`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_mlflow.api import Classifier, Prediction, load, train

__all__ = ["Classifier", "Prediction", "load", "train"]


def __getattr__(name: str) -> Any:
    # Importing torch and MLflow takes seconds, and not every command needs them.
    if name in __all__:
        return getattr(importlib.import_module("cifar_mlflow.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

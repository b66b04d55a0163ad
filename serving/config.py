"""The settings of registering, promoting and classifying."""

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from cifar_mlflow.config import PlacesConfig, Settings, TrainConfig, setting
from tuning.config import TuneConfig

Precision = Literal["auto", "fp32", "int8"]


class RegistryConfig(Settings):
    """Registry: whose versions are promoted and served."""

    registered_model: str = setting("cifar10", "Name of the registered model.")

    @field_validator("registered_model")
    @classmethod
    def _usable_in_an_address(cls, name: str) -> str:
        if not name.strip() or set(name) & set("/:"):
            raise ValueError("the name of a registered model must not be empty, nor have / or : in it")
        return name


class RegisterConfig(RegistryConfig, PlacesConfig):
    """Registration: the form in which a trained network is served."""

    serve_precision: Precision = setting(
        "auto",
        "Of the served network; auto takes int8 if it loses at most 0.3 points of validation accuracy "
        "and is not slower.",
    )
    target_accuracy: float = setting(
        0.95, "Accuracy on validation of the answers that are not called uncertain.", gt=0, lt=1
    )


class TrainAndRegisterConfig(TrainConfig, RegisterConfig):
    """All settings that `train` and `demo` take."""


class TuneAndPromoteConfig(TuneConfig, RegisterConfig):
    """All settings that `tune` takes."""


class ClassifyConfig(Settings):
    """Classification: files and folders of images through a served model."""

    model_uri: str = setting(
        "models:/cifar10@champion",
        "models:/<name>@<alias>, models:/<name>/<version>, a run id, or a folder with a model.",
    )
    output: Path | None = setting(
        None, "File for the answers: .csv, .jsonl or .parquet. What it holds already is not done again."
    )
    sort_into: Path | None = setting(None, "Folder for copies of the images, in one folder a class.")
    top_k: int = setting(3, "How many of the likeliest classes the file has for each image.", ge=1)

"""The settings of registering, promoting, classifying and monitoring."""

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from cifar_mlflow.config import PlacesConfig, Settings, TrackingConfig, TrainConfig, setting
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


_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class MonitorConfig(TrackingConfig):
    """Monitoring: a report on what was served."""

    request_log: str = setting(
        lambda: os.environ.get("CIFAR_MLFLOW_REQUEST_LOG") or "sqlite:///requests.db",
        "The request log of `serve`. One with a password is better given as $CIFAR_MLFLOW_REQUEST_LOG.",
    )
    since: str = setting(
        "7d", "How far back: 90m, 12h, 7d, 2w; or a date or time such as 2026-11-24 or 2026-11-24T18:00Z."
    )
    model_uri: str | None = setting(
        None, "Compare all pictures with the reference of this model. Default: each with that of its own."
    )

    @field_validator("since")
    @classmethod
    def _understood(cls, since: str) -> str:
        begin_of_window(since, 0)
        return since


def begin_of_window(since: str, now: float) -> float:
    """Unix seconds of what `MonitorConfig.since` says; a time without a zone is this machine's.

    Raises:
        ValueError: it says nothing that is understood.
    """
    if span := re.fullmatch(r"([0-9]{1,6})([mhdw])", since.strip()):
        return now - int(span[1]) * _SECONDS[span[2]]
    try:
        return datetime.fromisoformat(since.strip()).timestamp()
    except ValueError:
        raise ValueError(
            "give a span such as 90m, 12h, 7d or 2w, or a time such as 2026-11-24 or 2026-11-24T18:00Z"
        ) from None

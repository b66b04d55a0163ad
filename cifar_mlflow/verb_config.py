"""The settings of the verbs beside those of a training: time budget, evaluation, export and registration."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from cifar_mlflow.config import (
    DataConfig,
    DatasetName,
    HardwareConfig,
    PlacesConfig,
    SplitName,
    TrackingConfig,
    TrainConfig,
    TtaName,
)
from cifar_mlflow.errors import UsageError
from cifar_mlflow.settings import Settings, setting, validate

Precision = Literal["auto", "fp32", "int8"]
ServedPrecision = Literal["fp32", "int8"]  # of one file
ExportFormatName = Literal[
    "all",
    "onnx",
    "web",
    "savedmodel",
    "keras",
    "h5",
    "litert",
    "executorch",
    "safetensors",
    "pt2",
    "hdf5-weights",
    "hdf5",
]


class EvaluateConfig(DataConfig, HardwareConfig, TrackingConfig):
    """Evaluation: the model and the split."""

    dataset: DatasetName = setting(
        "cifar10",
        "cifar10, sample or folder. Default: the data that the model was trained on, unless --data-dir is "
        "given.",
    )
    model_uri: str = setting(
        ..., "Model: a .safetensors or .h5 file, a run id, runs:/<id>/model, or models:/<name>@<alias>."
    )
    split: SplitName = setting("test", "Split to evaluate on.")
    tta: TtaName = setting("none", "Test-time augmentation: none, mirror images, or mirrored crops.")


class ExportConfig(PlacesConfig, TrackingConfig):
    """Export: formats, precision and place of the files."""

    format: tuple[ExportFormatName, ...] = setting(
        (),
        "Formats, comma-separated, or all; hdf5 is the old name of hdf5-weights. Default: by the suffix of "
        "--output, else hdf5-weights.",
    )
    precision: tuple[ServedPrecision, ...] = setting(
        ("fp32",), "Precisions, comma-separated; each format is written in those that it supports."
    )
    output: Path | None = setting(
        None,
        "Folder to write to. A file name (.h5, .hdf5, .safetensors) writes that one file of weights. "
        "Default for one of these formats: <model>.h5 or <model>.safetensors.",
    )
    with_preprocessing: bool = setting(
        False,
        "Put crop and resize into the file, so that it takes an image of any size (onnx; web always does).",
    )
    runtime: Path | None = setting(
        None, "Folder with the npm package onnxruntime-web, instead of having npm download it (web only)."
    )
    overwrite: bool = setting(False, "Write into a folder that is not empty, and replace files there.")
    license: str = setting("MIT", "License of the model, an SPDX identifier, for the file's metadata.")

    @field_validator("format", "precision", mode="before")
    @classmethod
    def _names_split_at_commas(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class ReviewConfig(Settings):
    """Review: the search for errors in the data, and the decisions on them."""

    folds: int = setting(
        5, "Number of folds; for each, a network trained on the others judges its images.", ge=2, le=50
    )
    trained_model: str | None = setting(
        None,
        "Train nothing: this model judges the images of the data set that it was not trained on, its "
        "validation and test images. A .safetensors or .h5 file, the id of a run, runs:/, models:/ or "
        "pretrained.",
    )
    output: Path | None = setting(
        None,
        "CSV file for the findings (default: review.csv); with --apply, new folder for the cleaned data.",
    )
    overwrite: bool = setting(False, "Replace the CSV file, with the decisions in it.")
    apply: Path | None = setting(
        None,
        "CSV file of a review with your decisions: write the cleaned data set to the folder --output.",
    )

    @model_validator(mode="after")
    def _cleaned_data_have_a_place(self) -> Self:
        if self.apply and not self.output:
            raise ValueError("apply writes the cleaned data set: name a new folder for it with --output")
        return self


# The settings of a training that have an effect on a review by a trained model.
WITH_TRAINED_MODEL = {
    *DataConfig.model_fields,
    *HardwareConfig.model_fields,
    *TrackingConfig.model_fields,
    "precision",
    "tta",
}


class ReviewVerbConfig(ReviewConfig, TrainConfig):
    """All settings of `review`: those of a training apply to each network."""


RunKind = Literal["train", "trial", "search", "evaluate", "register", "review", "export", "monitor"]


class RunsConfig(Settings):
    """List: the runs to show."""

    experiment: str | None = setting(None, "Name of the MLflow experiment. Default: all of them.")
    kind: RunKind = setting("train", "Kind of the runs; the trainings of a search are trials.")
    limit: int = setting(20, "Number of runs, the newest ones.", ge=1, le=1000)


class ModelsConfig(Settings):
    """List: the versions to show."""

    registered_model: str | None = setting(None, "Name of the registered model. Default: all of them.")


class RegistryConfig(Settings):
    """Registry: the registered model."""

    registered_model: str | None = setting(
        None, "Name of the registered model. Default: cifar10; for your own images, the name of their folder."
    )

    @field_validator("registered_model")
    @classmethod
    def _usable_in_an_address(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[\w-][\w. -]{0,99}", name):
            raise ValueError(
                "the name of a registered model has up to 100 letters, digits, spaces and . _ - and does not "
                "begin with a dot or a space"
            )
        return name


class RegisterConfig(RegistryConfig, PlacesConfig):
    """Registration: the form in which the network is served."""

    serve_precision: Precision = setting(
        "auto",
        "Precision of the served network; auto chooses int8 if it loses at most 0.3 points of validation "
        "accuracy and is not slower.",
    )
    target_accuracy: float = setting(
        0.95, "Validation accuracy that the answers not marked uncertain must reach.", gt=0, lt=1
    )


class TrainAndRegisterConfig(TrainConfig, RegisterConfig):
    """All settings of `train` and `demo`."""


class BudgetConfig(Settings):
    """Time: the length of the training in minutes, instead of a number of epochs."""

    minutes: float | None = setting(
        None,
        "Time from the first step to the end of the last epoch. The number of epochs follows from the speed "
        "of the first steps; evaluation and export come afterwards. Without --model and --recipe, the recipe "
        "is fast (demo for the sample).",
        gt=0,
        le=100_000,
    )


class TrainVerbConfig(BudgetConfig, TrainAndRegisterConfig):
    """All settings of `train`."""


def split_minutes(given: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Take `minutes` out of the settings of a training; with it, the default recipe is a quick one.

    Raises:
        UsageError: `minutes` is out of bounds, or `epochs` is given too.
    """
    rest = {name: value for name, value in given.items() if name not in BudgetConfig.model_fields}
    minutes = validate(BudgetConfig, {"minutes": given.get("minutes")}).minutes
    if minutes is None:
        return rest, None
    if "epochs" in rest:
        raise UsageError("--minutes and --epochs both set the length of a training: give only one of them")
    if not {"model", "recipe"} & rest.keys():
        rest["recipe"] = "demo" if rest.get("dataset") == "sample" else "fast"
    return rest, minutes

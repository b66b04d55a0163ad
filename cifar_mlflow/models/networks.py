"""Name -> network. A network takes normalized float images (N, 3, H, W) and returns logits (N,
num_classes)."""

from collections.abc import Callable

from torch import nn

from cifar_mlflow.config import MODELS_WITH_DROPOUT, MODELS_WITH_WIDTH, ModelName
from cifar_mlflow.models.cnn import cnn
from cifar_mlflow.models.fast import fast
from cifar_mlflow.models.resnet import resnet18, resnet34, resnet50
from cifar_mlflow.models.vgg import vgg11, vgg13, vgg16, vgg19

BUILDERS: dict[ModelName, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "fast": fast,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
}


def build_network(name: ModelName, num_classes: int, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """A freshly initialised network; `width` and `dropout` reach only the models that have them."""
    options: dict[str, float] = {}
    if name in MODELS_WITH_WIDTH:
        options["width"] = width
    if name in MODELS_WITH_DROPOUT:
        options["dropout"] = dropout
    return BUILDERS[name](num_classes, **options)

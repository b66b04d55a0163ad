"""The networks by name. Each takes normalized float images (N, 3, H, W) and returns logits (N, classes)."""

import importlib
from itertools import pairwise
from typing import cast

from torch import nn

from cifar_mlflow.config import MODELS_WITH_DROPOUT, MODELS_WITH_WIDTH, ModelName, is_backbone
from cifar_mlflow.models import backbones

# Module of each builder of our own networks.
BUILDERS: dict[ModelName, str] = {
    "cnn": "cnn",
    "fast": "fast",
    "resnet18": "resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "vgg11": "vgg",
    "vgg13": "vgg",
    "vgg16": "vgg",
    "vgg19": "vgg",
}


def build_network(name: str, num_classes: int, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Return a newly initialized network; `width` and `dropout` are ignored by models without them.

    Raises:
        UsageError: the network is one of timm, which is not installed or does not have it.
    """
    if is_backbone(name):
        return backbones.build_backbone(name, num_classes)
    options: dict[str, float] = {}
    if name in MODELS_WITH_WIDTH:
        options["width"] = width
    if name in MODELS_WITH_DROPOUT:
        options["dropout"] = dropout
    module = importlib.import_module(f"cifar_mlflow.models.{BUILDERS[cast(ModelName, name)]}")
    network: nn.Module = getattr(module, name)(num_classes, **options)
    return network


def stages(network: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs are the features of a network by falling resolution.

    The outputs are (N, C, H, W); those of transformers are (N, tokens, C).
    """
    children = dict(network.named_children())
    if "layer1" in children:  # torchvision's ResNet
        return [children[f"layer{number}"] for number in range(1, 5)]
    if "groups" in children:  # `fast`
        return [*children["groups"].children()]
    layers = pairwise(children.get("features", nn.Sequential()).children())
    pooled = [module for module, following in layers if isinstance(following, nn.MaxPool2d)]
    return pooled or backbones.stages(network)

"""Explain an answer: what each part of an image adds to the logit of a class.

In a network that ends in average pooling and a linear layer, the logit is a sum over the positions of the
last features: the class activation map (Zhou et al. 2016, arXiv 1512.04150). A max-pooling before the linear
layer keeps one position of each channel, and only these decisive positions count. Both maps are exact: they
sum to the logit.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_mlflow.evaluation.predict import eval_mode
from cifar_mlflow.models.card import ClassMapInfo
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.fast import HEAD_SCALE, Fast
from cifar_mlflow.models.vgg import Vgg

EFFICIENTNET_STRIDE = 32  # all of them halve the image five times


class Ending(NamedTuple):
    """The last layers of a network.

    Attributes:
        features: the module with the output that is pooled, (N, C, h, w).
        window: side of the windows of a max-pooling; 0 stands for one window of all positions, 1 for no
            max-pooling. An average follows.
        stride: pixels of the image from one position to the next.
        weight: of the linear layer, (classes, C).
        bias: (classes,), or None.
    """

    features: nn.Module
    window: int
    stride: int
    weight: Tensor
    bias: Tensor | None


def ending(network: nn.Module) -> Ending | None:
    """Return the last layers of a network; None if they allow no exact map."""
    children = dict(network.named_children())
    if isinstance(network, Fast):
        # Detached: not a parameter of the network, so the exporter has to make a constant of it.
        weight = network.head.weight.detach() * HEAD_SCALE
        return Ending(network.groups, 0, 2 ** len(network.groups), weight, None)
    if isinstance(network, Vgg):
        # Its last pooling leaves a single position of an image of 32 pixels.
        stages = sum(isinstance(layer, nn.MaxPool2d) for layer in network.features)
        return Ending(network.features[-2], 2, 2 ** (stages - 1), network.head.weight, network.head.bias)
    if [*children] == ["features", "pool", "flatten", "dropout", "head"]:  # `cnn`
        features, head = children["features"], children["head"]
        assert isinstance(head, nn.Linear)
        stages = sum(isinstance(layer, nn.MaxPool2d) for layer in features.children())
        return Ending(features, 1, 2**stages, head.weight, head.bias)
    if [*children][-3:] == ["layer4", "avgpool", "fc"]:  # ResNet, also torchvision's
        first, head = children["conv1"], children["fc"]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(head, nn.Linear)
        stride = 8 * first.stride[0] * (2 if "maxpool" in children else 1)
        return Ending(children["layer4"], 1, stride, head.weight, head.bias)
    return _ending_of_efficientnet(children)


def _ending_of_efficientnet(children: dict[str, nn.Module]) -> Ending | None:
    """Return the last layers of an EfficientNet of torchvision or timm, or of a network of the same form."""
    if [*children][-2:] not in (["avgpool", "classifier"], ["global_pool", "classifier"]):
        return None
    *_, features, pool, classifier = children.values()
    *dropouts, head = classifier if isinstance(classifier, nn.Sequential) else [classifier]
    if not isinstance(head, nn.Linear) or not all(isinstance(layer, nn.Dropout) for layer in dropouts):
        return None  # torchvision's MobileNetV3 and ConvNeXt have further layers after the pooling
    if getattr(pool, "pool_type", "avg") != "avg":  # timm
        return None
    return Ending(features, 1, EFFICIENTNET_STRIDE, head.weight, head.bias)


class WithClassMap(nn.Module):
    """Return the outputs of a network, followed by the maps, float32 (N, classes, h, w)."""

    def __init__(self, network: nn.Module, last: Ending) -> None:
        super().__init__()
        self.network = network
        self._last = last

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features: list[Tensor] = []
        hook = self._last.features.register_forward_hook(lambda module, args, output: features.append(output))
        try:
            outputs = self.network(images)
        finally:
            hook.remove()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return *outputs, _class_maps(features[0], self._last)


def class_map_info(classifier: ImageClassifier, image_size: int) -> ClassMapInfo | None:
    """Return the size of the maps; None if the network allows none.

    Args:
        classifier: on the CPU.
    """
    last = ending(classifier.network)
    if last is None:
        return None
    with torch.inference_mode(), eval_mode(classifier):
        maps = WithClassMap(classifier.network, last)(torch.zeros(1, 3, image_size, image_size))[-1]
    return ClassMapInfo(side=maps.shape[-1], stride=last.stride)


def class_maps_of(
    classifier: ImageClassifier, images: NDArray[np.uint8], classes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the map of one class of each image, float32 (N, h, w).

    Args:
        classifier: its network has an `ending`.
        images: uint8 (N, S, S, 3).
        classes: index of the class to explain, (N,).
    """
    last = ending(classifier.network)
    assert last is not None
    pixels = torch.from_numpy(images).to(classifier.mean.device).permute(0, 3, 1, 2) / 255
    with torch.inference_mode(), eval_mode(classifier):
        maps = WithClassMap(classifier.network, last)((pixels - classifier.mean) / classifier.std)[-1]
    return maps.float().cpu().numpy()[np.arange(len(images)), classes]


def _class_maps(features: Tensor, last: Ending) -> Tensor:
    n, channels, height, width = features.shape
    high, wide = (last.window, last.window) if last.window else (height, width)
    rows, columns = -(-height // high), -(-width // wide)
    padding = (0, columns * wide - width, 0, rows * high - height)
    if any(padding):
        # VGG's pooling has smaller windows at the border. Zeros change nothing: its features follow a ReLU.
        features = nn.functional.pad(features, padding)
    if last.window != 1:
        windows = features.reshape(n, channels, rows, high, columns, wide)
        decisive = (windows == windows.amax((3, 5), keepdim=True)).float()
        features = windows * decisive / decisive.sum((3, 5), keepdim=True)
    # Both divisions are constants of the exported graph.
    maps = (last.weight / (rows * columns)) @ features.reshape(n, channels, rows * high * columns * wide)
    if last.bias is not None:
        # No plus sign: int8 would quantize the addition.
        maps = maps - (-last.bias / (height * width))[:, None]
    maps = maps.reshape(n, len(last.weight), rows * high, columns * wide)
    return maps[:, :, :height, :width] if any(padding) else maps

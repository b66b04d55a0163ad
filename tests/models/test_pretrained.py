"""Start training from the weights of another run."""

import pytest
import torch

from cifar_mlflow.config import ModelName
from cifar_mlflow.errors import UsageError
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.models.pretrained import load_weights


def classifier(name: ModelName = "cnn", num_classes: int = 10, width: float = 1.0) -> ImageClassifier:
    return ImageClassifier(build_network(name, num_classes, width), (0.5,) * 3, (0.25,) * 3)


def test_weights_of_the_same_model_are_copied_completely() -> None:
    source, target = classifier(), classifier()
    assert load_weights(target, source.state_dict()) == []
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(source.eval()(images), target.eval()(images))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("cnn", ["network.head.weight", "network.head.bias"]),
        ("fast", ["network.head.weight"]),
        ("resnet18", ["network.fc.weight", "network.fc.bias"]),
        ("vgg11", ["network.head.weight", "network.head.bias"]),
    ],
)
def test_a_head_for_other_classes_keeps_its_initial_values(name: ModelName, head: list[str]) -> None:
    source, target = classifier(name), classifier(name, num_classes=3)
    fresh = {key: target.state_dict()[key].clone() for key in head}
    assert load_weights(target, source.state_dict()) == head
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, fresh[key] if key in head else source.state_dict()[key]), key


def test_another_width_is_refused_and_nothing_is_copied() -> None:
    target = classifier(width=1.0)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(UsageError, match=r"network\.features\.0\.weight.* and \d+ more do not match"):
        load_weights(target, classifier(width=0.5).state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match="another model"):
        load_weights(classifier("cnn"), classifier("vgg11").state_dict())

"""Every network: shapes, stems, gradients and export."""

from typing import get_args

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from cifar_mlflow.config import ModelName
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import BUILDERS, build_network

NAMES: tuple[ModelName, ...] = get_args(ModelName)


def test_every_model_of_the_settings_can_be_built() -> None:
    assert tuple(BUILDERS) == NAMES


FAMILIES: tuple[ModelName, ...] = ("cnn", "fast", "resnet18", "vgg11")
each_network = pytest.mark.parametrize(
    "name", [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.thorough) for name in NAMES]
)


@each_network
def test_logits_have_one_row_per_image_and_one_column_per_class(name: ModelName) -> None:
    network = build_network(name, 3).eval()
    for side in (32, 64):
        with torch.inference_mode():
            logits = network(torch.rand(2, 3, side, side))
        assert logits.shape == (2, 3)
        assert logits.isfinite().all()


@pytest.mark.parametrize("side", [24, 28, 32])
def test_the_last_stage_of_vgg_has_four_positions_for_smaller_images_too(side: int) -> None:
    network = build_network("vgg11", 3).eval()
    seen: list[torch.Size] = []
    features = network.get_submodule("features")
    last = [module for module in features.modules() if isinstance(module, nn.Conv2d)][-1]
    last.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    with torch.inference_mode():
        assert network(torch.rand(2, 3, side, side)).shape == (2, 3)
    assert seen == [(2, 512, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast", "vgg16", "resnet18"])
def test_large_images_are_accepted(name: ModelName) -> None:
    with torch.inference_mode():
        assert build_network(name, 4).eval()(torch.rand(1, 3, 256, 256)).shape == (1, 4)


@each_network
def test_each_trainable_parameter_gets_a_gradient(name: ModelName) -> None:
    network = build_network(name, 10)
    network(torch.rand(4, 3, 32, 32)).square().sum().backward()
    without = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34", "resnet50"))]
)
def test_the_stem_of_resnet_keeps_small_images_at_full_size(name: ModelName) -> None:
    network = build_network(name, 10).eval()
    sides: dict[str, int] = {}

    def remember(stage: str) -> object:
        return lambda _module, _inputs, output: sides.update({stage: output.shape[-1]})

    for stage in ("conv1", "layer1", "layer4"):
        getattr(network, stage).register_forward_hook(remember(stage))
    with torch.inference_mode():
        network(torch.rand(1, 3, 32, 32))
    assert sides == {"conv1": 32, "layer1": 32, "layer4": 4}


def test_parameter_counts_are_those_of_the_published_networks() -> None:
    def millions(name: ModelName) -> float:
        return round(sum(p.numel() for p in build_network(name, 10).parameters()) / 1e6, 1)

    assert millions("resnet18") == 11.2
    assert millions("resnet50") == 23.5
    assert millions("vgg16") == 14.7
    assert millions("fast") == 2.0


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_resnet_is_torchvisions_with_another_stem(name: ModelName) -> None:
    """Same weights from the same seed, same names in the same order, same logits: all bit for bit."""
    torch.manual_seed(0)
    ours = build_network(name, 10)
    torch.manual_seed(0)
    peer = getattr(torchvision.models, name)(num_classes=10)
    peer.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(peer.conv1.weight, mode="fan_out", nonlinearity="relu")
    peer.maxpool = nn.Identity()
    _check_twins(ours, peer)


@pytest.mark.parametrize(
    "name", ["vgg11", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg13", "vgg16", "vgg19"))]
)
def test_vgg_has_the_convolutions_of_torchvision(name: ModelName) -> None:
    torch.manual_seed(0)
    ours = build_network(name, 10)
    torch.manual_seed(0)
    peer = make_layers(cfgs[{"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[name]], batch_norm=True)
    nn.Linear(512, 10)
    for module in peer:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _check_twins(ours.get_submodule("features"), peer)


def _check_twins(ours: nn.Module, peer: nn.Module) -> None:
    own, other = ours.state_dict(), peer.state_dict()
    assert list(own) == list(other)
    assert all(torch.equal(own[key], other[key]) for key in own)
    images = torch.rand(2, 3, 32, 32)
    for _ in range(2):  # in training mode, the batch norms move
        assert torch.equal(ours(images), peer(images))
    with torch.inference_mode():
        assert torch.equal(ours.eval()(images), peer.eval()(images))


@pytest.mark.parametrize("name", ["cnn", "fast"])
def test_width_scales_the_network(name: ModelName) -> None:
    def filters(width: float) -> int:
        return sum(p.numel() for p in build_network(name, 10, width).parameters())

    assert filters(0.5) < filters(1) / 3
    assert build_network(name, 10, 0.25).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", ["cnn", "vgg11"])
def test_dropout_is_active_only_in_training(name: ModelName) -> None:
    network = build_network(name, 10, dropout=0.5)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5]
    images = torch.rand(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network(images), network(images))
    next(m for m in network.modules() if isinstance(m, nn.Dropout)).train()
    assert not torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    "name",
    [
        "cnn",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fast", "resnet18", "vgg11")),
        *(pytest.param(name, marks=pytest.mark.thorough) for name in NAMES if name not in FAMILIES),
    ],
)
def test_exported_program_agrees_at_any_batch_size(name: ModelName) -> None:
    classifier = ImageClassifier(build_network(name, 10), (0.5,) * 3, (0.25,) * 3).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(
        classifier, (torch.rand(2, 3, 32, 32),), dynamic_shapes={"images": {0: batch}}
    )
    images = torch.rand(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), classifier(images), rtol=1e-4, atol=1e-4)

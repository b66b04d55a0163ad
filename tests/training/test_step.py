"""Steps that save memory or time: parts of a batch, activation checkpointing, fp16, torch.compile."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from cifar_mlflow.config import ModelName, TrainConfig
from cifar_mlflow.errors import UsageError
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.settings import validate
from cifar_mlflow.training.layers import checkpoint_activations
from tests.training.test_loop import Recorded, assert_equal, make_training, weights


def test_the_parts_of_a_batch_give_the_step_of_the_whole_batch() -> None:
    """With batch norm in eval mode, since in training it sees one part at a time."""
    gradients = []
    for parts in (1, 4):
        training = make_training(precision="fp32", batch_size=18, accumulate=parts)
        training.classifier.eval()
        training.take_step(next(training.loader.epoch(0)), 1.0)
        gradients.append([weight.grad for weight in training.classifier.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"mixup": 0.5}])
def test_class_weights_change_the_loss_and_not_the_sum_over_the_parts(settings: dict[str, Any]) -> None:
    gradients = {}
    for kind, parts in (("none", 1), ("balanced", 1), ("balanced", 4)):
        training = make_training(
            rare=8, precision="fp32", batch_size=18, accumulate=parts, class_weights=kind, **settings
        )
        training.classifier.eval()
        training.take_step(next(training.loader.epoch(0)), 1.0)
        gradients[kind, parts] = [weight.grad for weight in training.classifier.parameters()]
    torch.testing.assert_close(gradients["balanced", 1], gradients["balanced", 4], rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gradients["none", 1], gradients["balanced", 1], rtol=1e-2, atol=1e-6)


def test_two_ways_to_balance_the_classes_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="class_weights and sampling both balance"):
        validate(TrainConfig, {"class_weights": "balanced", "sampling": "balanced"})


def test_more_parts_than_the_smallest_batch_has_images_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        UsageError, match=r"^1 process and accumulate=17 need at least 17 images .* smallest batch has 16$"
    ):
        make_training(batch_size=17, accumulate=17)
    with pytest.raises(UsageError, match="accumulate=17 divides a batch into more parts"):
        validate(TrainConfig, {"batch_size": 16, "accumulate": 17})


@pytest.mark.parametrize("model", ["cnn", "fast"])
def test_activation_checkpointing_changes_no_result(model: str) -> None:
    """It computes twice, but batch norm counts each batch once."""
    settings: dict[str, Any] = {"model": model, "epochs": 1, "ema": 0.9}
    plain, frugal = (make_training(**settings, activation_checkpointing=on) for on in (False, True))
    assert_equal(weights(plain.fit(Recorded())), weights(frugal.fit(Recorded())))


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Count the memory that the forward pass keeps for the backward pass, with the inputs of segments."""
    storages: dict[int, torch.UntypedStorage] = {}
    total: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # tensors may share one
        storages[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total
    total.append(sum(storage.nbytes() for storage in storages.values()))


@pytest.mark.parametrize("model", ["resnet50", "vgg19"])
def test_activation_checkpointing_saves_memory_for_large_images(model: ModelName) -> None:
    """Tensors on the meta device have sizes, but no values."""
    sizes = []
    for on in (False, True):
        with torch.device("meta"):
            network: nn.Module = build_network(model, 10)
            images = torch.empty(8, 3, 224, 224)
        if on:
            checkpoint_activations(network)
        with kept_bytes() as total:
            network(images)
        sizes.append(total[0])
    assert sizes[1] < 0.35 * sizes[0]


def test_a_network_without_a_sequence_of_convolutions_is_refused() -> None:
    with pytest.raises(UsageError, match="no sequence of convolutions"):
        checkpoint_activations(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_fp16_trains_and_a_step_with_infinite_gradients_is_skipped() -> None:
    training = make_training(precision="fp16", epochs=3)
    start = weights(training.classifier)
    scale = training.take_step.scaler.get_scale()
    training.take_step.scaler.load_state_dict({**training.take_step.scaler.state_dict(), "scale": 2.0**100})
    training.take_step(next(training.loader.epoch(0)), 1.0)
    head = "network.head.weight"
    assert torch.equal(weights(training.classifier)[head], start[head])
    assert training.take_step.scaler.get_scale() == 2.0**99

    training.take_step.scaler.load_state_dict({**training.take_step.scaler.state_dict(), "scale": scale})
    training.fit(Recorded())
    assert training.history[-1]["train/loss"] < 0.9 * training.history[0]["train/loss"]


@pytest.mark.slow
@pytest.mark.thorough
def test_a_compiled_network_trains_the_same_weights() -> None:
    plain, compiled = (make_training(precision="fp32", epochs=1, compile=on) for on in (False, True))
    expected = weights(plain.fit(Recorded()))
    torch.testing.assert_close(weights(compiled.fit(Recorded())), expected, rtol=0, atol=1e-4)


def test_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="needs the C\\+\\+ compiler no-such-compiler"):
        make_training(compile=True)

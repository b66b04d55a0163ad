"""Start training from the weights of another network."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_mlflow.errors import UsageError
from cifar_mlflow.names import listed

# Trained on CIFAR-10 by the recipe `fast`; the card beside the file says how. Written by
# `python -m benchmarks release`.
RELEASED_WEIGHTS = Path(__file__).parents[1] / "pretrained" / "fast.safetensors"


@torch.no_grad()
def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Copy `state_dict` into `model`, except for a head with another number of classes.

    Returns:
        Names of the head's tensors that keep their initial values; empty if everything was copied.

    Raises:
        UsageError: other tensors are missing, unknown or of another shape; then nothing is copied.
    """
    own = model.state_dict()
    common = own.keys() & state_dict.keys()
    different = [
        name
        for name in {**own, **state_dict}
        if name not in common or own[name].shape != state_dict[name].shape
    ]
    # With another number of classes, a head differs only in its first dimension; with another width, in more.
    replaced = [
        name
        for name in different
        if name in _head_tensors(model)
        and name in common
        and own[name].shape[1:] == state_dict[name].shape[1:]
    ]
    wrong = [name for name in different if name not in replaced]
    if wrong:
        raise UsageError(
            f"the weights are of another model: {listed(wrong, 3)} do not match; "
            "choose the model and width they were trained with"
        )
    for name, tensor in own.items():
        if name not in replaced:
            tensor.copy_(state_dict[name])
    return replaced


def head_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return name and module of the last linear layer, which makes the logits."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]


def _head_tensors(model: nn.Module) -> list[str]:
    """Return the names of the last linear layer's weight and bias."""
    name, linear = head_of(model)
    return [f"{name}.{key}" for key in linear.state_dict()]


def with_names_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of another program's file by the names that `model` has for them.

    If a file has none of the names but the same number of tensors, they are taken in order: ports of a
    network often differ from the original only in names. `load_weights` compares the shapes.
    """
    own = model.state_dict()
    if len(own) == len(tensors) and not own.keys() & tensors.keys():
        return dict(zip(own, tensors.values(), strict=True))
    # Old files do not have these counters, which only a batch norm without momentum needs.
    counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    return {**counters, **tensors}

"""Start training from the weights of another run, or from the released ones."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_mlflow.errors import UsageError

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
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(
            f"the weights are of another model: {', '.join(wrong[:3])}{more} do not match; "
            "choose the model and width they were trained with"
        )
    for name, tensor in own.items():
        if name not in replaced:
            tensor.copy_(state_dict[name])
    return replaced


def _head_tensors(model: nn.Module) -> list[str]:
    """Return the names of the last linear layer's weight and bias."""
    name, linear = [item for item in model.named_modules() if isinstance(item[1], nn.Linear)][-1]
    return [f"{name}.{key}" for key in linear.state_dict()]

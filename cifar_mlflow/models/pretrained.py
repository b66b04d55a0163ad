"""Start a training from weights of another one."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cifar_mlflow.errors import UsageError


@torch.no_grad()
def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Copy `state_dict` into `model`, except a head made for another number of classes.

    Returns:
        Names of the head's tensors that were left freshly initialised; empty if everything was copied.

    Raises:
        UsageError: other tensors are missing, unknown or of another shape; nothing was copied then.
    """
    own = model.state_dict()
    head = _head_tensors(model)
    replaced = [
        name
        for name in head
        if name in state_dict and state_dict[name].shape[0] != own[name].shape[0]
        and state_dict[name].shape[1:] == own[name].shape[1:]
    ]  # fmt: skip
    wrong = [name for name in own if name not in state_dict]
    wrong += [name for name in state_dict if name not in own]
    wrong += [
        name
        for name in own
        if name in state_dict and name not in replaced and state_dict[name].shape != own[name].shape
    ]
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
    """Names of the weight and bias of the last linear layer."""
    name, linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    return [f"{name}.{key}" for key in linear.state_dict()]

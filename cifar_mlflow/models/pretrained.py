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
    common = own.keys() & state_dict.keys()
    different = [
        name
        for name in {**own, **state_dict}
        if name not in common or own[name].shape != state_dict[name].shape
    ]
    # A head of another number of classes differs in its first dimension only; in more it is of another width.
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
    """Names of the weight and bias of the last linear layer."""
    name, linear = [item for item in model.named_modules() if isinstance(item[1], nn.Linear)][-1]
    return [f"{name}.{key}" for key in linear.state_dict()]

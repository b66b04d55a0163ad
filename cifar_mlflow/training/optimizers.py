"""Which optimizer updates which parameter. Each group keeps its peak rate as `initial_lr`."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.training.device import bf16_is_fast

# Of the SGD beside Muon; the record's.
AUX_MOMENTUM = 0.85


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Optimizers over all trainable parameters of `model`, each parameter in exactly one group.

    sgd and adamw are one optimizer with two groups (with and without weight decay). muon is Muon for the
    filters of convolutions, and SGD at `aux_lr` for the rest.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizers: list[torch.optim.Optimizer]
    if config.optimizer == "sgd":
        groups = _decay_groups(trainable, config.weight_decay)
        optimizers = [
            torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
        ]
    elif config.optimizer == "adamw":
        groups = _decay_groups(trainable, config.weight_decay)
        optimizers = [torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))]
    else:
        filters = [p for p in trainable if p.ndim == 4]
        rest = _decay_groups([p for p in trainable if p.ndim != 4], config.weight_decay)
        optimizers = [
            Muon(filters, lr=config.lr, momentum=config.momentum),
            torch.optim.SGD(rest, lr=config.aux_lr, momentum=AUX_MOMENTUM, nesterov=True),
        ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Norms and biases, the vectors, are not decayed: their size is not what overfits."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: all directions of a filter bank move at the same speed.

    After K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). A bank of
    filters (out, in, k, k) counts as the matrix (out, in*k*k). Each bank is kept at the norm sqrt(out): the
    batch norm that follows makes its scale meaningless, and a fixed scale gives `lr` the same meaning
    throughout the training.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon takes one gradient a step"
        for group in self.param_groups:
            # One product for all banks of a shape: the matrices are small, and each call has its price.
            by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[(len(parameter), parameter[0].numel())].append(parameter)
            for parameters in by_shape.values():
                directions = [self._direction(p, group["momentum"]).flatten(1) for p in parameters]
                steps = orthogonalize(torch.stack(directions))
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                    parameter.add_(step.view_as(parameter), alpha=-group["lr"])

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov's look-ahead along the running sum of gradients."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].mul_(momentum).add_(parameter.grad)
        return parameter.grad.add(state["momentum_buffer"], alpha=momentum)


def orthogonalize(matrices: Tensor, iterations: int = 3) -> Tensor:
    """Nearly the nearest orthogonal matrices: singular values moved towards 1 by a Newton-Schulz iteration.

    Args:
        matrices: float (B, rows, columns).
        iterations: of the quintic polynomial of Muon's authors, whose steep start matters more than its
            precision: a direction is as good with singular values from 0.7 to 1.2 as with exact ones.

    Returns:
        Same shape and type.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.to(torch.bfloat16 if bf16_is_fast(x.device) else torch.float32)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    # Each iteration multiplies x by a polynomial of its Gram matrix. All of these commute, so the iterations
    # can be carried out on the small Gram matrix alone, and x, often nine times as wide, is used only twice.
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device).expand_as(gram)
    product = identity
    for _ in range(iterations):
        factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) + 3.4445 * identity
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return (x.mT if tall else x).to(matrices.dtype)

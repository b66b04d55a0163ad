"""Build the optimizers of a training. Each parameter group keeps its peak learning rate as `initial_lr`."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.training.device import bf16_is_fast
from cifar_mlflow.training.distributed import World

AUX_MOMENTUM = 0.85  # of the SGD beside Muon, as in Muon's CIFAR-10 record


class _WithoutCompiler(torch.optim.Optimizer):
    """An optimizer that does not import torch's compiler.

    torch decorates these methods for use in compiled code, and the decorators import torch._dynamo at the
    first call: two seconds before the first step. Nothing here is compiled, so the plain functions suffice.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(_WithoutCompiler, torch.optim.SGD):
    """torch.optim.SGD."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class AdamW(_WithoutCompiler, torch.optim.AdamW):
    """torch.optim.AdamW."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def build_optimizers(
    model: nn.Module, config: TrainConfig, world: World | None = None
) -> list[torch.optim.Optimizer]:
    """Return optimizers for all trainable parameters of `model`; each parameter is in exactly one group.

    For sgd and adamw: one optimizer with groups by learning rate, the highest first, with and without weight
    decay. For muon: Muon for the filters of convolutions, and SGD for the rest: the last layer at `aux_lr`,
    norms and biases at `bias_lr` times the batch size.

    Args:
        world: processes with the same gradients, among which Muon divides its work.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    shares = layer_shares(model, config.layer_decay)
    optimizers: list[torch.optim.Optimizer]
    if config.optimizer == "sgd":
        groups = _groups(trainable, config.lr, config.weight_decay, shares)
        optimizers = [SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)]
    elif config.optimizer == "adamw":
        groups = _groups(trainable, config.lr, config.weight_decay, shares)
        optimizers = [AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))]
    else:
        filters = _groups([p for p in trainable if p.ndim == 4], config.lr, 0.0, shares)
        heads = _groups(
            [p for p in trainable if p.ndim in (2, 3)], config.aux_lr, config.weight_decay, shares
        )
        bias_lr = config.bias_lr * config.batch_size
        biases = _groups([p for p in trainable if p.ndim <= 1], bias_lr, 0.0, shares)
        optimizers = [
            Muon(filters, lr=config.lr, momentum=config.momentum, world=world),
            SGD([*heads, *biases], lr=config.aux_lr, momentum=AUX_MOMENTUM, nesterov=True),
        ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def layer_shares(model: nn.Module, first: float) -> dict[nn.Parameter, float]:
    """Return the learning rate of each parameter, as a fraction of that of the last layer.

    From the share `first` of the first layer, it grows by the same factor from layer to layer: discriminative
    fine-tuning (J. Howard and S. Ruder 2018, arXiv 1801.06146) for networks of any depth.
    """
    layers = [own for layer in model.modules() if (own := list(layer.parameters(recurse=False)))]
    steps = max(len(layers) - 1, 1)
    return {p: first ** (1 - number / steps) for number, own in enumerate(layers) for p in own}


def _groups(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, shares: Mapping[nn.Parameter, float]
) -> list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay; vectors, i.e. norms and biases, have no decay."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        groups[lr * shares[parameter], parameter.ndim > 1].append(parameter)
    return [
        {"params": groups[rate, decays], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for rate, decays in sorted(groups, reverse=True)
    ]


class Muon(_WithoutCompiler):
    """SGD with momentum whose steps are made orthogonal, so that all directions move at the same speed.

    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). A bank of filters
    (out, in, k, k) is treated as the matrix (out, in*k*k). Each bank is kept at the norm sqrt(out): the batch
    norm that follows cancels its scale, and with a fixed scale `lr` means the same throughout the training.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        world: World | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._world = world or World.alone()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            directions = [self._direction(p, group["momentum"]).flatten(1) for p in parameters]
            for parameter, step in zip(parameters, self._orthogonalized(directions), strict=True):
                parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                parameter.add_(step.view_as(parameter), alpha=-group["lr"])

    def _orthogonalized(self, matrices: list[Tensor]) -> list[Tensor]:
        """Return the orthogonalized matrices; each process computes its share of the work and sends it."""
        if self._world.size == 1 or not matrices:
            return _orthogonalize_all(matrices)
        owners = _divide_work([_cost(matrix) for matrix in matrices], self._world.size)
        order = [index for owned in owners for index in owned]
        steps = torch.cat([matrices[index].flatten() for index in order])
        views = steps.split([matrices[index].numel() for index in order])
        step_of = dict(zip(order, views, strict=True))
        own = owners[self._world.rank]
        for index, step in zip(own, _orthogonalize_all([matrices[i] for i in own]), strict=True):
            step_of[index].copy_(step.flatten())
        self._world.gather_shares(steps, [sum(matrices[i].numel() for i in owned) for owned in owners])
        return [step_of[index].view_as(matrix) for index, matrix in enumerate(matrices)]

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """Update the momentum buffer and return the Nesterov direction."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].mul_(momentum).add_(parameter.grad)
        return parameter.grad.add(state["momentum_buffer"], alpha=momentum)


def _orthogonalize_all(matrices: list[Tensor]) -> list[Tensor]:
    """Return the orthogonalized matrices (rows, columns), in the order of the argument."""
    # Stack the matrices of each shape: they are small, and each call has a fixed cost.
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        by_shape[matrix.shape].append(index)
    steps: dict[int, Tensor] = {}
    for indices in by_shape.values():
        stacked = orthogonalize(torch.stack([matrices[index] for index in indices]))
        steps |= zip(indices, stacked, strict=True)
    return [steps[index] for index in range(len(matrices))]


def _cost(matrix: Tensor) -> int:
    """Return the number of multiplications of an iteration, up to a factor."""
    return min(matrix.shape) * matrix.numel()


def _divide_work(costs: list[int], processes: int) -> list[list[int]]:
    """Return the items of each process: the most expensive first, each to the process with the least work."""
    owners: list[list[int]] = [[] for _ in range(processes)]
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        min(owners, key=lambda owned: sum(costs[i] for i in owned)).append(item)
    return owners


def orthogonalize(matrices: Tensor, iterations: int = 3) -> Tensor:
    """Move the singular values of matrices towards 1 with a Newton-Schulz iteration.

    Args:
        matrices: float (B, rows, columns).
        iterations: number of times that the quintic polynomial of Muon's authors is applied. It brings the
            singular values to 0.7 to 1.2, which is as good as 1 for an update direction.

    Returns:
        Matrices of the same shape and dtype.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.to(torch.bfloat16 if bf16_is_fast(x.device) else torch.float32)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    # Each iteration multiplies x by a polynomial of its Gram matrix. These polynomials commute, so iterate on
    # the small Gram matrix alone, and use x, which is often nine times as wide, only twice.
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device).expand_as(gram)
    product = identity
    for _ in range(iterations):
        factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) + 3.4445 * identity
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return (x.mT if tall else x).to(matrices.dtype)

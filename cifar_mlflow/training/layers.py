"""Layers that replace those of a network for the training; the names of the weights stay the same.

In eval mode each behaves like the layer that it replaces.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cifar_mlflow.errors import UsageError
from cifar_mlflow.training.distributed import Share

CONVOLUTIONS_PER_SEGMENT = 2  # as in a residual block


def replace_layers(module: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace each layer for which `replacement` returns one, outermost first, and return the module."""
    if (new := replacement(module)) is not None:
        return new
    for name, child in module.named_children():
        module.add_module(name, replace_layers(child, replacement))
    return module


# ---- One network on several processes ----


def synchronize_layers(module: nn.Module, share: Share, device: torch.device) -> nn.Module:
    """Return the module with layers that treat the images of all processes as one batch.

    Args:
        share: kept up to date by the training: which images of the batch this process computes.
    """
    if device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    else:  # torch's layer refuses the CPU
        module = replace_layers(module, _synchronized_norm)
    return replace_layers(
        module, lambda layer: SharedDropout(layer.p, share) if type(layer) is nn.Dropout else None
    )


def _synchronized_norm(layer: nn.Module) -> nn.Module | None:
    if type(layer) is not nn.BatchNorm2d:
        return None
    new = CpuSyncBatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine)
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        setattr(new, name, tensor)
    return new.train(layer.training)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the images of all processes, on the CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        if not self.training:
            return super().forward(input)
        images, mean, variance, count = _GlobalStatistics.apply(input, self.eps)
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return F.batch_norm(images, mean, variance, self.weight, self.bias, training=False, eps=self.eps)


class _GlobalStatistics(torch.autograd.Function):
    """Return images unchanged, with mean and variance per channel over all processes.

    The normalization that follows treats both as constants. The backward pass here adds their derivatives:
    from the gradient g of an image and x = (image - mean) / std, it makes g - mean(g) - x mean(g x), with
    means over the images of all processes.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = images.shape[1]
        # The kernel of torch's own batch norm takes a tenth of the time of torch.var_mean over these
        # dimensions. Running statistics in fp32, which are not used here, let it compute in fp32 for bf16.
        unused = torch.zeros(channels), torch.ones(channels)
        mean, variance = torch.batch_norm_update_stats(images, *unused, 0.0)
        count = mean.new_full((1,), images.numel() // channels)
        own = torch.cat([mean, variance, count])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(every, own)
        means, variances, counts = torch.stack(every).split([channels, channels, 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        ctx.save_for_backward(images, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return images.view_as(images), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0]
        images, mean, variance, count = ctx.saved_tensors
        centred = images - mean[:, None, None]  # in fp32, also for images in bf16
        sums = torch.cat([gradient.sum((0, 2, 3), dtype=mean.dtype), (gradient * centred).sum((0, 2, 3))])
        dist.all_reduce(sums)
        mean_gradient, slope = (sums / count).view(2, -1, 1, 1)
        slope = slope / (variance + ctx.eps)[:, None, None]
        return torch.addcmul(gradient - mean_gradient, centred, slope, value=-1).to(gradient.dtype), None


class SharedDropout(nn.Dropout):
    """Dropout that draws the mask of the whole batch on each process and applies its share.

    All processes thereby draw the same numbers: the mask is that of a single process, and the generator's
    state is the same everywhere, so that a checkpoint continues with any number of processes.
    """

    def __init__(self, p: float, share: Share) -> None:
        super().__init__(p)
        self.share = share

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        if not self.training or self.p == 0:
            return input
        whole = input.new_ones((self.share.total, *input.shape[1:]))
        return input * F.dropout(whole, self.p)[self.share.start : self.share.stop]


# ---- Activation checkpointing ----


def checkpoint_activations(network: nn.Module) -> nn.Module:
    """Return the network in segments that keep only their input and recompute the activations.

    T. Chen et al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174). A segment is a
    residual block, or two convolutions with what follows them in a plain sequence.

    Raises:
        UsageError: the network has no sequence of layers that could be divided.
    """
    found = []

    def replacement(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Sequential or len(layer) < 2:
            return None
        if _is_mixed(layer) or not any(isinstance(part, nn.Conv2d) for part in layer.modules()):
            return None
        found.append(layer)
        return CheckpointedSequential(layer)

    network = replace_layers(network, replacement)
    if not found:
        raise UsageError("--activation-checkpointing: this network has no sequence of convolutions to divide")
    return network


def _is_mixed(sequence: nn.Sequential) -> bool:
    """Return whether some layers are single operations and some are groups, which are divided instead."""
    return len({any(True for _ in layer.children()) for layer in sequence}) > 1


class CheckpointedSequential(nn.Sequential):
    """A sequence of layers, divided into segments whose activations are computed again when needed."""

    def __init__(self, sequence: nn.Sequential) -> None:
        super().__init__()
        for name, layer in sequence.named_children():
            self.add_module(name, layer)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        for segment in self._segments():
            if self.training and torch.is_grad_enabled():
                input = checkpoint(  # noqa: A001
                    segment, input, use_reentrant=False, context_fn=partial(_contexts, segment)
                )
            else:
                input = segment(input)  # noqa: A001
        return input

    def _segments(self) -> Iterator[nn.Sequential]:
        """Yield the segments. None starts with an in-place operation: it would overwrite the kept input."""
        layers, convolutions = list(self), 0
        segment: list[nn.Module] = []
        for layer in layers:
            starts = isinstance(layer, nn.Conv2d) or any(True for _ in layer.children())
            if starts:
                size = CONVOLUTIONS_PER_SEGMENT if isinstance(layer, nn.Conv2d) else 1
                if convolutions >= size:
                    yield nn.Sequential(*segment)
                    segment, convolutions = [], 0
                convolutions += 1
            segment.append(layer)
        yield nn.Sequential(*segment)


def _contexts(segment: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _on_copied_buffers(segment)


@contextmanager
def _on_copied_buffers(segment: nn.Module) -> Iterator[None]:
    """Let a segment that is computed again change copies: batch norm must not count the same images twice."""
    kept = [
        (layer, name, buffer)
        for layer in segment.modules()
        for name, buffer in layer.named_buffers(recurse=False)
    ]
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)

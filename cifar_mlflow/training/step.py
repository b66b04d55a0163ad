"""One step of a training: the gradients of a batch, from all its parts and processes, and the update."""

import os
import shutil
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.data.loader import Batch
from cifar_mlflow.errors import UsageError
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.training.device import Hardware
from cifar_mlflow.training.distributed import Share, World
from cifar_mlflow.training.layers import checkpoint_activations, synchronize_layers
from cifar_mlflow.training.optimizers import build_optimizers


class Step:
    """Everything that turns a batch into an update of the weights.

    Attributes:
        classifier: the network, on the device, with the layers that the settings ask for.
        optimizers: update its weights; the gradients that they see are those of the whole batch.
        class_weights: float32 (classes,), factors of the loss; None for equal weights.
        scaler: keeps the gradients of fp16 in range; it does nothing in other precisions.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        config: TrainConfig,
        hardware: Hardware,
        world: World,
        class_weights: Tensor | None = None,
    ) -> None:
        self.class_weights = class_weights
        self.config, self.hardware, self.world = config, hardware, world
        self._share = Share()
        if config.activation_checkpointing:
            checkpoint_activations(classifier)
        if world.size > 1:
            synchronize_layers(classifier, self._share, hardware.device)
        self.classifier = classifier.to(hardware.device).to(memory_format=torch.channels_last)
        self._parallel = world.parallel(self.classifier, hardware.device)
        self._forward = _compiled(self._parallel, hardware.device) if config.compile else self._parallel
        self.optimizers = build_optimizers(self.classifier, config, world)
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.precision == "fp16")

    def __call__(self, batch: Batch, lr_factor: float) -> tuple[Tensor, Tensor]:
        """Update the weights once.

        Args:
            lr_factor: the learning rate of this step, as a fraction of the peak.

        Returns:
            The mean loss before the update, float32 (), and the number of right predictions, int64 (), over
            the whole batch.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * lr_factor
            optimizer.zero_grad(set_to_none=True)
        loss, correct = self._add_gradients(batch)
        if self.config.grad_clip:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.classifier.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return loss, correct

    def _add_gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add up the gradients over the parts of the batch and, with the last part, over the processes."""
        losses, right = [], []
        parts = self.config.accumulate
        for part in range(parts):
            start, stop = (len(batch) * number // parts for number in (part, part + 1))
            self._share.set(self.world.share(stop - start))
            images, targets = batch.make(start + self._share.start, start + self._share.stop)
            last = part == parts - 1
            with nullcontext() if last else self.world.keep_gradients(self._parallel):
                with self.hardware.autocast():
                    logits = self._forward(images)
                mean = self._mean_loss(logits, targets)
                loss = mean * (len(images) / len(batch))
                # The exchange takes the mean over the processes, but their losses add up.
                self.scaler.scale(loss * self.world.size).backward()
            hard_targets = targets if targets.ndim == 1 else targets.argmax(1)
            right.append((logits.detach().argmax(1) == hard_targets).sum())
            losses.append(loss.detach())
        return self.world.sum(torch.stack(losses).sum()), self.world.sum(torch.stack(right).sum())

    def _mean_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.config.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        # Divided by the number of images, not by the sum of their weights as torch does: the parts of a batch
        # would not add up to the whole batch.
        weights = self.class_weights.to(logits.dtype)
        total = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)
        return total / len(logits)


def _compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with a compiled forward and backward pass.

    Raises:
        UsageError: torch.compile needs a C++ compiler for the CPU, and there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise UsageError(
            f"--compile: torch.compile needs the C++ compiler {compiler}, which is not installed"
        )
    compiled: nn.Module = torch.compile(module)  # type: ignore[assignment]
    return compiled

"""Training batches, made on the device, which holds all images as bytes.

All randomness is a function of (seed, epoch, step): a run resumed at any step sees the same batches, and
there is no generator state to save.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_mlflow.config import SMALL_IMAGES_SCALE, TrainConfig
from cifar_mlflow.data import augment


class TrainLoader:
    """Shuffled, augmented batches.

    An epoch shows each image once, in ceil(N / batch_size) batches whose sizes differ by at most one. A
    small last batch would be a noisy step at the full learning rate, and dropping it would waste images.

    Args:
        images: uint8 (N, H, W, 3); may be read-only, since it is copied to the device.
        labels: int64 (N,).
        num_classes: width of the soft targets of mixup and CutMix.

    Raises:
        UsageError: cutout or crop_padding is too large for the images.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        config: TrainConfig,
        num_classes: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.device = device
        self.images = torch.tensor(images, device=device)
        self.labels = torch.tensor(labels, device=device)
        self.mean_colour = (
            self.images.mean(dim=(0, 1, 2), dtype=torch.float32) / 255 if config.cutout else None
        )
        # The images that alternating flip mirrors in even epochs.
        self.mirrored_first = augment.coin_flips(len(labels), self._generator())

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self.labels) // self.config.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from `first_step` on.

        Yields:
            images: float32 (B, 3, H, W) in 0..1, channels_last; smaller in the epochs of `small_images`.
            targets: int64 (B,), or float32 (B, num_classes) if mixup or CutMix is on.
        """
        order = torch.randperm(len(self.labels), generator=self._generator(epoch), device=self.device)
        batches = order.tensor_split(self.steps_per_epoch)
        for step in range(first_step, len(batches)):
            yield self._batch(batches[step], epoch, step)

    def _batch(self, index: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        config, generator = self.config, self._generator(epoch, step)
        shift = augment.random_shift(len(index), config.crop_padding, generator)
        mirrored = self._mirrored(index, epoch, generator)
        windows = augment.take_windows(self.images, index, shift, mirrored)
        # The channels of a pixel are adjacent in memory, so torch calls this view channels_last.
        pixels = windows.permute(0, 3, 1, 2)
        if epoch < config.small_images * config.epochs:
            pixels = augment.shrink(pixels, SMALL_IMAGES_SCALE)
        images = pixels.float().div_(255)
        if config.brightness or config.contrast:
            images = augment.jitter(images, config.brightness, config.contrast, generator)
        if self.mean_colour is not None:
            images = augment.cutout(images, config.cutout, self.mean_colour, generator)
        targets = self.labels[index]
        if config.mixup or config.cutmix:
            return self._mixed(images, targets, epoch, step, generator)
        return images, targets

    def _mirrored(self, index: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        if self.config.flip == "alternating":
            return self.mirrored_first[index] ^ bool(epoch % 2)
        if self.config.flip == "random":
            return augment.coin_flips(len(index), generator)
        return torch.zeros_like(index, dtype=torch.bool)

    def _mixed(
        self, images: Tensor, labels: Tensor, epoch: int, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Apply mixup or CutMix; with both on, choose one of them per batch at random."""
        config = self.config
        rng = np.random.default_rng([config.seed, epoch, step])
        use_mixup = config.mixup > 0 and (config.cutmix == 0 or rng.random() < 0.5)
        alpha = config.mixup if use_mixup else config.cutmix
        mix = augment.mixup if use_mixup else augment.cutmix
        targets = augment.soft_targets(labels, self.num_classes)
        return mix(images, targets, float(rng.beta(alpha, alpha)), generator)

    def _generator(self, *position: int) -> torch.Generator:
        """Return the generator of the run (), of an epoch (epoch,) or of a step (epoch, step)."""
        entropy = np.random.SeedSequence([self.config.seed, len(position), *position])
        seed = int(entropy.generate_state(1, np.uint64)[0])
        return torch.Generator(self.device).manual_seed(seed)

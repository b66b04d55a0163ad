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

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator["Batch"]:
        """Yield the batches of an epoch from `first_step` on; their images are made on request."""
        order = torch.randperm(len(self.labels), generator=self._generator(epoch), device=self.device)
        batches = order.tensor_split(self.steps_per_epoch)
        for step in range(first_step, len(batches)):
            rng = np.random.default_rng([self.config.seed, epoch, step])
            yield Batch(self, batches[step], epoch, self._generator(epoch, step), rng)

    def _generator(self, *position: int) -> torch.Generator:
        """Return the generator of the run (), of an epoch (epoch,) or of a step (epoch, step)."""
        entropy = np.random.SeedSequence([self.config.seed, len(position), *position])
        seed = int(entropy.generate_state(1, np.uint64)[0])
        return torch.Generator(self.device).manual_seed(seed)


class Batch:
    """A batch with its random values, from which any process makes the same images, all or some of them.

    Args:
        index: int64 (B,), positions of the images among all.
        generator, rng: draw the random values of this batch.
    """

    def __init__(
        self,
        loader: TrainLoader,
        index: Tensor,
        epoch: int,
        generator: torch.Generator,
        rng: np.random.Generator,
    ) -> None:
        config, count = loader.config, len(index)
        self.loader = loader
        self.index = index
        self.small = epoch < config.small_images * config.epochs
        self.shift = augment.random_shift(count, config.crop_padding, generator)
        self.mirrored = self._draw_mirrored(epoch, generator)
        height, width = loader.images.shape[1:3]
        if self.small:
            height, width = (round(SMALL_IMAGES_SCALE * side) for side in (height, width))
        self.jitter = self.corners = self.partner = None
        if config.brightness or config.contrast:
            self.jitter = augment.jitter_factors(count, config.brightness, config.contrast, generator)
        if config.cutout:
            self.corners = augment.square_corners(count, height, width, config.cutout, generator)
        if config.mixup or config.cutmix:
            # With both on, one of them is chosen for the batch.
            use_mixup = config.mixup > 0 and (config.cutmix == 0 or rng.random() < 0.5)
            alpha = config.mixup if use_mixup else config.cutmix
            self.mix_share = float(rng.beta(alpha, alpha))
            self.rectangle = (
                None if use_mixup else augment.random_rectangle(height, width, self.mix_share, generator)
            )
            self.partner = augment.random_partners(count, generator)

    def __len__(self) -> int:
        return len(self.index)

    def make(self, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the images from `start` to `stop`, by default all of them, and their targets.

        Returns:
            images: float32 (B, 3, H, W) in 0..1, channels_last; smaller in the epochs of `small_images`.
            targets: int64 (B,), or float32 (B, num_classes) if mixup or CutMix is on.
        """
        rows = slice(start, len(self) if stop is None else stop)
        images, labels = self._augmented(rows)
        if self.partner is None:
            return images, labels
        if len(images) == len(self):
            partners, partner_labels = images[self.partner], labels[self.partner]
        else:
            partners, partner_labels = self._augmented(self.partner[rows])
        both = [augment.soft_targets(of, self.loader.num_classes) for of in (labels, partner_labels)]
        if self.rectangle is None:
            return augment.mixup(images, partners, both[0], both[1], self.mix_share)
        return augment.cutmix(images, partners, both[0], both[1], self.rectangle)

    def _augmented(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return images, before they are mixed, and labels."""
        loader, index = self.loader, self.index[rows]
        windows = augment.take_windows(loader.images, index, self.shift[rows], self.mirrored[rows])
        # The channels of a pixel are adjacent in memory, so torch calls this view channels_last.
        pixels = windows.permute(0, 3, 1, 2)
        if self.small:
            pixels = augment.shrink(pixels, SMALL_IMAGES_SCALE)
        images = pixels.float().div_(255)
        if self.jitter is not None:
            images = augment.jitter(images, *(factors[rows] for factors in self.jitter))
        if self.corners is not None:
            assert loader.mean_colour is not None
            top, left = (corner[rows] for corner in self.corners)
            images = augment.cutout(images, top, left, loader.config.cutout, loader.mean_colour)
        return images, loader.labels[index]

    def _draw_mirrored(self, epoch: int, generator: torch.Generator) -> Tensor:
        if self.loader.config.flip == "alternating":
            return self.loader.mirrored_first[self.index] ^ bool(epoch % 2)
        if self.loader.config.flip == "random":
            return augment.coin_flips(len(self.index), generator)
        return torch.zeros_like(self.index, dtype=torch.bool)

"""Training batches, made on the device. A GPU holds all images as bytes; a CPU reads the memory map.

All randomness is a function of (seed, epoch, step): a run resumed at any step sees the same batches, and
there is no generator state to save.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_mlflow.config import SMALL_SCALES, TrainConfig
from cifar_mlflow.data import augment
from cifar_mlflow.data.dataset import SelectedImages
from cifar_mlflow.data.summary import mean_std


@dataclass(frozen=True)
class Stage:
    """Epochs with images of one size.

    Attributes:
        stop: the first epoch after them, counted from 0.
        scale: side length of the images, as a fraction of the full one.
    """

    stop: int
    scale: float


def stages(epochs: int, small_images: float) -> list[Stage]:
    """Return the stages of a training; some may have no epoch.

    Progressive resizing: the first epochs learn as much from small images, which take less time.

    Args:
        small_images: fraction of the epochs with smaller images.
    """
    small = math.ceil(small_images * epochs)
    return [Stage(-(-small // 2), SMALL_SCALES[0]), Stage(small, SMALL_SCALES[1]), Stage(epochs, 1.0)]


class TrainLoader:
    """Shuffled, augmented batches.

    An epoch shows each image once, in ceil(N / batch_size) batches whose sizes differ by at most one. A
    small last batch would be a noisy step at the full learning rate, and dropping it would waste images. With
    balanced sampling it shows as many images of each class, N in all.

    Args:
        images: uint8 (N, H, W, 3); may be read-only. They are copied to a GPU if they fit into half of its
            free memory; otherwise each batch is.
        labels: int64 (N,).
        num_classes: width of the soft targets of mixup and CutMix.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | SelectedImages,
        labels: NDArray[np.int64],
        config: TrainConfig,
        num_classes: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.device = device
        self.labels = torch.tensor(labels, device=device)
        self._on_host = device.type == "cpu" or _is_too_large(images, device)
        self._positions = None  # of the images to train on, if `self.images` has others, too
        if not self._on_host:
            self.images = torch.tensor(images[:], device=device)
        elif isinstance(images, SelectedImages):
            self.images = _shared(images.source)
            self._positions = torch.from_numpy(images.positions)
        else:
            self.images = _shared(images)
        self.mean_colour = None
        if config.cutout:
            mean, _ = mean_std(images)  # in pieces, since the images may be larger than memory
            self.mean_colour = torch.tensor(mean, dtype=torch.float32, device=device)
        # The images that alternating flip mirrors in even epochs.
        self.mirrored_first = augment.coin_flips(len(labels), self._generator())

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self.labels) // self.config.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator["Batch"]:
        """Yield the batches of an epoch from `first_step` on; their images are made on request."""
        order = self._order(self._generator(epoch))
        batches = order.tensor_split(self.steps_per_epoch)
        for step in range(first_step, len(batches)):
            rng = np.random.default_rng([self.config.seed, epoch, step])
            yield Batch(self, batches[step], epoch, self._generator(epoch, step), rng)

    @property
    def balancing_weights(self) -> Tensor:
        """Return a factor per class, float32 (classes,), inverse to its number of images; 1 on average."""
        counts = torch.bincount(self.labels, minlength=self.num_classes).clamp(min=1)
        return (len(self.labels) / (self.num_classes * counts)).float()

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.images.shape[1:3]
        return height, width

    def windows(self, index: Tensor, shift: Tensor, mirrored: Tensor) -> Tensor:
        """Return the shifted and mirrored images at `index`, on the device; see `augment.take_windows`."""
        images = self.images
        if self._on_host:
            index = index.cpu() if self._positions is None else self._positions[index.cpu()]
            if self.device.type != "cpu":
                images = images[index].to(self.device)
                index = torch.arange(len(index), device=self.device)
        return augment.take_windows(images, index, shift, mirrored)

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return the positions of the images of an epoch, int64 (N,)."""
        total = len(self.labels)
        if self.config.sampling == "shuffle":
            return torch.randperm(total, generator=generator, device=self.device)
        by_class = self.labels.argsort(stable=True).split(torch.bincount(self.labels).tolist())
        classes = [members for members in by_class if len(members)]
        drawn = []
        for number, members in enumerate(classes):
            count = total // len(classes) + (number < total % len(classes))
            # Draw each image of the class once before any is repeated.
            rounds = [
                members[torch.randperm(len(members), generator=generator, device=self.device)]
                for _ in range(-(-count // len(members)))
            ]
            drawn.append(torch.cat(rounds)[:count])
        return torch.cat(drawn)[torch.randperm(total, generator=generator, device=self.device)]

    def _generator(self, *position: int) -> torch.Generator:
        """Return the generator of the run (), of an epoch (epoch,) or of a step (epoch, step)."""
        entropy = np.random.SeedSequence([self.config.seed, len(position), *position])
        seed = int(entropy.generate_state(1, np.uint64)[0])
        return torch.Generator(self.device).manual_seed(seed)


def _is_too_large(images: NDArray[np.uint8] | SelectedImages, device: torch.device) -> bool:
    """Return whether the images take more than half of the free memory of a GPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(images) * images[0].nbytes > free / 2


def _shared(images: NDArray[np.uint8]) -> Tensor:
    """Return a tensor that shares the memory of the array; nothing writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)


class Batch:
    """A batch with its random values; every process can make the same images from it, all or some of them.

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
        self.scale = next(s.scale for s in stages(config.epochs, config.small_images) if epoch < s.stop)
        self.shift = augment.random_shift(count, config.crop_padding, generator)
        self.mirrored = self._draw_mirrored(epoch, generator)
        height, width = (round(self.scale * side) for side in loader.image_shape)
        self.jitter = self.corners = self.partner = None
        if config.brightness or config.contrast:
            self.jitter = augment.jitter_factors(count, config.brightness, config.contrast, generator)
        if config.cutout:
            self.corners = augment.square_corners(count, height, width, config.cutout, generator)
        if config.mixup or config.cutmix:
            # If both are on, one of them is chosen for the batch.
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
        windows = loader.windows(index, self.shift[rows], self.mirrored[rows])
        # The channels of a pixel are adjacent in memory, so torch calls this view channels_last.
        pixels = windows.permute(0, 3, 1, 2)
        if self.scale < 1:
            pixels = augment.shrink(pixels, self.scale)
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

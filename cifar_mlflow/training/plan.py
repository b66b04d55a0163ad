"""Plan the number of epochs that fit into a time budget, from the speed of the first steps on this machine.

The steps are measured with a training that is thrown away. The real training is then the same as with
`--epochs N`: the plan sets nothing but its length, and a resumed run has that in its checkpoint.
"""

import importlib
import itertools
import logging
import math
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cifar_mlflow.config import MOST_EPOCHS, SMALL_SCALES, TrainConfig
from cifar_mlflow.data.cache import cache_errors
from cifar_mlflow.data.loader import Batch, stages
from cifar_mlflow.environment import rank
from cifar_mlflow.errors import UsageError
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.names import counted
from cifar_mlflow.training.checkpoint import CheckpointFile
from cifar_mlflow.training.loop import STEPS_BETWEEN_CHECKS, Training

logger = logging.getLogger(__name__)

MARGIN = 0.05  # share of the budget that is kept for steps that are slower than the measured ones
MEASURED_SHARE = 0.02  # of the budget, for each image size
LONGEST_MEASUREMENT_SECONDS = 3.0
VALIDATED_IMAGES = 500  # the time for all images is extrapolated from these
FEWEST_STEPS = 8  # per epoch, for the user's own images
SMALLEST_BATCH = 32  # no recipe's batch size is lowered further, because the learning rate stays the same
TOLERANCE = 1.1  # the speed differs between two measurements


def lower_batch_size(config: TrainConfig, images: int, processes: int) -> TrainConfig:
    """Return the settings with a smaller batch if an epoch would have fewer than 8 steps.

    Args:
        images: number of training images.
        processes: each needs an image in each part of a batch.
    """
    steps = math.ceil(images / config.batch_size)
    fewest = max(SMALLEST_BATCH, config.accumulate * processes)
    lowered = min(max(images // FEWEST_STEPS, fewest), config.batch_size)
    if steps >= FEWEST_STEPS or lowered == config.batch_size:
        return config
    if rank() == 0:
        logger.info(
            "The recipe's batch size of %d would give %s per epoch of %s images; it is lowered to %d",
            config.batch_size,
            counted(steps, "step"),
            f"{images:,}",
            lowered,
        )
    return config.model_copy(update={"batch_size": lowered})


@dataclass(frozen=True)
class Speed:
    """The measured times of a training, in seconds.

    Attributes:
        start: how much longer the first steps take than later ones: caches fill, `compile` compiles.
        step: a step with images of full size.
        small_step: a step of the first epochs, if `small_images` makes their images smaller; the time of a
            step with images of another size is interpolated by their number of pixels.
        epoch_end: validation and checkpoint after each epoch.
    """

    start: float
    step: float
    small_step: float
    epoch_end: float

    def seconds(self, epochs: int, steps_per_epoch: int, small_images: float) -> float:
        """Return the time of a training, from its first step to the end of its last epoch.

        Args:
            small_images: fraction of the epochs, the first ones, with smaller images.
        """
        steps, start = 0.0, 0
        for stage in stages(epochs, small_images):
            step = self.small_step + _share(stage.scale) * (self.step - self.small_step)
            steps += (stage.stop - start) * step
            start = stage.stop
        return self.start + steps_per_epoch * steps + epochs * self.epoch_end

    def epochs_within(self, seconds: float, steps_per_epoch: int, small_images: float) -> int:
        """Return the largest number of epochs that take at most this time, in 0..`MOST_EPOCHS`."""
        return bisect_right(
            range(1, MOST_EPOCHS + 1),
            seconds,
            key=lambda epochs: self.seconds(epochs, steps_per_epoch, small_images),
        )


def plan_epochs(rehearsal: Training, minutes: float) -> int:
    """Return the number of epochs of a training that ends within a time budget.

    The budget covers the measurement here, all steps, and validation and checkpoint of each epoch.

    Args:
        rehearsal: a training like the planned one, but of `MOST_EPOCHS` epochs; it cannot be used afterwards.

    Raises:
        UsageError: the budget is too short for one epoch.
        CifarError: the cache folder cannot be written.
        PeerLostError: another process of the training is gone.
    """
    world, config = rehearsal.world, rehearsal.config
    start = time.perf_counter()
    with world.explained():
        speed = measure(rehearsal, min(MEASURED_SHARE * 60 * minutes, LONGEST_MEASUREMENT_SECONDS))
    # All processes plan with the times of the first one.
    speed, spent = world.broadcast((speed, time.perf_counter() - start))
    length = (rehearsal.loader.steps_per_epoch, config.small_images)
    epochs = speed.epochs_within((1 - MARGIN) * 60 * minutes - spent, *length)
    if not epochs:
        needed = (spent + speed.seconds(1, *length)) / (1 - MARGIN) / 60 * TOLERANCE
        raise UsageError(
            f"--minutes {minutes:g} is too short for one epoch of {config.model} on this machine: give "
            f"--minutes {math.ceil(needed * 10) / 10:g} or more, or a faster --model or --recipe"
        )
    if world.is_main:
        logger.info(
            "Planned %s of about %.3g s for %g min of training and validation; the final "
            "evaluation and the export follow",
            counted(epochs, "epoch"),
            speed.seconds(epochs, *length) / epochs,
            minutes,
        )
    return epochs


def _share(scale: float) -> float:
    """Return where the pixels of images of this scale lie between the smallest (0) and the full ones (1)."""
    smallest = SMALL_SCALES[0] ** 2
    return (scale**2 - smallest) / (1 - smallest)


def measure(training: Training, seconds: float) -> Speed:
    """Measure the times of a training, for the smallest and the largest images if `small_images` is set.

    Args:
        training: of at least two epochs, so that the last one has larger images than the first; it cannot be
            used afterwards.
        seconds: about how long to measure the steps of each image size.
    """
    # A training imports this in a thread during its first epoch; do it now, so that no step is slowed.
    importlib.import_module("cifar_mlflow.evaluation.report")
    training.classifier.train()
    last = training.config.epochs - 1
    first, step = _step_seconds(training, last, seconds)
    start, small_step = first - step, step
    if training.config.small_images:
        first_small, small_step = _step_seconds(training, 0, seconds)
        start += first_small - small_step
        # With `small_images` of 1, no epoch has images of full size.
        largest = next(training.loader.epoch(last)).scale
        step = small_step + (step - small_step) / _share(largest)
    return Speed(max(start, 0.0), step, small_step, _epoch_end_seconds(training))


def _step_seconds(training: Training, epoch: int, seconds: float) -> tuple[float, float]:
    """Return the time of the first step of an epoch, and the mean time of those after it."""
    batches = itertools.cycle(training.loader.epoch(epoch))
    first = _take_steps(training, batches, 1)
    count = 1 if training.hardware.device.type == "cpu" else STEPS_BETWEEN_CHECKS
    elapsed, steps = 0.0, 0
    while training.world.max(int(elapsed < seconds)):  # all processes take the same steps
        elapsed += _take_steps(training, batches, count)
        steps += count
    return first, elapsed / steps


def _take_steps(training: Training, batches: Iterator[Batch], count: int) -> float:
    """Take steps, wait for the device after the last one, and return their time in seconds."""
    start = time.perf_counter()
    for batch in itertools.islice(batches, count):
        loss, _ = training.take_step(batch, lr_factor=0.0)
        if training.averaged:
            training.averaged.update_parameters(training.classifier)
    training.world.wait_for(training.hardware.device)
    loss.item()
    return time.perf_counter() - start


def _epoch_end_seconds(training: Training) -> float:
    """Return the time of validation, extrapolated from a part of the images, and checkpoint."""
    from cifar_mlflow.evaluation.metrics import evaluate_logits

    share = training.world.share(len(training.val))
    mine = share.stop - share.start
    count = min(mine, VALIDATED_IMAGES)
    validation = 0.0
    if count:
        part = slice(share.start, share.start + count)
        start = time.perf_counter()
        logits = predict_logits(
            training.evaluated,
            training.val.images[part],
            device=training.hardware.device,
            precision=training.hardware.precision,
        )
        evaluate_logits(logits, training.val.labels[part], training.classes)
        validation = (time.perf_counter() - start) * mine / count
    start = time.perf_counter()
    if training.world.is_main:
        cache_dir = training.config.cache_dir
        with cache_errors(cache_dir), tempfile.TemporaryDirectory(dir=cache_dir) as folder:
            CheckpointFile(Path(folder, "checkpoint.pt")).save(training.state_dict())
    return validation + time.perf_counter() - start

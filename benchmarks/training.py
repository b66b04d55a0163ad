"""Training throughput, compared with the usual CIFAR-10 training script, as it is and made fast.

Ours is `Training.fit` with default settings, from the bytes of the images to the updated weights. The usual
script does what kuangliu/pytorch-cifar and its many descendants do: fp32, NCHW, a DataLoader with two workers
that transforms image by image, SGD with momentum. The second peer is the same script with the two lines that
make the network itself fast: autocast to our precision, and channels_last. The third is the network alone:
forward, backward and step on one batch that is already on the device, in our precision and memory format. All
train the same network on the same images with the same batch size.

Why it is fair: all have the same optimizer, SGD with momentum, and only images of full size. The sides take
turns, so that a slowdown of the machine affects all, and the median of the rounds counts. Each turn is a
process of its own, since `Training` changes how its process allocates memory. All do one step first, so that
none pays for one-time setup. The start of the script's workers, negligible in an epoch of 50,000 images, is
not counted.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.harness import Row, in_fresh_process, progress
from cifar_mlflow.config import ModelName, TrainConfig, resolve_train_config
from cifar_mlflow.data import Split, load_dataset
from cifar_mlflow.data.summary import mean_std
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.training.device import Hardware, set_up_hardware
from cifar_mlflow.training.loop import NoRecorder, Training

# Target speedups over the usual script.
TARGETS: Mapping[ModelName, float] = {"resnet18": 3.0, "vgg16": 2.0}
BARE_AT_LEAST = 95
DATALOADER_WORKERS = 2
# The optimizer of the usual script, and images of full size only.
SETTINGS = {
    "dataset": "sample",
    "epochs": 1,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "small_images": 0,
}

Side = Callable[[TrainConfig, Hardware, tuple[str, ...], Split], float]


def measure(
    targets: Mapping[ModelName, float] = TARGETS,
    images: int = 1024,
    batch_size: int = 128,
    rounds: int = 3,
    threads: int = 0,
) -> list[Row]:
    """Return three rows per network; a round is one pass over `images` images by each side."""
    rows = []
    for model, target in targets.items():
        config = resolve_train_config(
            {**SETTINGS, "model": model, "batch_size": batch_size, "threads": threads}
        )
        speeds: dict[str, list[float]] = {name: [] for name in SIDES}
        for number in range(rounds):
            for name, side in SIDES.items():
                speeds[name].append(in_fresh_process(speed_of, side, config, images))
            shown = ", ".join(f"{name} {of_side[-1]:.1f}" for name, of_side in speeds.items())
            progress(f"  {model} {number + 1}/{rounds}: {shown} images/s")
        hardware = set_up_hardware(config, config.precision)
        rows += rows_of(config, hardware, {name: median(values) for name, values in speeds.items()}, target)
    return rows


def speed_of(side: Side, config: TrainConfig, images: int) -> float:
    """Return the images per second of one side, after a first step that sets things up."""
    hardware = set_up_hardware(config, config.precision)
    dataset = load_dataset(config)
    photos = first(images, dataset.split("train"))
    side(config, hardware, dataset.classes, first(config.batch_size, photos))
    return side(config, hardware, dataset.classes, photos)


def rows_of(config: TrainConfig, hardware: Hardware, speeds: dict[str, float], target: float) -> list[Row]:
    speed, precision = f"{speeds['ours']:.0f} images/s", hardware.precision
    return [
        Row(
            f"train {config.model}, batch {config.batch_size}",
            f"{speed} ({precision}, channels_last, batched augmentation)",
            f"{speeds['usual']:.0f} images/s (fp32, NCHW, DataLoader; the usual script)",
            speeds["ours"] / speeds["usual"],
            "x",
            at_least=target,
        ),
        Row(
            "the same",
            speed,
            f"{speeds['fast usual']:.0f} images/s (usual script, {precision} autocast, channels_last)",
            speeds["ours"] / speeds["fast usual"],
            "x",
        ),
        Row(
            "the same: fraction of the bare rate",
            speed,
            f"{speeds['bare']:.0f} images/s (forward, backward and step alone, {precision}, channels_last)",
            100 * speeds["ours"] / speeds["bare"],
            "%",
            at_least=BARE_AT_LEAST,
        ),
    ]


def first(count: int, photos: Split) -> Split:
    return Split(photos.images[:count], photos.labels[:count])


def ours(config: TrainConfig, hardware: Hardware, classes: tuple[str, ...], photos: Split) -> float:
    """Return the images per second of an epoch without validation, which the peers do not have either."""
    mean, std = (values.tolist() for values in mean_std(photos.images))
    network = build_network(config.model, len(classes), dropout=config.dropout)
    classifier = ImageClassifier(network, mean, std)
    training = Training(classifier, classes, photos, first(0, photos), config, hardware)
    start = time.perf_counter()
    training.fit(NoRecorder())  # `tracking_cost` measures tracking
    return len(photos) / (time.perf_counter() - start)


class PhotosOneByOne(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets return them: PIL images, each of which is transformed separately."""

    def __init__(self, photos: Split) -> None:
        self.images = np.array(photos.images)
        self.labels = photos.labels.tolist()
        mean, std = mean_std(photos.images)
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(photos.images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean.tolist(), std.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def usual(
    config: TrainConfig, hardware: Hardware, classes: tuple[str, ...], photos: Split, fast: bool = False
) -> float:
    """Return the images per second of an epoch, counted from the arrival of the first batch.

    Args:
        fast: compute in our precision, with channels_last.
    """
    network: nn.Module = build_network(config.model, len(classes), dropout=config.dropout)
    memory_format = torch.channels_last if fast else torch.contiguous_format
    network.to(hardware.device).to(memory_format=memory_format).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        PhotosOneByOne(photos),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=DATALOADER_WORKERS,
        multiprocessing_context="fork",  # as in a script; spawned workers would import torch again
    )
    start = None
    total_loss, correct = 0.0, 0
    for images, labels in loader:
        start = start or time.perf_counter()
        images = images.to(hardware.device, memory_format=memory_format)
        labels = labels.to(hardware.device)
        optimizer.zero_grad()
        with hardware.autocast() if fast else nullcontext():
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
        correct += int((logits.argmax(1) == labels).sum())
    assert start is not None, "no photos"
    return len(photos) / (time.perf_counter() - start)


def bare(config: TrainConfig, hardware: Hardware, classes: tuple[str, ...], photos: Split) -> float:
    """Return the images per second of forward, backward and step on one batch, repeated."""
    network = build_network(config.model, len(classes), dropout=config.dropout)
    network.to(hardware.device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr, momentum=0.9, nesterov=True)
    batch = first(config.batch_size, photos)
    pixels = torch.tensor(batch.images, device=hardware.device).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor(batch.labels, device=hardware.device)
    steps = -(-len(photos) // len(batch))
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        with hardware.autocast():
            logits = network(pixels)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss.item()
    return steps * len(batch) / (time.perf_counter() - start)


SIDES: Mapping[str, Side] = {
    "ours": ours,
    "usual": usual,
    "fast usual": partial(usual, fast=True),
    "bare": bare,
}

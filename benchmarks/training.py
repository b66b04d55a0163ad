"""Training throughput beside the way most CIFAR-10 scripts train.

Ours is the product: `Training.fit` with the settings that a user gets, from the bytes of the images to the
updated weights. The peer is what kuangliu/pytorch-cifar and its many descendants do: fp32, NCHW, a DataLoader
with two workers that transforms image by image, SGD with momentum. Both train the same network on the same
photos in batches of the same size.

Why it is fair: the sides take turns in one process, so that a machine that slows down slows both, and the
median of the rounds counts. Both have done a step before, so that neither pays for what is set up once. The
start of the peer's workers, which an epoch of 50,000 images hardly notices, is not on its clock.
"""

import time
from collections.abc import Mapping
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.harness import Row, progress
from cifar_mlflow.config import ModelName, TrainConfig, resolve_train_config
from cifar_mlflow.data import Split, load_dataset
from cifar_mlflow.data.summary import mean_std
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.training.device import Hardware, set_up_hardware
from cifar_mlflow.training.loop import Training

# How many times as fast as the peer.
TARGETS: Mapping[ModelName, float] = {"resnet18": 3.0, "vgg16": 2.0}
DATALOADER_WORKERS = 2


def measure(
    targets: Mapping[ModelName, float] = TARGETS,
    images: int = 1024,
    batch_size: int = 128,
    rounds: int = 5,
    threads: int = 0,
) -> list[Row]:
    """One row a network. A round is one pass over so many photos by each side."""
    rows = []
    for model, target in targets.items():
        config = resolve_train_config(
            {
                "model": model,
                "dataset": "sample",
                "epochs": 1,
                "batch_size": batch_size,
                "threads": threads,
            }
        )
        hardware = set_up_hardware(config, config.precision)
        dataset = load_dataset(config)
        photos = first(images, dataset.split("train"))
        for side in (ours, peer):  # once for what both set up at their first step
            side(config, hardware, first(batch_size, photos), dataset.classes)
        speeds: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(rounds):
            speeds["ours"].append(ours(config, hardware, photos, dataset.classes))
            speeds["peer"].append(peer(config, hardware, photos, dataset.classes))
            progress(
                f"  {model} {number + 1}/{rounds}: ours {speeds['ours'][-1]:.1f}, "
                f"peer {speeds['peer'][-1]:.1f} images/s"
            )
        speed, peer_speed = median(speeds["ours"]), median(speeds["peer"])
        rows.append(
            Row(
                what=f"train {model}, batch {batch_size}",
                ours=f"{speed:.0f} images/s ({hardware.precision}, channels_last, batched augmentation)",
                beside=f"{peer_speed:.0f} images/s (fp32, NCHW, DataLoader; the usual script)",
                figure=speed / peer_speed,
                unit="x",
                at_least=target,
            )
        )
    return rows


def first(count: int, photos: Split) -> Split:
    return Split(photos.images[:count], photos.labels[:count])


class NoRecorder:
    """What tracking costs is another benchmark's question."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        pass


def ours(config: TrainConfig, hardware: Hardware, photos: Split, classes: tuple[str, ...]) -> float:
    """Images a second of an epoch without validation, which the peer's epoch has not either."""
    mean, std = (values.tolist() for values in mean_std(photos.images))
    network = build_network(config.model, len(classes), dropout=config.dropout)
    classifier = ImageClassifier(network, mean, std)
    training = Training(classifier, classes, photos, first(0, photos), config, hardware)
    start = time.perf_counter()
    training.fit(NoRecorder())
    return len(photos) / (time.perf_counter() - start)


class PhotosOneByOne(Dataset[tuple[Tensor, int]]):
    """Photos as torchvision's data sets give them: a PIL image, and transforms that are called for each."""

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


def peer(config: TrainConfig, hardware: Hardware, photos: Split, classes: tuple[str, ...]) -> float:
    """Images a second of an epoch, from the moment when the first batch is there."""
    network: nn.Module = build_network(config.model, len(classes), dropout=config.dropout)
    network.to(hardware.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        PhotosOneByOne(photos),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=DATALOADER_WORKERS,
        multiprocessing_context="fork",  # as in a script; here they would import all of torch again
    )
    start = None
    total_loss, correct = 0.0, 0
    for images, labels in loader:
        start = start or time.perf_counter()
        images, labels = images.to(hardware.device), labels.to(hardware.device)
        optimizer.zero_grad()
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
        correct += int((logits.argmax(1) == labels).sum())
    assert start is not None, "no photos"
    return len(photos) / (time.perf_counter() - start)

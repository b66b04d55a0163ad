"""Batches: each image once per epoch, and the same batches wherever a run is resumed."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data import SelectedImages
from cifar_mlflow.data.loader import TrainLoader

PLAIN: dict[str, Any] = {"crop_padding": 0, "flip": "none"}
EVERYTHING: dict[str, Any] = {
    "crop_padding": 2,
    "flip": "random",
    "cutout": 4,
    "brightness": 0.2,
    "contrast": 0.2,
    "mixup": 0.4,
    "cutmix": 1.0,
}


def loader(count: int = 50, **settings: Any) -> TrainLoader:
    """Return a loader of random images; image i has label i."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    images.setflags(write=False)
    config = resolve_train_config({"model": "cnn", "batch_size": 16, "small_images": 0, **settings})
    return TrainLoader(images, np.arange(count, dtype=np.int64), config, count, torch.device("cpu"))


def epoch_of(batches: TrainLoader, epoch: int, first_step: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return images and targets of each batch."""
    return [batch.make() for batch in batches.epoch(epoch, first_step)]


@given(count=st.integers(1, 60), batch_size=st.integers(1, 70), epoch=st.integers(0, 5))
def test_an_epoch_has_each_image_once_in_batches_of_equal_size(
    count: int, batch_size: int, epoch: int
) -> None:
    batches = loader(count, batch_size=batch_size, **PLAIN)
    sizes, seen = [], []
    for _, labels in epoch_of(batches, epoch):
        sizes.append(len(labels))
        seen += labels.tolist()
    assert sorted(seen) == list(range(count))
    assert len(sizes) == batches.steps_per_epoch >= 1
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def imbalanced(**settings: Any) -> TrainLoader:
    """Return a loader of 60 images: 50 of class 0, 7 of class 1, 3 of class 2."""
    images = np.arange(60, dtype=np.uint8).repeat(8 * 8 * 3).reshape(60, 8, 8, 3)
    labels = np.repeat([0, 1, 2], [50, 7, 3])
    config = resolve_train_config({"model": "cnn", "batch_size": 16, "small_images": 0, **PLAIN, **settings})
    return TrainLoader(images, labels, config, 3, torch.device("cpu"))


def test_balanced_sampling_shows_as_many_images_of_each_class() -> None:
    batches = imbalanced(sampling="balanced")
    epochs = [epoch_of(batches, epoch) for epoch in (0, 1)]
    for epoch in epochs:
        labels = torch.cat([labels for _, labels in epoch])
        assert torch.bincount(labels).tolist() == [20, 20, 20]
        seen = (torch.cat([images for images, _ in epoch])[:, 0, 0, 0] * 255).round().long()
        shown = torch.bincount(seen, minlength=60)
        assert shown[:50].max() == 1  # no image of the large class twice
        assert shown[50:57].unique().tolist() == [2, 3]
        assert shown[57:].unique().tolist() == [6, 7]
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])
    again = epoch_of(imbalanced(sampling="balanced"), 1, first_step=2)
    for (images, labels), (same, same_labels) in zip(epochs[1][2:], again, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, same_labels)


def test_balancing_weights_are_inverse_to_the_number_of_images() -> None:
    weights = imbalanced().balancing_weights
    assert weights.tolist() == pytest.approx([60 / (3 * count) for count in (50, 7, 3)])
    assert float(weights[imbalanced().labels].mean()) == pytest.approx(1)


def test_images_match_their_labels_and_are_channels_last() -> None:
    batches = loader(**PLAIN)
    for images, labels in epoch_of(batches, 0):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal((images * 255).round().byte(), batches.images[labels].permute(0, 3, 1, 2))


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = [
        tuple(label for _, labels in epoch_of(loader(seed=seed, **PLAIN), epoch) for label in labels.tolist())
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(orders)) == 3


def test_a_resumed_epoch_is_bit_equal() -> None:
    straight = epoch_of(loader(**EVERYTHING), 3)
    resumed = epoch_of(loader(**EVERYTHING), 3, first_step=2)
    assert len(resumed) == len(straight) - 2
    for (images, targets), (images_again, targets_again) in zip(straight[2:], resumed, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(targets, targets_again)


def test_selected_images_are_read_from_the_array_that_holds_them() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    positions, labels = np.array([3, 39, 0, 8, 21, 20]), np.arange(6)
    config = resolve_train_config({"model": "cnn", "batch_size": 4, "cutout": 2})
    ways = [
        TrainLoader(given, labels, config, 6, torch.device("cpu"))
        for given in (images[positions], SelectedImages(images, positions))
    ]
    for one, other in zip(*(epoch_of(way, 0) for way in ways), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert ways[1].images.data_ptr() == images.ctypes.data  # not copied


@pytest.mark.parametrize("mixing", [{"cutmix": 0.0}, {"mixup": 0.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_parts_of_a_batch_are_those_of_the_whole_batch(mixing: dict[str, Any]) -> None:
    """Processes that share a batch rely on this, and so does gradient accumulation."""
    for batch in loader(**EVERYTHING | mixing).epoch(1):
        images, targets = batch.make()
        for start, stop in ((0, 5), (5, 6), (6, len(batch))):
            some_images, some_targets = batch.make(start, stop)
            torch.testing.assert_close(some_images, images[start:stop], rtol=0, atol=1e-6)
            assert torch.equal(some_targets, targets[start:stop])


def test_mixed_targets_are_soft_and_images_stay_in_range() -> None:
    for images, targets in epoch_of(loader(**EVERYTHING), 0):
        assert targets.shape == (len(images), 50)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))
        assert images.min() >= 0
        assert images.max() <= 1


@pytest.mark.parametrize("only", ["mixup", "cutmix"])
def test_mixup_and_cutmix_work_alone(only: str) -> None:
    kinds = {"mixup": 0, "cutmix": 0}
    batches = loader(**PLAIN | {only: 1.0})
    for epoch in range(3):
        for images, _ in epoch_of(batches, epoch):
            pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)
            known = (batches.images.reshape(-1, 3).float() / 255).unique(dim=0)
            together = torch.cat([known, pixels]).unique(dim=0)
            kinds["cutmix" if len(together) == len(known) else "mixup"] += 1
    assert kinds[only] == sum(kinds.values())


def test_alternating_flip_mirrors_each_image_in_every_second_epoch() -> None:
    batches = loader(crop_padding=0, flip="alternating")

    def mirrored(epoch: int) -> dict[int, bool]:
        result = {}
        for images, labels in epoch_of(batches, epoch):
            for image, label in zip(images, labels.tolist(), strict=True):
                upright = batches.images[label].permute(2, 0, 1).float() / 255
                result[label] = not torch.equal(image, upright)
                assert torch.equal(image, upright.flip(2) if result[label] else upright)
        return result

    first, second, third = mirrored(0), mirrored(1), mirrored(2)
    assert all(first[label] != second[label] for label in first)
    assert first == third
    assert 0.2 < sum(first.values()) / len(first) < 0.8


def test_cutout_fills_with_the_mean_of_the_images() -> None:
    batches = loader(**PLAIN, cutout=3)
    mean = (batches.images.double().mean(dim=(0, 1, 2)) / 255).float()
    images, _ = next(batches.epoch(0)).make()
    blanked = ((images - mean.view(1, 3, 1, 1)).abs() < 1e-5).all(dim=1)
    assert (blanked.sum(dim=(1, 2)) == 9).all()


def test_small_images_are_used_in_the_first_epochs_only() -> None:
    batches = loader(epochs=4, small_images=0.5, **PLAIN)
    first = [next(batches.epoch(epoch)).make()[0] for epoch in range(4)]
    assert [images.shape[2:] for images in first] == [(6, 6), (7, 7), (8, 8), (8, 8)]
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in first)
    assert min(images.min() for images in first) >= 0
    assert max(images.max() for images in first) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory of a process")
def test_cutout_does_not_hold_all_images_in_memory(tmp_path: Path) -> None:
    import resource

    shape = (16_000, 64, 64, 3)  # 188 MiB
    source = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, shape)
    images = SelectedImages(source, np.arange(1, len(source)))
    config = resolve_train_config({"model": "cnn", "cutout": 8})
    (used,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(used) * 2**10 + 100 * 2**20, hard))
    try:
        batches = TrainLoader(images, np.zeros(len(images), np.int64), config, 2, torch.device("cpu"))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert batches.mean_colour is not None
    assert batches.mean_colour.tolist() == [0, 0, 0]

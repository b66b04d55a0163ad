"""The training loop: seeds, interruptions, divergence and early stopping."""

import platform
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.data import Split
from cifar_mlflow.errors import TrainingDivergedError
from cifar_mlflow.interrupt import Interrupted, StopRequest
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.settings import validate
from cifar_mlflow.training.checkpoint import CheckpointFile
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.distributed import World
from cifar_mlflow.training.loop import Training

CLASSES = ("bright", "dark")
EVERYTHING_THAT_HAS_STATE = {"dropout": 0.3, "ema": 0.9, "cutout": 8, "flip": "alternating"}


class Recorded:
    """A recorder that keeps the metrics."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))


class StopAtStep(StopRequest):
    """Requests a stop after a number of steps, as a signal would."""

    def __init__(self, steps: int) -> None:
        self._steps_left = steps

    @property
    def signum(self) -> int | None:  # type: ignore[override]  # the loop only reads it, once per step
        self._steps_left -= 1
        return signal.SIGTERM if self._steps_left <= 0 else None


def images(seed: int, count: int, rare: int | None = None) -> Split:
    """Return images of two classes; the second has `rare` of them, by default half."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2 if rare is None else (np.arange(count) >= count - rare).astype(int)
    pixels = rng.integers(0, 200, (count, 32, 32, 3)) + 55 * (1 - labels)[:, None, None, None]
    return Split(pixels.astype(np.uint8), labels.astype(np.int64))


def make_training(world: World | None = None, rare: int | None = None, **settings: Any) -> Training:
    small = {"model": "cnn", "width": 0.25, "epochs": 3, "batch_size": 16, "threads": 1, "lr": 0.01}
    config = validate(TrainConfig, {**small, **settings})
    hardware = set_up_hardware(config, config.precision)
    torch.manual_seed(config.seed)
    network = build_network(config.model, len(CLASSES), width=config.width, dropout=config.dropout)
    classifier = ImageClassifier(network, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Training(classifier, CLASSES, images(1, 48, rare), images(2, 20), config, hardware, world)


def weights(classifier: ImageClassifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_weights_depend_on_the_seed_only() -> None:
    first = weights(make_training(seed=7).fit(Recorded()))
    assert_equal(first, weights(make_training(seed=7).fit(Recorded())))
    other = weights(make_training(seed=8).fit(Recorded()))
    assert not torch.equal(first["network.head.weight"], other["network.head.weight"])


@pytest.mark.parametrize("steps", [3, 4], ids=["end of an epoch", "within an epoch"])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "mixup": 0.5, **EVERYTHING_THAT_HAS_STATE},
        {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine", **EVERYTHING_THAT_HAS_STATE},
        {"optimizer": "muon", "cutmix": 0.5, **EVERYTHING_THAT_HAS_STATE},
        {"patience": 3},
        {"sampling": "balanced", "optimizer": "adamw", "lr": 1e-3},
        pytest.param(
            {"precision": "fp16", "accumulate": 2, "activation_checkpointing": True, "dropout": 0.3},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda settings: settings.get("optimizer", next(iter(settings))),
)
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, settings: dict[str, Any], steps: int
) -> None:
    uninterrupted = make_training(**settings)
    expected = weights(uninterrupted.fit(Recorded()))

    checkpoint = CheckpointFile(tmp_path / "checkpoint.pt")
    with pytest.raises(Interrupted):
        make_training(**settings).fit(Recorded(), checkpoint, StopAtStep(steps))
    torch.rand(5)  # another process would not have this one's random state
    resumed = make_training(**settings)
    resumed.load_state_dict(checkpoint.load())
    assert (resumed.epoch, resumed.step) == ((0, 3) if steps == 3 else (1, 1))
    assert_equal(expected, weights(resumed.fit(Recorded(), checkpoint)))
    timeless = [{"seconds", "images_per_second"} ^ row.keys() for row in resumed.history]
    for row, other, names in zip(resumed.history, uninterrupted.history, timeless, strict=True):
        assert {name: row[name] for name in names} == {name: other[name] for name in names}


def test_an_infinite_loss_names_the_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    checkpoint = CheckpointFile(tmp_path / "checkpoint.pt")
    training = make_training(epochs=1)
    training.fit(Recorded(), checkpoint)
    good = checkpoint.load()

    broken = make_training(epochs=2)
    broken.load_state_dict(good)
    with torch.no_grad():
        next(broken.classifier.network.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match=r"nan at step 4 \(epoch 2\) with lr=0.01.*lower --lr"):
        broken.fit(Recorded(), checkpoint)
    assert checkpoint.load()["epoch"] == good["epoch"] == 1


def test_weights_that_became_infinite_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    """The loss of that step was computed before it, and is finite."""
    checkpoint = CheckpointFile(tmp_path / "checkpoint.pt")
    broken = make_training(epochs=1)

    def spoil(*_: Any) -> None:
        if broken.step == 2:
            torch.nn.init.constant_(next(broken.classifier.parameters()), np.nan)

    broken.optimizers[0].register_step_post_hook(spoil)
    with pytest.raises(TrainingDivergedError, match=r"weights became NaN or infinite at step 3 \(epoch 1\)"):
        broken.fit(Recorded(), checkpoint)
    assert not checkpoint.path.exists()


def test_patience_stops_early_and_keeps_the_weights_with_the_lowest_validation_loss() -> None:
    training = make_training(epochs=40, patience=2, lr=0.3, schedule="constant", warmup=0)
    classifier = training.fit(Recorded())
    losses = [row["val/loss"] for row in training.history]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 2 < 40
    again = make_training(epochs=40, patience=2, lr=0.3, schedule="constant", warmup=0)
    again.config = again.config.model_copy(update={"epochs": 40})
    expected = weights(_fit_epochs(again, best + 1))
    assert_equal(expected, weights(classifier))


def _fit_epochs(training: Training, epochs: int) -> ImageClassifier:
    """Return the weights after some epochs, without early stopping."""
    with pytest.raises(Interrupted):
        training.fit(Recorded(), None, StopAtStep(epochs * training.loader.steps_per_epoch))
    return training.evaluated


def test_each_epoch_is_recorded_with_its_metrics() -> None:
    recorded = Recorded()
    make_training(epochs=2).fit(recorded)
    assert [step for step, _ in recorded.rows] == [1, 2]
    for _, metrics in recorded.rows:
        assert metrics.keys() == {
            "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/f1_macro", "lr",
            "images_per_second",
        }  # fmt: skip
        assert all(np.isfinite(value) for value in metrics.values())


def test_the_averaged_weights_are_kept() -> None:
    training = make_training(ema=0.9)
    kept = training.fit(Recorded())
    plain = make_training().fit(Recorded())
    assert_equal(weights(training.classifier), weights(plain))
    assert not torch.equal(weights(kept)["network.head.weight"], weights(plain)["network.head.weight"])


def test_gradient_clipping_bounds_a_step() -> None:
    free = make_training(epochs=1, lr=0.01, warmup=0)
    clipped = make_training(epochs=1, lr=0.01, warmup=0, grad_clip=1e-6)
    head = "network.head.weight"
    start = weights(clipped.classifier)[head]
    moved = [(weights(t.fit(Recorded()))[head] - start).abs().max().item() for t in (free, clipped)]
    # weight decay still moves the clipped ones, by lr * decay * weight
    assert moved[1] < 0.1 * moved[0]


def page_faults_of_a_large_tensor_after_others() -> int:
    make_training()
    for _ in range(3):
        torch.empty(2**26, dtype=torch.uint8).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**26, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_use_the_memory_of_freed_ones() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as new_process:
        faults = new_process.submit(page_faults_of_a_large_tensor_after_others).result()
    assert faults < 100  # of 16,384 pages

"""The plan of a training within a time budget: a function of the measured times, tested with chosen ones."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cifar_mlflow.config import MOST_EPOCHS, TrainConfig
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.settings import validate
from cifar_mlflow.training.plan import Speed, lower_batch_size, measure, plan_epochs
from tests.training.test_loop import make_training

# 10 steps of 2 s or, with small images, 1 s; 5 s after each epoch; 3 s at the start.
SPEED = Speed(start=3, step=2, small_step=1, epoch_end=5)
# An epoch at 28 of 32 pixels, between those at 24 and 32 by the number of pixels.
MEDIUM = 10 * (1 + (28**2 - 24**2) / (32**2 - 24**2)) + 5


@pytest.mark.parametrize(
    ("images", "batch_size", "accumulate", "lowered"),
    [
        (8_000, 1_000, 1, 1_000),  # 8 steps
        (7_000, 1_000, 1, 875),
        (300, 1_000, 1, 37),
        (100, 128, 1, 32),
        (20, 128, 1, 32),
        (20, 16, 1, 16),  # smaller already
        (300, 128, 50, 100),  # two processes with 50 parts each
    ],
)
def test_a_batch_size_that_leaves_few_steps_is_lowered(
    images: int, batch_size: int, accumulate: int, lowered: int
) -> None:
    config = validate(TrainConfig, {"batch_size": batch_size, "accumulate": accumulate})
    changed = lower_batch_size(config, images, 2)
    assert changed == config.model_copy(update={"batch_size": lowered})


@pytest.mark.parametrize(
    ("epochs", "small_images", "seconds"),
    [
        (1, 0.0, 3 + 25),
        (4, 0.0, 3 + 4 * 25),
        (4, 0.5, 3 + 15 + MEDIUM + 2 * 25),
        (5, 0.5, 3 + 2 * 15 + MEDIUM + 2 * 25),  # the epochs before 0.5 * 5, counted from 0: three
        (4, 1.0, 3 + 2 * 15 + 2 * MEDIUM),
    ],
)
def test_the_time_of_a_training_by_hand(epochs: int, small_images: float, seconds: float) -> None:
    assert SPEED.seconds(epochs, 10, small_images) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "small_images", "epochs"),
    [(27.9, 0.0, 0), (28, 0.0, 1), (103, 0.0, 4), (102.9, 0.0, 3), (102.7, 0.5, 5), (1e9, 0.0, MOST_EPOCHS)],
)
def test_the_epochs_within_a_time_by_hand(seconds: float, small_images: float, epochs: int) -> None:
    assert SPEED.epochs_within(seconds, 10, small_images) == epochs


times = st.floats(1e-3, 100)


@given(times, times, times, times, st.integers(1, 500), st.floats(0, 1), st.floats(1, 1e6))
def test_one_more_epoch_would_exceed_the_budget(
    start: float, step: float, small_step: float, epoch_end: float, steps: int, small: float, budget: float
) -> None:
    speed = Speed(start, step, small_step, epoch_end)
    epochs = speed.epochs_within(budget, steps, small)
    if epochs:
        assert speed.seconds(epochs, steps, small) <= budget
    if epochs < MOST_EPOCHS:
        assert speed.seconds(epochs + 1, steps, small) > budget


@pytest.mark.parametrize(
    "settings",
    [{}, {"small_images": 0.5, "ema": 0.9}, {"precision": "fp16", "accumulate": 2}],
    ids=["plain", "small images", "fp16"],
)
def test_each_part_of_an_epoch_is_measured(settings: dict[str, Any]) -> None:
    speed = measure(make_training(epochs=MOST_EPOCHS, **settings), 0.01)
    assert all(value > 0 for value in dataclasses.astuple(speed)[1:])
    assert (speed.step == speed.small_step) is ("small_images" not in settings)


@pytest.mark.parametrize("small_images", [0.5, 1.0])
def test_steps_are_measured_by_the_size_of_their_images(
    small_images: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_training(epochs=MOST_EPOCHS, small_images=small_images)
    clock = 0  # a step takes a second per pixel of an image
    monkeypatch.setattr("time.perf_counter", lambda: clock)

    def advance(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal clock
        clock += args[0].shape[-2] * args[0].shape[-1]

    training.classifier.register_forward_pre_hook(advance)
    speed = measure(training, 1)
    assert (speed.start, speed.step, speed.small_step) == pytest.approx((0, 32**2, 24**2))


def test_a_budget_too_short_for_one_epoch_is_refused_with_one_that_suffices() -> None:
    with pytest.raises(UsageError, match=r"--minutes 1e-05 is too short for one epoch of cnn") as error:
        plan_epochs(make_training(epochs=MOST_EPOCHS), 1e-5)
    smallest = float(str(error.value).partition("give --minutes ")[2].split()[0])
    assert plan_epochs(make_training(epochs=MOST_EPOCHS), smallest) >= 1


def test_an_unwritable_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    training = make_training(epochs=MOST_EPOCHS, cache_dir=tmp_path / "file")
    with pytest.raises(CifarError, match=r"file: cannot be written .*choose another place with --cache-dir"):
        plan_epochs(training, 0.01)

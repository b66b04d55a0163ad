"""The line of an epoch."""

import itertools

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.training.progress import epoch_line


def of(epochs: int, small_images: float = 0.0) -> TrainConfig:
    return TrainConfig(epochs=epochs, small_images=small_images)


def row(epoch: int, accuracy: float | None, seconds: float) -> dict[str, float]:
    metrics = {"epoch": epoch, "seconds": seconds, "train/loss": 1.98765, "train/accuracy": 0.2514}
    return metrics if accuracy is None else {**metrics, "val/loss": 2.5, "val/accuracy": accuracy}


def test_an_epoch_has_percent_the_best_its_time_and_the_time_left() -> None:
    history = [row(1, 0.31, 20.0), row(2, 0.4567, 32.34), row(3, 0.4567, 44.0)]
    assert epoch_line(history[:2], of(30)) == (
        "epoch 2/30   train loss 1.988  25.1 %  val loss 2.500  45.7 % best   12.3 s/epoch  8 min left"
    )
    assert "best" not in epoch_line(history, of(30))
    assert "left" not in epoch_line(history, of(3))


def test_lines_are_aligned_and_fit_into_100_columns() -> None:
    accuracies = (0.5, 1.0, 0.0345)
    rows = [row(998 + i, accuracy, 300.0 * (i + 1)) for i, accuracy in enumerate(accuracies)]
    lines = [epoch_line(rows[:count], of(1000)) for count in (1, 2, 3)]
    assert max(map(len, lines)) <= 100
    for column in ("train", "val", "s/epoch"):
        assert len({line.index(column) for line in lines}) == 1
    short = epoch_line([row(9, 0.5, 27.0)], of(1000))
    assert short.index("train") == lines[0].index("train")


def test_without_validation_there_is_no_validation_column() -> None:
    rows = [row(epoch, None, seconds) for epoch, seconds in zip((1, 2), itertools.count(1.5, 2.0))]
    assert epoch_line(rows, of(2)) == "epoch 2/2  train loss 1.988  25.1 %    2.0 s/epoch"


def test_one_slow_epoch_hardly_changes_the_time_left() -> None:
    seconds = itertools.accumulate([300.0, 60.0, 60.0, 60.0, 60.0, 110.0])
    history = [row(epoch, None, total) for epoch, total in enumerate(seconds, 1)]
    assert epoch_line(history[:-1], of(16)).endswith("20 min left")  # the mean of five epochs is 108 s
    assert epoch_line(history, of(16)).endswith("12 min left")  # of the last five, 70 s


def test_the_time_left_knows_that_epochs_with_small_images_are_shorter() -> None:
    # Epochs at 24, 28 and 32 pixels have 9/16, 49/64 and all of the pixels.
    history = [row(epoch, None, total) for epoch, total in enumerate((9.0, 18.0, 30.25, 42.5), 1)]
    assert epoch_line(history, of(8, small_images=0.5)).endswith("64 s left")
    history.append(row(5, None, 42.5 + 16.0))
    assert epoch_line(history, of(8, small_images=0.5)).endswith("48 s left")

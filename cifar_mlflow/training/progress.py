"""The progress of a training: how much is done, and the log line with the result of an epoch."""

from collections.abc import Mapping, Sequence

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.console import duration, percent
from cifar_mlflow.data.loader import stages

AVERAGED_EPOCHS = 5


def work_until(epoch: float, config: TrainConfig) -> float:
    """Return the work from the start to a point within the epochs, in epochs with images of full size.

    The time of a step with small images is to that of a step with full ones about as the numbers of pixels.
    """
    work = start = 0.0
    for stage in stages(config.epochs, config.small_images):
        work += stage.scale**2 * max(0.0, min(epoch, stage.stop) - start)
        start = stage.stop
    return work


def epoch_line(history: Sequence[Mapping[str, float]], config: TrainConfig) -> str:
    """Return the line of the last epoch in `history`, in columns; it fits into 100 characters.

    Args:
        history: metrics by name, with `epoch` and the `seconds` since the start, for each completed epoch.
    """
    *earlier, last = history
    epoch, epochs = int(last["epoch"]), config.epochs
    columns = [f"epoch {f'{epoch}/{epochs}'.ljust(2 * len(str(epochs)) + 1)}"]
    for split in ("train", "val"):
        if f"{split}/loss" in last:
            columns.append(f"{split} loss {last[f'{split}/loss']:.3f} {percent(last[f'{split}/accuracy'])}")
    if "val/accuracy" in last:
        is_best = all(last["val/accuracy"] > row["val/accuracy"] for row in earlier)
        columns[-1] += " best" if is_best else 5 * " "
    seconds = last["seconds"] - (earlier[-1]["seconds"] if earlier else 0.0)
    columns.append(f"{seconds:5.1f} s/epoch")
    if epoch < epochs:
        # The mean of some epochs: other work on the machine slows down single ones.
        first = max(0, len(history) - AVERAGED_EPOCHS)
        spent = last["seconds"] - (history[first - 1]["seconds"] if first else 0.0)
        done, all_work = (work_until(point, config) for point in (epoch, epochs))
        seconds_per_epoch = spent / (done - work_until(epoch - len(history[first:]), config))
        columns.append(f"{duration((all_work - done) * seconds_per_epoch)} left")
    return "  ".join(columns)

"""The log line with the result of an epoch."""

from collections.abc import Mapping, Sequence

from cifar_mlflow.console import duration, percent

AVERAGED_EPOCHS = 5


def epoch_line(history: Sequence[Mapping[str, float]], epochs: int) -> str:
    """Return the line of the last epoch in `history`, in columns; it fits into 100 characters.

    Args:
        history: metrics by name, with `epoch` and the `seconds` since the start, for each completed epoch.
        epochs: planned number of epochs.
    """
    *earlier, last = history
    epoch = int(last["epoch"])
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
        times = [0.0, *(row["seconds"] for row in history)][-AVERAGED_EPOCHS - 1 :]
        mean = (times[-1] - times[0]) / (len(times) - 1)
        columns.append(f"{duration((epochs - epoch) * mean)} left")
    return "  ".join(columns)

"""`python -m benchmarks record`: the recipe `fast` beside airbench94_muon.py on the same machine and images.

The two train in turns, seed by seed, each in a fresh process with the same number of threads. Both train on
all training images and evaluate six views of each test image. Our time is the wall-clock time from the first
batch to the last logit of the test-time augmentation; it includes tracking and checkpoints. The time of the
peer is that of its own clock (see `benchmarks.airbench`). Both leave out the evaluation without augmentation:
ours follows, and the peer stops its clock.

Each finished training is a row of results.csv. A second start keeps the rows of the peer that have the same
file, number of epochs, images and hardware, and our rows that also have the same settings and commit.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, ParamSpec
from unittest.mock import patch

import click
import mlflow

from benchmarks import airbench
from benchmarks.airbench import Airbench, Script, patched
from benchmarks.harness import Row, conditions, in_fresh_process, markdown, progress
from benchmarks.results import (
    RESULTS,
    SECONDS_METRIC,
    Result,
    commit_of,
    data_name,
    percent,
    read_results,
    result_of,
    settings_digest,
    write_results,
)
from cifar_mlflow import pipeline
from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.data import ImageDataset, load_dataset
from cifar_mlflow.environment import git_state
from cifar_mlflow.evaluation import report
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.training.device import set_up_hardware
from cifar_mlflow.training.loop import Training

SETTINGS = {"recipe": "fast", "val_size": 0}
TIME_AT_MOST = 0.7
P = ParamSpec("P")


@click.command()
@click.option("--peer", type=click.Path(path_type=Path), required=True, help="The published script.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds per side.")
@click.option(
    "--epochs", type=click.IntRange(1), default=airbench.EPOCHS, show_default=True, help="Epochs of the peer."
)
def record(peer: Path, seeds: int, epochs: int) -> None:
    """Train the recipe `fast` and airbench94_muon.py in turns on the CPU; add rows to results.csv."""
    before = conditions()
    rows = measure(Script(peer, epochs), seeds)
    command = f"python -m benchmarks record --seeds {seeds} --epochs {epochs}"
    click.echo(f"`{command}` on {before}\n\n{markdown(rows)}")


def measure(script: Script, seeds: int = 3, results: Path = RESULTS, **settings: Any) -> list[Row]:
    """Run the trainings that `results` lacks, add their rows, and return the comparison.

    Args:
        settings: settings of our training that differ from `SETTINGS`.
    """
    patched(script, "cpu")  # refuses another file before anything else
    peers: list[Result] = []
    ours: list[Result] = []
    for seed in range(seeds):
        config = resolve_train_config({**SETTINGS, "device": "cpu", **settings, "seed": seed})
        peers.append(kept_or_trained(results, identity_of_peer(script, config), train_peer, script, config))
        ours.append(kept_or_trained(results, identity_of_ours(config), train_ours, config))
    return compare(ours, peers)


def kept_or_trained(
    file: Path, identity: tuple[str, ...], train: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result:
    """Return the row of `file` with this identity; if there is none, train in a fresh process and add it."""
    rows = read_results(file)
    kept = [row for row in rows if row.identity == identity and row.seconds is not None]
    result = kept[0] if kept else in_fresh_process(train, *args, **kwargs)
    progress(f"  {'kept' if kept else 'trained'}: {result}")
    if not kept:
        write_results([*rows, result], file)
    return result


def train_peer(script: Script, config: TrainConfig) -> Result:
    """Train the peer in this process, with the threads, the images and the seed of our training."""
    device = set_up_hardware(config, config.precision).device.type
    dataset = load_dataset(config)
    with tempfile.TemporaryDirectory() as folder:
        trained = Airbench(script, dataset, Path(folder), device).train(config.seed)
    return peer_result(script, config, dataset, trained)


def train_ours(config: TrainConfig) -> Result:
    """Run `cifar-mlflow train` in this process, and log its time as a metric of its run."""
    with stopwatch() as seconds:
        run_id = pipeline.train(config).run_id
    client = mlflow.MlflowClient()
    client.log_metric(run_id, SECONDS_METRIC, seconds())
    return result_of(client.get_run(run_id))


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Measure a training in the block; yield a function that returns its seconds afterwards."""
    start = end = 0.0
    fit = Training.fit

    def timed_fit(*arguments: Any, **options: Any) -> Any:
        nonlocal start
        start = time.perf_counter()
        return fit(*arguments, **options)

    def timed_predict(*arguments: Any, **options: Any) -> Any:
        nonlocal end
        logits = predict_logits(*arguments, **options)  # an array: a GPU has finished
        if options.get("tta", "none") != "none":
            end = time.perf_counter()
        return logits

    with patch.object(Training, "fit", timed_fit), patch.object(report, "predict_logits", timed_predict):
        yield lambda: end - start
    assert 0 < start < end, "no test-time augmentation followed the training"


def peer_result(
    script: Script, config: TrainConfig, dataset: ImageDataset, trained: airbench.Trained
) -> Result:
    """Return the row of a training of the peer."""
    hardware = set_up_hardware(config, config.precision)
    on_cpu = hardware.device.type == "cpu"
    length = f" --epochs {script.epochs}" if script.epochs != airbench.EPOCHS else ""
    return Result(
        name=airbench.NAME,
        model="its own",
        data=data_name(dataset.name, dataset.digest),
        seed=config.seed,
        settings=script.digest,
        accuracy=trained.accuracy,
        accuracy_tta=trained.accuracy_tta,
        f1_macro=None,
        ece=None,
        train_seconds=trained.train_seconds,
        seconds=trained.seconds,
        hardware=f"{hardware.name}, {'bf16' if on_cpu else 'fp16'}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=script.digest,
        run_id="",
        command=f"python -m benchmarks {'record' if on_cpu else 'gpu'} --peer {airbench.NAME}.py{length}",
    )


def identity_of_peer(script: Script, config: TrainConfig) -> tuple[str, ...]:
    """Return the identity of the row that this training of the peer will have."""
    untrained = airbench.Trained(0, 0, 0, 0)
    return peer_result(script, config, load_dataset(config), untrained).identity


def identity_of_ours(config: TrainConfig) -> tuple[str, ...]:
    """Return the identity of the row that this training of ours will have."""
    hardware = set_up_hardware(config, config.precision)
    dataset = load_dataset(config)
    return (
        str(config.recipe),
        config.model,
        data_name(dataset.name, dataset.digest),
        settings_digest(config.model_dump(mode="json")),
        f"{hardware.name}, {hardware.precision}",
        str(config.seed),
        commit_of(git_state()),
    )


def compare(ours: Sequence[Result], peers: Sequence[Result]) -> list[Row]:
    """Return the rows of the table: accuracy and time of ours beside the peer's, means over the seeds."""
    count = f"mean of {len(ours)} seeds" if len(ours) > 1 else "one seed"
    what = f"{ours[0].name} on {ours[0].data}, {ours[0].hardware}, {count}"
    accuracy, peer_accuracy = (fmean(row.accuracy_tta or 0 for row in side) for side in (ours, peers))
    seconds, peer_seconds = (fmean(row.seconds or 0 for row in side) for side in (ours, peers))
    return [
        Row(
            f"{what}: test accuracy with test-time augmentation, above the peer's",
            both_accuracies(ours),
            f"{both_accuracies(peers)} ({peers[0].name})",
            100 * (accuracy - peer_accuracy),
            "points",
            at_least=0,
        ),
        Row(
            "the same: from the first batch to the last logit",
            f"{each(ours)} s",
            f"{each(peers)} s",
            seconds / peer_seconds,
            "of its time",
            at_most=TIME_AT_MOST,
        ),
    ]


def both_accuracies(results: Sequence[Result]) -> str:
    with_tta, without = [row.accuracy_tta for row in results], [row.accuracy for row in results]
    return f"{percent(with_tta)} (without: {percent(without)})"


def each(results: Sequence[Result]) -> str:
    """Return the mean time in seconds and that of each seed."""
    seconds = [row.seconds or 0.0 for row in results]
    digits = 0 if fmean(seconds) > 100 else 2
    return f"{fmean(seconds):,.{digits}f} ({', '.join(f'{value:,.{digits}f}' for value in seconds)})"

"""`python -m benchmarks gpu`: the recipe `fast` beside airbench94_muon.py on one GPU, in at most ten minutes.

The two train in turns, seed by seed, in one process: both networks are compiled, both keep all images on the
GPU, and ours is tracked in MLflow. Each trains once beforehand, so that no compilation is timed. Times are
measured as in `python -m benchmarks record`. Ours computes in bf16, or before compute capability 8.0 in fp16
with a scaled loss; the published script always computes in fp16.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.airbench import Airbench, Script
from benchmarks.harness import Row, conditions, markdown, progress
from benchmarks.record import SETTINGS, compare, peer_result, train_ours
from benchmarks.results import RESULTS, Result, read_results, write_results
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data import load_dataset
from cifar_mlflow.errors import UsageError
from cifar_mlflow.training.device import set_up_hardware

WARM_UP_SEED = 1_000_000


@click.command()
@click.option("--peer", type=click.Path(path_type=Path), required=True, help="The published script.")
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True, help="Seeds per side.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help="Time limit."
)
def gpu(peer: Path, seeds: int, minutes: float) -> None:
    """Train the recipe `fast` and airbench94_muon.py in turns on a GPU; add rows to results.csv."""
    if not torch.cuda.is_available():
        raise UsageError("gpu: torch finds no CUDA device; `python -m benchmarks record` compares on the CPU")
    before = conditions()
    rows = measure(Script(peer), seeds, minutes, device="cuda", compile=True)
    command = f"python -m benchmarks gpu --seeds {seeds} --minutes {minutes:g}"
    click.echo(f"`{command}` on {before}\n\n{markdown(rows)}")


def measure(
    script: Script, seeds: int = 10, minutes: float = 10, results: Path = RESULTS, **settings: Any
) -> list[Row]:
    """Train in turns until the last seed or until the next turn could exceed the time; return the comparison.

    Args:
        settings: settings of our training that differ from `record.SETTINGS`.
    """
    start = time.monotonic()
    peers: list[Result] = []
    ours: list[Result] = []
    config = resolve_train_config({**SETTINGS, **settings})
    device = set_up_hardware(config, config.precision).device.type
    dataset = load_dataset(config)
    with tempfile.TemporaryDirectory() as folder:
        peer = Airbench(script, dataset, Path(folder), device)
        longest = 0.0
        for seed in (WARM_UP_SEED, *range(seeds)):
            turn = time.monotonic()
            if ours and turn + longest - start > 60 * minutes:
                progress(f"  {len(ours)} of {seeds} seeds fit into {minutes:g} minutes")
                break
            config = config.model_copy(update={"seed": seed})
            pair = peer_result(script, config, dataset, peer.train(seed)), train_ours(config)
            if seed != WARM_UP_SEED:
                longest = max(longest, time.monotonic() - turn)
                for side, result in zip((peers, ours), pair, strict=True):
                    side.append(result)
                    progress(f"  {result}")
                write_results([*read_results(results), *pair], results)
    return compare(ours, peers)

"""A training on several processes has the result of one process: real processes, started by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_mlflow.training.distributed import World
from tests.training.distributed_worker import muon_flops, train

pytestmark = pytest.mark.slow

# 48 images in batches of 16: three steps. Not with the network `fast`: a rounding error can move the maximum
# that its pooling picks, which changes gradients by more than the tolerance, in one process, too.
ONE_EPOCH = {"epochs": 1, "precision": "fp32", "warmup": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {**ONE_EPOCH},
    "everything": {
        **ONE_EPOCH, "dropout": 0.3, "ema": 0.9, "mixup": 0.5, "cutmix": 0.5, "cutout": 8, "grad_clip": 0.5,
        "brightness": 0.2, "flip": "alternating", "label_smoothing": 0.1,
    },
    "uneven shares": {**ONE_EPOCH, "batch_size": 15, "optimizer": "adamw", "lr": 1e-3, "cutmix": 0.5},
    "parts": {**ONE_EPOCH, "accumulate": 3, "dropout": 0.3},
    "activation checkpointing": {**ONE_EPOCH, "activation_checkpointing": True},
    "small images": {**ONE_EPOCH, "small_images": 1.0, "flip": "none"},
    "three epochs": {"epochs": 3, "precision": "fp32", "patience": 3},
}  # fmt: skip
MUON = {"muon": {**ONE_EPOCH, "model": "fast", "optimizer": "muon", "lr": 0.1}}


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return subprocess.run(
        [*command, str(processes), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of all cases on two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "cases.json").write_text(json.dumps(CASES | MUON))
    files = (str(folder / "cases.json"), str(folder / "results.pt"))
    done = torchrun(2, "-m", "tests.training.distributed_worker", *files)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = torch.load(folder / "results.pt")
    return results


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_weights_of_one(on_two: dict[str, Any], case: str) -> None:
    one, two = train(World.alone(), CASES[case]), on_two[case]
    # Sums in another order differ in the last digit; each step, and each operation in it, adds to that.
    tolerance = 1e-5 if CASES[case]["epochs"] == 1 else 1e-3
    relative = 0.0 if case == "plain" else 10 * tolerance
    torch.testing.assert_close(two["weights"], one["weights"], rtol=relative, atol=tolerance)
    assert torch.equal(two["rng"], one["rng"])  # so that either continues a checkpoint of the other
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"seconds", "images_per_second"}:
            assert theirs[name] == pytest.approx(mine[name], abs=10 * tolerance), name


def test_threads_of_the_exchanges_end_with_the_world_although_a_model_is_left(on_two: dict[str, Any]) -> None:
    """A thread that frees tensors after the interpreter has ended aborts the process."""
    inside, after = on_two["gloo threads"]
    assert after < inside


def test_muon_divided_among_processes_takes_the_steps_of_one(on_two: dict[str, Any]) -> None:
    """Its iteration may be in bf16, which turns differences of the last digit into larger ones."""
    one, two = train(World.alone(), MUON["muon"]), on_two["muon"]
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1.5e-2)


def test_each_process_computes_a_part_of_the_steps_of_muon(on_two: dict[str, Any]) -> None:
    (alone,) = muon_flops(World.alone(), MUON["muon"])
    shares = on_two["muon flops"]
    assert sum(shares) == alone
    assert max(shares) < 0.75 * alone

"""One process of the trainings in test_distributed.py: torchrun starts it.

Usage: torchrun ... -m tests.training.distributed_worker SETTINGS.json RESULT.pt
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cifar_mlflow.training.distributed import World, this_world
from tests.training.test_loop import Recorded, make_training, weights


def train(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the weights, the history and the state of the generator after a training."""
    training = make_training(world, **settings)
    kept = training.fit(Recorded())
    return {"weights": weights(kept), "history": training.history, "rng": torch.get_rng_state()}


def muon_flops(world: World, settings: dict[str, Any]) -> list[int]:
    """Return the number of floating-point operations of a step of Muon on each process."""
    training = make_training(world, **settings)
    training.take_step(next(training.loader.epoch(0)), 1.0)
    with FlopCounterMode(display=False) as counter:
        training.optimizers[0].step()
    counts: list[int] = world.gather_rows(torch.tensor([counter.get_total_flops()])).tolist()
    return counts


def gloo_threads() -> int:
    """Return how many threads of this process exchange data."""
    return sum("gloo_runloop" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


if __name__ == "__main__":
    with this_world() as world:
        cases: dict[str, dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text())
        results = {name: train(world, settings) for name, settings in cases.items()}
        flops = muon_flops(world, cases["muon"])
        model = world.parallel(torch.nn.Linear(1, 1), torch.device("cpu"))
        inside = gloo_threads()
    if world.is_main:
        counts = {"muon flops": flops, "gloo threads": (inside, gloo_threads())}
        torch.save(results | counts, sys.argv[2])

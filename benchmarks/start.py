"""Measure the CPU time that a training takes before its first step, nearly all of it to import libraries.

The figure is the CPU time of a fresh process until the first forward pass, with the sample decoded and the
tables of the MLflow store created by an earlier run. It depends less on the load of the machine than the
wall-clock time. Ours is `cifar-mlflow train`; besides importing, it logs settings and environment and
writes a checkpoint. It is compared with the usual script, which imports its libraries at the top and starts
an MLflow run, and with an earlier release if BASELINE_PYTHON is the interpreter of its environment:

    git worktree add ../old 00676c6 && make -C ../old .venv/.ready
    BASELINE_PYTHON=../old/.venv/bin/python python -m benchmarks start

All sides take turns in one run.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.harness import Row, progress

SCRIPT = Path(__file__).with_name("first_step.py")


def measure(rounds: int = 5, model: str = "resnet18") -> list[Row]:
    """Return a row for the usual script and, with BASELINE_PYTHON, one for the earlier release."""
    train = ["train", "--dataset", "sample", "--model", model]
    sides = {"ours": (sys.executable, train), "usual": (sys.executable, ["usual"])}
    if baseline := os.environ.get("BASELINE_PYTHON"):
        sides["baseline"] = (str(Path(baseline).absolute()), train)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(rounds + 1):
            for side, (python, arguments) in sides.items():
                figure = first_step(python, arguments, Path(temporary, side))
                if number:  # the first start creates store and cache
                    seconds[side].append(figure)
            if number:
                shown = ", ".join(f"{side} {values[-1]:.2f} s" for side, values in seconds.items())
                progress(f"  {number}/{rounds}: {shown}")
    ours, usual = median(seconds["ours"]), median(seconds["usual"])
    what = f"CPU time before the first step, {model}"
    rows = [Row(what, f"{ours:.2f} s", f"{usual:.2f} s (the usual script)", ours / usual, "of its time")]
    if baseline:
        before = median(seconds["baseline"])
        rows.append(
            Row(
                "the same",
                f"{ours:.2f} s",
                f"{before:.2f} s (the release at BASELINE_PYTHON)",
                ours / before,
                "of its time",
                at_most=0.5,
            )
        )
    return rows


def first_step(python: str, arguments: list[str], folder: Path) -> float:
    """Return the CPU seconds of a process until its first forward pass; store and cache are in `folder`."""
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "CIFAR_MLFLOW_CACHE": f"{folder}/cache",
    }
    command = [python, "-P", str(SCRIPT), *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    found = re.search(r"^CPU seconds: (\S+)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no first step in {' '.join(command)}:\n{done.stderr[-2000:]}")
    return float(found[1])

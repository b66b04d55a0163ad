"""The benchmarks run, and their table shows what was measured; the tests do not check speed."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import NAMES
from benchmarks.harness import Row, in_fresh_process, markdown, measure
from cifar_mlflow.errors import CifarError
from tests.end_to_end.postgres import missing

# One thread: on a busy machine, two threads that wait for each other are many times slower.
LONG = (
    *("start", "training", "tracking_cost", "data_start", "batch", "search", "search_storage", "trial_cost"),
    *("serving", "service", "outputs", "soak"),
)
DIFFERENCES = ("check", "throughput")
TINY_TRIAL = {"width": 0.25, "dataset": "folder", "data_dir": "images", "val_size": 0.25, "threads": 1}
TINY: dict[str, dict[str, Any]] = {
    "start": {"rounds": 1, "model": "cnn"},
    "training": {"targets": {"cnn": 1}, "images": 4, "batch_size": 2, "rounds": 1, "threads": 1},
    "tracking_cost": {
        "epochs": 1,
        "rounds": 1,
        "recipe": "cnn",
        "width": 0.25,
        "dataset": "folder",
        "data_dir": Path("images"),
        "val_size": 0.25,
        "test": False,
        "threads": 1,
    },
    "data_start": {"copies": 1, "repeats": 1},
    "batch": {"images": 64, "rounds": 1, "engines": (), "epochs": 1, "model": "cnn", **TINY_TRIAL},
    "search_storage": {"workers": (1,), "seconds": 1, "samplers": ("random",)},
    "search": {"seeds": 1, "trials": 1, "epochs": 1, **TINY_TRIAL},
    "trial_cost": {"rounds": 1, "epochs": 1, "model": "cnn", **TINY_TRIAL},
    "serving": {"connections": (1, 16), "rounds": 1, "seconds": 1, "epochs": 1, "model": "cnn", **TINY_TRIAL},
    "service": {
        "connections": (16,),
        "rounds": 1,
        "seconds": 2,
        "turns": 1,
        "epochs": 1,
        "model": "cnn",
        **TINY_TRIAL,
    },
    "outputs": {"batches": (1,), "connections": (1,), "rounds": 1, "turns": 1, "seconds": 1},
    "soak": {"slices": 2, "seconds": 2, "epochs": 1, "model": "cnn", **TINY_TRIAL},
}


def test_the_table_has_one_line_per_claim_and_shows_whether_the_target_is_met() -> None:
    rows = [
        Row("speed", "30 images/s", "10 images/s", 2.99, "x", at_least=3),
        Row("share", "1 ms", "1 s", 0.1, "%", at_most=1),
        Row("start", "0.7 s", "9 s", 0.7, "s", at_most=0.5),
        Row("for information", "a", "b", 1234.5, "s"),
    ]
    assert markdown(rows).splitlines() == [
        "| what | ours | beside | figure | target | met |",
        "| --- | --- | --- | --- | --- | --- |",
        "| speed | 30 images/s | 10 images/s | 2.99 x | ≥ 3 x | no |",
        "| share | 1 ms | 1 s | 0.10 % | ≤ 1 % | yes |",
        "| start | 0.7 s | 9 s | 0.70 s | ≤ 0.5 s | no |",
        "| for information | a | b | 1234.50 s | - | - |",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (name in LONG)) for name in NAMES]
)
def test_each_benchmark_runs(name: str) -> None:
    if name in ("serving", "service", "outputs", "soak") and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    if name == "search_storage" and (reason := missing()):
        pytest.skip(reason)
    if name == "service":
        pytest.importorskip("litserve", reason="the peer is not installed: pip install -e '.[bench]'")
    rows = in_fresh_process(measure, name, **TINY[name])
    assert rows
    assert all(math.isfinite(row.figure) for row in rows)
    # A difference between two measurements may have either sign; other figures are times, rates or ratios.
    assert all(row.figure > 0 for row in rows if not row.what.startswith(DIFFERENCES))
    assert [path.name for path in Path().iterdir()] == ["images"], "files are left in the working directory"


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_a_search_without_a_completed_trial_is_named() -> None:
    settings = TINY["search"] | {"batch_size": 256, "accumulate": 100}  # each training fails: too few images
    with pytest.raises(CifarError, match="no trial was completed by Optuna's default"):
        in_fresh_process(measure, "search", **settings)

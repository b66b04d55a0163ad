"""`python -m benchmarks record` and `gpu` with tiny sizes, and a stand-in for the peer's script."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner

from benchmarks import gpu, record
from benchmarks.__main__ import main
from benchmarks.airbench import NAME, Script
from benchmarks.results import read_results
from cifar_mlflow.errors import UsageError

pytestmark = pytest.mark.usefixtures("mlflow_store")
TINY: dict[str, Any] = {
    "dataset": "folder", "data_dir": "images", "epochs": 1, "batch_size": 20, "width": 0.25, "threads": 1,
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.usefixtures("images")
def test_both_train_in_turns_and_a_second_start_keeps_what_is_finished(
    script_file: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results.csv"
    script = Script(script_file, epochs=40, batch_size=16)
    accuracy, seconds = record.measure(script, seeds=1, results=results, **TINY)
    ours, peer = sorted(read_results(results), key=lambda row: row.is_peer)

    assert (ours.name, peer.name, ours.seed, peer.seed) == ("fast", NAME, 0, 0)
    assert ours.data == peer.data
    assert ours.accuracy_tta is not None
    assert peer.accuracy_tta == pytest.approx(1.0)  # two colours are easy
    assert accuracy.figure == pytest.approx(100 * (ours.accuracy_tta - 1))
    assert ours.seconds is not None
    assert peer.seconds is not None
    assert seconds.figure == pytest.approx(ours.seconds / peer.seconds, rel=0.01)
    assert ours.seconds > ours.train_seconds  # with the evaluation
    assert peer.seconds >= peer.train_seconds > 0
    run = mlflow.get_run(ours.run_id)
    assert run.data.metrics["benchmark/seconds"] == pytest.approx(ours.seconds, abs=1e-4)
    assert run.data.metrics["test/accuracy_tta"] == pytest.approx(ours.accuracy_tta, abs=1e-4)

    record.measure(script, seeds=1, results=results, **TINY)
    assert sorted(read_results(results), key=lambda row: row.is_peer) == [ours, peer]
    longer = script._replace(epochs=41)
    record.measure(longer, seeds=1, results=results, **TINY)
    assert len(read_results(results)) == 3  # the peer with another length has a row of its own


@pytest.mark.thorough
@pytest.mark.usefixtures("images")
def test_the_gpu_benchmark_trains_in_turns_in_one_process(script_file: Path, tmp_path: Path) -> None:
    """Run on a CPU without compilation: neither affects the order of the turns and the rows."""
    results = tmp_path / "results.csv"
    script = Script(script_file, epochs=1, batch_size=16)
    rows = gpu.measure(script, seeds=2, results=results, device="cpu", **TINY)
    found = read_results(results)
    assert [(row.name, row.seed) for row in found] == [("fast", 0), ("fast", 1), (NAME, 0), (NAME, 1)]
    assert "mean of 2 seeds" in rows[0].what

    gpu.measure(script, seeds=5, minutes=1e-9, results=tmp_path / "short.csv", device="cpu", **TINY)
    assert len(read_results(tmp_path / "short.csv")) == 2  # one turn, then no time is left


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("    batch_size = 2000\n", "    batch_size = 1000\n"),
        ("@torch.compile\n", ""),
        (".half()", ".float()"),
    ],
)
@pytest.mark.usefixtures("images")
def test_another_script_is_refused_with_the_text_that_is_missing(
    script_file: Path, tmp_path: Path, was: str, now: str
) -> None:
    script_file.write_text(script_file.read_text().replace(was, now))
    with pytest.raises(UsageError, match=r"not the expected airbench94_muon\.py.*occurs 0 times"):
        record.measure(Script(script_file), seeds=1, results=tmp_path / "results.csv", **TINY)
    assert not (tmp_path / "results.csv").exists()


def test_a_missing_file_is_reported_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["record", "--peer", str(tmp_path / "none.py")])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: peer: ")
    assert done.stderr.count("\n") == 1

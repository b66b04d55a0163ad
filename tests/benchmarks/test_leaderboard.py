"""`python -m benchmarks leaderboard` on stores with made-up runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.airbench import NAME
from benchmarks.leaderboard import END, NONE_YET, START, Places, picture, write
from benchmarks.results import Result, read_results, write_results
from cifar_mlflow.config import resolve_train_config
from cifar_mlflow.data.original import PUBLISHED
from cifar_mlflow.errors import UsageError

pytestmark = pytest.mark.slow

PEER = Result(
    name=NAME, model="its own", data="CIFAR-10", seed=0, settings="aa", accuracy=0.901, accuracy_tta=0.907,
    f1_macro=None, ece=None, train_seconds=980.0, seconds=1056.0, hardware="CPU, bf16", date="2026-01-01",
    commit="aa", run_id="", command="python -m benchmarks record --peer airbench94_muon.py",
)  # fmt: skip


@pytest.fixture
def places(tmp_path: Path, mlflow_store: Path) -> Places:
    mlflow.create_experiment("cifar10", artifact_location=f"{tmp_path}/artifacts")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{START}\nold\n{END}\n\nThe rest.\n")
    return Places(tmp_path / "results.csv", tmp_path / "docs", readme)


def log_run(accuracy: float, status: str = "FINISHED", **settings: Any) -> str:
    """Create the run that a training with these settings and this test accuracy would leave."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cifar10")
    assert experiment is not None
    run_id: str = client.create_run(experiment.experiment_id).info.run_id
    config = resolve_train_config({"recipe": "fast", "seed": 0, **settings})
    for name, value in config.model_dump(mode="json").items():
        client.log_param(run_id, name, value)
    tags = {
        "kind": "train",
        "dataset": "cifar10",
        "dataset.digest": PUBLISHED.digest,
        "device": "CPU, bf16",
        "mlflow.source.git.commit": "0123456789abcdef",
        "git.dirty": "false",
    }
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    metrics = {
        "test/accuracy": accuracy,
        "test/accuracy_tta": accuracy + 0.01,
        "test/f1_macro": accuracy,
        "test/ece": 0.02,
        "train_seconds": 700.0 + 10 * config.seed,
    }
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    client.set_terminated(run_id, status)
    return run_id


def line_with(text: str, *words: str) -> str:
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


def test_without_full_length_trainings_the_pages_say_so(places: Places) -> None:
    log_run(0.8, epochs=2)
    log_run(0.8, status="FAILED")
    assert write(None, ["cifar10"], places) == (0, 2, 0)
    assert NONE_YET in (places.docs / "leaderboard.md").read_text()
    assert places.readme.read_text() == f"# Title\n\n{START}\n{NONE_YET}\n{END}\n\nThe rest.\n"
    assert read_results(places.results) == []


def test_the_pages_show_means_and_spreads_of_the_runs_beside_the_peers(places: Places) -> None:
    write_results([PEER], places.results)
    runs = [log_run(accuracy, seed=seed, val_size=0) for seed, accuracy in enumerate((0.89, 0.9, 0.91))]
    log_run(0.95, epochs=3)  # not the recipe
    assert write(None, ["cifar10"], places) == (3, 1, 2)

    page = (places.docs / "leaderboard.md").read_text()
    row = line_with(page, "`fast`", "91.00 ± 1.00 %")
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "`fast`", "fast", "CIFAR-10", "3", "90.00 ± 1.00 %", "91.00 ± 1.00 %", "0.9000 ± 0.0100",
        "0.0200 ± 0.0000", "11.8 min", "CPU, bf16",
    ]  # fmt: skip
    made = line_with(page, "0123456789")
    assert all(run in made for run in runs)
    assert "`cifar-mlflow train --recipe fast --val-size 0 --seed 0`" in made
    assert "16.3 min; 17.6 min with TTA" in line_with(page, NAME, "90.70 %")

    readme = places.readme.read_text()
    assert readme.startswith(f"# Title\n\n{START}\n|")
    assert readme.endswith(f"{END}\n\nThe rest.\n")
    assert "91.00 ± 1.00 %" in line_with(readme, "`fast`")
    assert "90.70 %" in line_with(readme, NAME)
    with Image.open(places.docs / "images/leaderboard.png") as image:
        assert image.size == (1200, 675)

    before = places.results.read_bytes(), page, readme
    write(None, ["cifar10"], places)
    assert before == (places.results.read_bytes(), page, places.readme.read_text())


def test_the_readme_shows_three_seeds_rather_than_a_single_better_one(places: Places) -> None:
    log_run(0.95)
    for seed in range(3):
        log_run(0.9, seed=seed, val_size=0)
    write(None, ["cifar10"], places)
    assert line_with(places.readme.read_text(), "`fast`").startswith("| `fast` | CIFAR-10 | 3 | 90.00 ")
    assert "95.00 %" in (places.docs / "leaderboard.md").read_text()


def test_of_two_recipes_with_as_many_seeds_the_readme_shows_the_newer_one(places: Places) -> None:
    log_run(0.9)
    write(None, ["cifar10"], places)
    (first,) = read_results(places.results)
    older = replace(first, run_id="f" * 32, settings="00000000", accuracy=0.95, date="2020-01-01")
    write_results([first, older], places.results)
    write(None, ["cifar10"], places)
    assert line_with(places.readme.read_text(), "`fast`").startswith("| `fast` | CIFAR-10 | 1 | 90.00 ")


def test_rows_of_other_stores_stay_and_a_newer_training_of_a_seed_replaces_the_older(places: Places) -> None:
    log_run(0.85)
    write(None, ["cifar10"], places)
    (first,) = read_results(places.results)
    elsewhere = replace(first, run_id="f" * 32, seed=7, accuracy=0.87)
    write_results([first, elsewhere], places.results)
    newer = log_run(0.88)
    write(None, ["cifar10"], places)
    assert {row.seed: (row.run_id, row.accuracy) for row in read_results(places.results)} == {
        0: (newer, 0.88),
        7: ("f" * 32, 0.87),
    }


def test_a_run_that_logged_a_setting_in_another_form_belongs_to_the_same_group(places: Places) -> None:
    """`mlflow run -P seed=1` logs the value as it was written, and releases add settings."""
    log_run(0.9, val_size=0.1)
    run = log_run(0.9, seed=1)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cifar10")
    assert experiment is not None
    copy = client.create_run(experiment.experiment_id).info.run_id
    data = client.get_run(run).data
    for name, value in data.params.items():
        if name != "grad_clip":
            client.log_param(copy, name, {"seed": "2", "aux_lr": "0.0320"}.get(name, value))
    for name, value in data.tags.items():
        client.set_tag(copy, name, value)
    for name, number in data.metrics.items():
        client.log_metric(copy, name, number)
    client.set_terminated(copy)
    assert write(None, ["cifar10"], places) == (3, 0, 1)


def test_an_unknown_experiment_or_a_readme_without_the_comments_is_refused(places: Places) -> None:
    done = CliRunner().invoke(main, ["leaderboard", "--experiment", "nothing"])
    assert done.exit_code == 2
    assert "has no experiment 'nothing'" in done.stderr
    places.readme.write_text("# Title\n")
    with pytest.raises(UsageError, match="needs the two lines"):
        write(None, ["cifar10"], places)
    assert not places.results.exists()


@pytest.mark.parametrize(("seconds", "point"), [(1056.0, (1056, 90.7)), (None, (980, 90.1))])
def test_the_picture_adds_augmentation_only_where_the_time_includes_it(
    seconds: float | None, point: tuple[float, float]
) -> None:
    (axes,) = picture([[replace(PEER, seconds=seconds)]]).axes
    (x,), (y,) = (np.asarray(values) for values in axes.lines[0].get_data())
    assert (x, y) == pytest.approx(point)


def test_the_picture_tells_machines_apart() -> None:
    others = [replace(PEER, name="fast", hardware="another CPU, bf16"), replace(PEER, name="cnn")]
    (axes,) = picture([[PEER], *([one] for one in others)]).axes
    colours = [line.get_color() for line in axes.lines[:3]]
    assert colours[0] == colours[2] != colours[1]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["CPU, bf16", "another CPU, bf16"]

"""`train --minutes`: the plan changes the number of epochs and nothing else."""

import signal
from pathlib import Path

import mlflow
import pytest
import yaml

from cifar_mlflow import pipeline
from cifar_mlflow.config import TrainConfig
from cifar_mlflow.interrupt import Interrupted
from cifar_mlflow.settings import validate
from cifar_mlflow.tracking.resume import resumable_config
from cifar_mlflow.training.loop import History
from tests.end_to_end.conftest import Project

pytestmark = pytest.mark.slow

BRIEF = ("--model", "cnn", "--width", "0.25", "--batch-size", "16", "--threads", "1")
RANDOM = {"dropout": 0.3, "cutout": 8, "ema": 0.9, "small_images": 0.5}


class StopAfterAnEpoch(pipeline.TrainingCallbacks):
    """Stop the training after one epoch, as a signal does."""

    study = "stopped"
    tags: dict[str, str] = {}  # noqa: RUF012
    skip_model_export = True

    def on_start(self, run_id: str) -> None:
        self.run_id = run_id
        self.data = mlflow.get_run(run_id).data.tags.get("dataset")  # shown by `runs` from the start on

    def prune(self, history: History) -> bool:
        if history:
            signal.raise_signal(signal.SIGTERM)
        return False


def test_a_planned_training_that_was_stopped_and_resumed_equals_one_of_as_many_epochs(
    mlflow_store: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"model": "cnn", "width": 0.25, "batch_size": 16, "threads": 1, "test": False}
    config = validate(TrainConfig, {**small, **RANDOM, "dataset": "folder", "data_dir": images})
    stopped = StopAfterAnEpoch()
    with pytest.raises(Interrupted):
        pipeline.train(config, callbacks=stopped, minutes=0.05)

    assert stopped.data == images.name
    planned = resumable_config(stopped.run_id, {}, "stopped")
    assert planned.epochs > 1
    assert planned == config.model_copy(update={"epochs": planned.epochs})
    resumed = pipeline.train(planned, resume=stopped.run_id)
    uninterrupted = pipeline.train(planned)
    losses = [{n: v for n, v in r.metrics.items() if n.startswith("val/")} for r in (resumed, uninterrupted)]
    assert losses[0] == losses[1]


def test_the_run_and_the_log_tell_the_plan(project: Project) -> None:
    output = project.invoke(
        "train", *BRIEF, "--dataset", "folder", "--data-dir", str(project.images), "--minutes", "0.05"
    )
    (run,) = project.runs
    assert run.info.status == "FINISHED"
    epochs = int(run.data.params["epochs"])
    assert run.data.params["minutes"] == "0.05"
    assert output.count(f"Planned {epochs} epochs of about") == 1
    assert f"epoch {epochs}/{epochs} " in output
    steps = [metric.step for metric in project.client.get_metric_history(run.info.run_id, "val/loss")]
    assert max(steps) == epochs


def test_a_budget_that_is_too_short_starts_no_run(project: Project) -> None:
    output = project.invoke(
        "train", *BRIEF, "--dataset", "folder", "--data-dir", str(project.images), "--minutes", "1e-4", code=2
    )
    assert "--minutes 0.0001 is too short for one epoch of cnn on this machine: give --minutes 0." in output
    assert project.runs == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "3"), "--minutes and --epochs both set the length of a training"),
        (("--resume", "f" * 32), "--resume takes the settings of the run: leave out --minutes"),
    ],
)
def test_minutes_are_refused_together_with_another_length(
    project: Project, options: tuple[str, str], message: str
) -> None:
    assert message in project.invoke("train", "--minutes", "1", *options, code=2)


def test_without_a_model_the_recipe_is_a_quick_one_and_the_printed_config_keeps_the_minutes(
    project: Project,
) -> None:
    printed = project.invoke("train", "--minutes", "10", "--print-config")
    (project.folder / "config.yaml").write_text(printed)
    settings = yaml.safe_load(printed)
    assert (settings["model"], settings["minutes"], "epochs" in settings) == ("fast", 10, False)
    assert project.invoke("train", "--config", "config.yaml", "--print-config") == printed
    chosen = yaml.safe_load(project.invoke("train", "--minutes", "1", "--model", "vgg11", "--print-config"))
    assert chosen["recipe"] == "vgg"
    sample = yaml.safe_load(
        project.invoke("train", "--minutes", "1", "--dataset", "sample", "--print-config")
    )
    assert sample["recipe"] == "demo"

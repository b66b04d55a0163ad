"""A training from the command line to a finished run: its contents, and models loaded back from it."""

import json
import os
import re
import resource
import shutil
import sys
from pathlib import Path

import h5py
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from cifar_mlflow.config import TrackingConfig, TrainConfig
from tests.end_to_end.conftest import QUICK, Project

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PICTURES = {
    "data/samples.png",
    "learning_curves.png",
    *(
        f"{split}/{name}.png"
        for split in ("val", "test")
        for name in ("confusion_matrix", "f1_by_class", "reliability", "confident_mistakes")
    ),
}
TABLES = {
    "data/summary.csv",
    "history.csv",
    "environment/versions.json",
    "environment/requirements.txt",
    *(
        f"{split}/{name}"
        for split in ("val", "test")
        for name in ("metrics.json", "per_class.csv", "confusion_matrix.csv", "predictions.csv")
    ),
}


def test_a_finished_run_contains_everything_needed_to_repeat_it(trained: Project) -> None:
    run = trained.trained_run
    assert run.info.status == "FINISHED"

    file = trained.client.download_artifacts(run.info.run_id, "config.yaml")
    settings = yaml.safe_load(Path(file).read_text())
    assert settings.keys() == TrainConfig.model_fields.keys()
    idle = {
        "cache_dir",
        "mirrors",
        "weights",
        "extra_dir",
        "head_first",
        "freeze",
        *TrackingConfig.model_fields,
    }
    assert run.data.params.keys() == settings.keys() - idle
    for name in ("seed", "tta", "recipe", "width"):
        assert run.data.params[name] == str(settings[name])
    assert (settings["seed"], settings["tta"], settings["recipe"]) == (3, "flip", "cnn")
    assert run.data.metrics.keys() >= {
        "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/f1_macro", "lr",
        "images_per_second",
        "val/f1_weighted", "val/ece", "val/ece_uncalibrated", "temperature", "train_seconds",
        "test/accuracy", "test/f1_macro", "test/f1_weighted", "test/loss", "test/ece",
        "test/ece_uncalibrated",
        "test/accuracy_tta", "test/f1_macro_tta",
    }  # fmt: skip
    steps = [metric.step for metric in trained.client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [1, 2]
    assert run.data.metrics["test/accuracy"] == 1.0  # plain colours

    tags = run.data.tags
    assert tags["kind"] == "train"
    assert tags["git.dirty"] in ("true", "false")
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert re.fullmatch(
        r"temperature 0\.\d+, fitted on 12 images of the validation split", tags["calibration"]
    )
    assert run.data.metrics["val/ece"] < run.data.metrics["val/ece_uncalibrated"]
    assert re.search(r", 1 thread, ", tags["device"])
    assert {d.tags[0].value for d in run.inputs.dataset_inputs} == {"train", "validation", "test"}
    assert all(tags["dataset.digest"].startswith(d.dataset.digest) for d in run.inputs.dataset_inputs)
    assert tags["mlflow.note.content"].splitlines()[0].startswith(f"cnn on {trained.images.name}, ")
    experiment = trained.client.get_experiment(run.info.experiment_id)
    assert experiment.name == trained.images.name
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "workflowType=machine_learning" in experiment.tags["mlflow.note.content"]

    assert trained.artifacts(run.info.run_id) >= PICTURES | TABLES | {
        "weights/model.safetensors",
        "weights/model.h5",
    }
    # Its local files are gone.
    assert not (Path(trained.env["CIFAR_MLFLOW_CACHE"]) / "runs" / run.info.run_id).exists()


def test_the_docs_name_every_metric_tag_and_file_of_a_run(trained: Project) -> None:
    page = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
    section = page.partition("## Contents of a training")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([^`]+)`", section))
    run = trained.trained_run
    metrics = {name for name in run.data.metrics if not name.startswith("system/")}
    # `val/…` and `test/…` are followed by the names that both have.
    assert {name for name in metrics if not {name, name.rpartition("/")[2]} & named} == set()
    assert {name for name in run.data.tags if not name.startswith("mlflow.") and name not in named} == set()
    files = trained.artifacts(run.info.run_id)
    assert {name for name in files if not {name, f"{name.partition('/')[0]}/"} & named} == set()


def test_the_data_sets_of_a_run_have_source_schema_and_profile(trained: Project) -> None:
    inputs = {each.tags[0].value: each.dataset for each in trained.trained_run.inputs.dataset_inputs}
    for dataset in inputs.values():
        source = mlflow.data.get_source(dataset)
        assert Path(source.uri) == trained.images
        columns = json.loads(dataset.schema)["mlflow_colspec"]
        assert [column["name"] for column in columns] == ["image", "label"]
    profile = json.loads(inputs["validation"].profile)
    assert (profile["images"], profile["classes"], profile["size"]) == (108, 3, "32x32")
    assert profile["images_per_class"] == {"blue": 36, "green": 36, "red": 36}
    assert profile["note"] == "training and validation images together"
    assert json.loads(inputs["test"].profile)["images_per_class"] == {"blue": 4, "green": 4, "red": 4}


def test_the_logged_model_has_the_metrics_of_the_run_by_data_set(trained: Project) -> None:
    run = trained.trained_run
    model = trained.client.get_logged_model(run.outputs.model_outputs[0].model_id)
    metrics = {metric.key: metric for metric in model.metrics if metric.run_id == run.info.run_id}
    for name in ("val/accuracy", "val/ece", "test/accuracy", "test/accuracy_tta", "train_seconds"):
        assert metrics[name].value == run.data.metrics[name]
    assert metrics["val/accuracy"].dataset_name == f"{trained.images.name}-validation"
    assert metrics["test/accuracy"].dataset_name == f"{trained.images.name}-test"
    assert metrics["train_seconds"].dataset_name is None
    history = trained.client.get_metric_history(run.info.run_id, "test/accuracy")
    assert len(history) == 1  # linking the metrics adds none to the run


def test_results_are_bars_and_the_metrics_of_epochs_are_curves(trained: Project) -> None:
    """MLflow's charts draw a metric as bars if its only step is 0, and else as a line."""
    run = trained.trained_run.info.run_id
    steps = {
        name: {metric.step for metric in trained.client.get_metric_history(run, name)}
        for name in ("train/loss", "val/accuracy", "val/ece", "test/accuracy", "train_seconds")
    }
    assert steps.pop("train/loss") == steps.pop("val/accuracy") == {1, 2}
    assert set().union(*steps.values()) == {0}


def test_the_example_on_the_page_of_the_logged_model_runs(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(trained.env["MLFLOW_TRACKING_URI"])
    model = trained.client.get_logged_model(trained.trained_run.outputs.model_outputs[0].model_id)
    (code,) = re.findall(r"```python\n(.*?)```", model.tags["mlflow.note.content"], re.DOTALL)
    exec(code, {})
    assert re.search(r"\[[012] [012]\]", capsys.readouterr().out)


def test_figures_and_tables_agree_with_the_metrics(trained: Project) -> None:
    run = trained.trained_run
    folder = Path(trained.client.download_artifacts(run.info.run_id, ""))
    numbers = json.loads((folder / "test/metrics.json").read_text())
    assert numbers["test/accuracy"] == run.data.metrics["test/accuracy"]
    confusion = pd.read_csv(folder / "test/confusion_matrix.csv", index_col="true")
    assert np.trace(confusion.to_numpy()) / confusion.to_numpy().sum() == numbers["test/accuracy"]
    summary = pd.read_csv(folder / "data/summary.csv", index_col="class")
    assert summary.loc["blue"].to_dict() == {"train": 32, "val": 4, "test": 4}
    history = pd.read_csv(folder / "history.csv", index_col="epoch")
    assert history.loc[2, "train/loss"] == pytest.approx(run.data.metrics["train/loss"])
    for picture in PICTURES:
        with Image.open(folder / picture) as image:
            image.load()
            assert image.width >= 600


def test_every_saved_format_gives_the_same_predictions(trained: Project) -> None:
    """The pt2 program and the weights of the run, and an exported HDF5 file."""
    run = trained.trained_run
    trained.invoke("export", run.info.run_id, "--format", "hdf5", "--output", "model.h5")
    with h5py.File(trained.folder / "model.h5") as file:
        assert list(file.attrs["classes"]) == ["blue", "green", "red"]

    expected = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    images = ("--dataset", "folder", "--data-dir", str(trained.images))
    # Without images, those of the training.
    for reference, data in (
        (run.info.run_id, ()),
        (f"runs:/{run.info.run_id}/model", images),
        ("model.h5", ()),
    ):
        trained.invoke("evaluate", "--model", reference, *data, "--threads", "1", "--tta", "flip")
        evaluated = trained.runs[0]
        assert evaluated.info.status == "FINISHED"
        assert evaluated.data.tags["kind"] == "evaluate"
        assert evaluated.data.metrics == pytest.approx(expected, abs=1e-6)
        assert "test/confusion_matrix.png" in trained.artifacts(evaluated.info.run_id)
        (model,) = trained.client.get_run(evaluated.info.run_id).inputs.model_inputs
        assert model.model_id == run.outputs.model_outputs[0].model_id


def test_the_mlflow_model_is_not_a_pickle_and_accepts_any_batch(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained.trained_run
    mlflow.set_tracking_uri(trained.env["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    for count in (1, 2, 7):
        logits = model.predict(np.random.default_rng(0).random((count, 3, 32, 32), dtype=np.float32))
        assert logits.shape == (count, 3)
    assert model.metadata.get_input_schema().inputs[0].shape == (-1, 3, 32, 32)


def test_a_registered_model_is_evaluated_by_its_alias(trained: Project) -> None:
    run = trained.trained_run
    mlflow.set_tracking_uri(trained.env["MLFLOW_TRACKING_URI"])
    version = mlflow.register_model(f"runs:/{run.info.run_id}/model", "colours")
    trained.client.set_registered_model_alias("colours", "champion", version.version)
    images = ("--dataset", "folder", "--data-dir", str(trained.images))
    trained.invoke("evaluate", "--model-uri", "models:/colours@champion", *images, "--split", "val")
    assert trained.runs[0].data.metrics["val/accuracy"] == run.data.metrics["val/accuracy"]


def test_fine_tuning_starts_from_a_run_and_replaces_the_head(trained: Project) -> None:
    project, run = trained, trained.trained_run
    two_classes = project.folder / "two"
    for name in ("blue", "red"):
        (two_classes / name).parent.mkdir(exist_ok=True)
        (two_classes / name).symlink_to(project.images / name)
    weights = ("--weights", run.info.run_id)
    images = ("--dataset", "folder", "--data-dir", str(two_classes))
    # Without --model, it is that of the weights.
    output = project.invoke("train", *images, *weights, "--epochs", "1", "--batch-size", "16")
    assert f"Starts from {run.info.run_id}; new for 2 classes: head.weight" in output
    assert project.runs[0].data.params["model"] == run.data.params["model"]
    assert project.runs[0].data.params["width"] == run.data.params["width"]
    refused = project.invoke("train", *images, *weights, "--model", "fast", code=2)
    assert "holds the weights of a cnn of width 0.25" in refused
    assert "give --model cnn --width 0.25" in refused


def test_without_a_test_split_or_validation_the_run_says_so(project: Project) -> None:
    output = project.train("--val-size", "0", "--test", "false")
    (run,) = project.runs
    assert run.info.status == "FINISHED"
    assert run.data.tags["validation"] == "none: trained on all images"
    assert "The confidences will not be calibrated, because no images are held out" in output
    for told in (run.data.tags["calibration"], run.data.tags["mlflow.note.content"]):
        assert "no images were held out; train with --val-size 0.1 to calibrate confidences" in told
    assert not [name for name in run.data.metrics if name.startswith(("val/", "test/"))]
    assert {d.tags[0].value for d in run.inputs.dataset_inputs} == {"train"}


@pytest.mark.thorough
def test_a_model_is_validated_on_images_it_was_not_trained_on(project: Project) -> None:
    """This holds for any requested split: its training images would give a higher accuracy."""
    project.train("--val-size", "0.25", "--split-seed", "5", "--test", "false")
    (trained,) = project.runs
    images = ("--dataset", "folder", "--data-dir", str(project.images))
    project.invoke("evaluate", "--model", trained.info.run_id, *images, "--split", "val", "--threads", "1")
    evaluated = project.runs[0]
    assert (evaluated.data.params["val_size"], evaluated.data.params["split_seed"]) == ("0.25", "5")
    assert evaluated.data.metrics["val/loss"] == trained.data.metrics["val/loss"]

    project.train("--val-size", "0", "--test", "false")
    all_images = project.runs[0].info.run_id
    output = project.invoke("evaluate", "--model", all_images, *images, "--split", "val", code=2)
    assert "the val split of images0 is empty" in output


@pytest.mark.thorough
def test_evaluate_says_that_the_folder_has_changed_since_the_training(project: Project) -> None:
    """The new test images include images of the training."""
    photos = project.folder / "photos"
    shutil.copytree(project.images, photos)
    data = ("--dataset", "folder", "--data-dir", str(photos))
    project.invoke("train", *QUICK, *data, "--test", "false")
    evaluate = ("evaluate", "--model", project.runs[0].info.run_id, *data, "--threads", "1")
    changed = "The images of photos have changed since the training: some of this split may have been"
    assert changed not in project.run(*evaluate)
    shutil.copy(photos / "red/00.png", photos / "red/another.png")
    assert changed in project.run(*evaluate)


def test_a_registered_pickle_is_refused(project: Project) -> None:
    """It is refused even if it claims to be ours: MLflow would execute its code."""
    mlflow.set_tracking_uri(project.env["MLFLOW_TRACKING_URI"])
    folder = project.folder / "model"
    mlflow.pytorch.save_model(
        torch.nn.Identity(),
        folder,
        serialization_format="pickle",
        metadata={"card": {}},
        pip_requirements=["torch"],
    )
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(folder), "model")
    output = project.invoke(
        "evaluate", "--model", f"runs:/{run.info.run_id}/model", "--dataset", "sample", code=2
    )
    assert "is not a model that cifar_mlflow logged" in output


def test_the_printed_config_repeats_the_training(project: Project) -> None:
    printed = project.invoke("train", *project.quick, "--lr", "0.02", "--print-config")
    (project.folder / "config.yaml").write_text(printed)
    assert yaml.safe_load(printed)["lr"] == 0.02
    project.invoke("train", "--config", "config.yaml")
    again = project.invoke("train", "--config", "config.yaml", "--epochs", "1", "--print-config")
    assert yaml.safe_load(again) == yaml.safe_load(printed) | {"epochs": 1}
    (run,) = project.runs
    assert run.data.params["lr"] == "0.02"


def test_a_nan_loss_ends_the_run_as_failed_with_the_reason(trained: Project) -> None:
    project = trained
    project.invoke("export", project.trained_run.info.run_id, "--output", "broken.h5")
    with h5py.File(project.folder / "broken.h5", "r+") as file:
        file["weights/network/head/weight"][...] = np.nan
    output = project.train("--weights", "broken.h5", code=1)
    assert "the loss became nan at step 1 (epoch 1)" in output
    run = project.runs[0]
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("the loss became nan at step 1")


def test_a_full_disk_ends_the_run_as_failed_with_the_reason(project: Project) -> None:
    """A limit on the file size stands for the full disk: the first checkpoint fits, the second does not."""
    process = project.start(
        "train",
        *project.quick,
        "--width",
        "1",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
    )
    assert process.wait(timeout=300) == 1
    output = project.output()
    assert "Traceback" not in output
    (run,) = project.runs
    assert run.info.status == "FAILED"
    hint = f"continue with: cifar-mlflow train --resume {run.info.run_id}"
    assert f"could not be written ([Errno 27] File too large): free some space there; {hint}" in output
    assert "could not be written" in run.data.tags["error"]


@pytest.mark.parametrize("entry_point", ["main", pytest.param("demo", marks=pytest.mark.thorough)])
def test_mlflow_run_trains_in_the_run_that_it_created(
    project: Project, entry_point: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every setting works with -P, also if its text differs from the logged one (1e-2, underscores)."""
    # With the environment manager `local`, MLflow runs the `python` of the active environment.
    monkeypatch.chdir(project.folder)  # where a new experiment stores its artifacts
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    settings = {
        "dataset": "folder", "data_dir": str(project.images), "model": "cnn", "width": "0.25", "epochs": "1",
        "batch_size": "16", "lr": "1e-2", "optimizer": "sgd", "deterministic": "True",
    }  # fmt: skip
    mlflow.set_tracking_uri(project.env["MLFLOW_TRACKING_URI"])
    submitted = mlflow.projects.run(
        str(ROOT), entry_point, parameters=settings, env_manager="local", experiment_name="projects"
    )
    (run,) = [run for run in project.runs if run.data.tags["kind"] == "train"]
    assert run.info.run_id == submitted.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params.keys() >= {*settings, "seed", "schedule", "momentum"}
    assert run.data.params["lr"] == "1e-2"
    assert "test/accuracy" in run.data.metrics
    if entry_point == "demo":
        name = project.images.name
        assert project.client.get_model_version_by_alias(name, "champion").run_id == run.info.run_id
        said = capfd.readouterr().out
        assert re.search(
            rf"models serve -m models:/{name}@champion` classifies cat.jpg as: (red|green|blue) \d", said
        )
        for verb in ("serve", "classify"):
            assert f"\n  cifar-mlflow {verb} --model-uri models:/{name}@champion " in said


def test_mlflow_run_with_an_invalid_setting_tags_the_run_with_the_reason(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    mlflow.set_tracking_uri(project.env["MLFLOW_TRACKING_URI"])
    with pytest.raises(mlflow.exceptions.ExecutionException):
        mlflow.projects.run(str(ROOT), parameters={"epochs": "0"}, env_manager="local")
    (run,) = project.runs
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("--epochs must be at least 1, not 0")


@pytest.mark.real_data
@pytest.mark.thorough
def test_the_real_images_train(project: Project, real_data_dir: Path) -> None:
    """All 50,000 images, with the smallest network that still learns something."""
    project.run(
        "train", "--data-dir", str(real_data_dir), "--model", "cnn", "--width", "0.25", "--epochs", "1",
        "--batch-size", "256",
    )  # fmt: skip
    (run,) = project.runs
    assert run.info.status == "FINISHED"
    assert run.data.tags["dataset"] == "cifar10"
    assert run.data.metrics["test/accuracy"] > 0.3

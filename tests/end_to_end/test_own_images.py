"""`train` on a folder of images: the summary before it starts, and the predictions in the run."""

import io
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner

import cifar_mlflow
from cifar_mlflow.cli import main
from tests.serving.registry.conftest import paint

pytestmark = pytest.mark.slow

QUICK = ("--model", "cnn", "--width", "0.25", "--epochs", "2", "--threads", "1", "--crop-padding", "0")


@pytest.mark.usefixtures("mlflow_store")
def test_a_training_on_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = paint(tmp_path / "photos", (100, 150))
    (photos / "red/notes.txt").write_text("by the sea")
    (photos / "red/cut.png").write_bytes((photos / "red/00.png").read_bytes()[:60])
    command = ("train", "--dataset", "folder", "--data-dir", str(photos), *QUICK)
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "red/cut.png is not an image that can be read" in refused.output

    done = CliRunner().invoke(main, [*command, "--skip-unreadable", "--class-weights", "balanced"])
    assert done.exit_code == 0, done.output
    for text in (
        "Skipped 1 non-image file in ",
        "Skipped 1 file that cannot be read",
        "batch size of 256 would give 1 step per epoch of 195 images; it is lowered to 32",
        "photos: 195 training and 21 validation images of 3 classes",
        "7 steps per epoch. Always answering blue",
        "The validation split has only 21 images",
    ):
        assert text in done.output
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.params["batch_size"] == "32"
    for split, count in (("val", 21), ("test", 24)):
        uri = f"runs:/{run.info.run_id}/{split}/predictions.csv"
        table = pd.read_csv(io.StringIO(mlflow.artifacts.load_text(uri)))
        assert list(table.columns) == ["path", "label", "answer", "confidence"]
        assert len(table) == table["path"].nunique() == count
        assert [path.split("/")[0] for path in table["path"]] == table["label"].tolist()
        right = (table["label"] == table["answer"]).mean()
        assert right == pytest.approx(run.data.metrics[f"{split}/accuracy"])
        assert table["confidence"].between(1 / 3 - 1e-3, 1).all()


@pytest.mark.usefixtures("mlflow_store")
def test_a_batch_size_that_was_given_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = paint(tmp_path / "photos", (100, 150))
    command = ("train", "--dataset", "folder", "--data-dir", str(photos), *QUICK, "--batch-size", "128")
    done = CliRunner().invoke(main, [*command, "--epochs", "1"])
    assert done.exit_code == 0, done.output
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.params["batch_size"] == "128"


@pytest.mark.usefixtures("mlflow_store")
def test_python_lowers_the_batch_size_of_a_recipe_as_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = paint(tmp_path / "photos", (100, 150))
    settings = {"model": "cnn", "width": 0.25, "epochs": 1, "threads": 1, "crop_padding": 0}
    result = cifar_mlflow.train(dataset="folder", data_dir=str(photos), **settings)
    assert mlflow.get_run(result.run_id).data.params["batch_size"] == "32"

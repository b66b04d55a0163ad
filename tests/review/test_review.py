"""`review` finds the errors of a data set, in one run that ends well or says why not."""

import csv
import io
import shutil
import signal
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from cifar_mlflow.cli import main
from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.data.split import train_val_indices
from cifar_mlflow.export.weights import save_weights
from cifar_mlflow.extras import install_command
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from tests.end_to_end.conftest import open_project
from tests.review.conftest import write_cifar10

QUICK = (
    "--model",
    "cnn",
    "--width",
    "0.25",
    "--epochs",
    "6",
    "--batch-size",
    "8",
    "--folds",
    "2",
    "--threads",
    "1",
)


def review(photos: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["review", "--dataset", "folder", "--data-dir", str(photos), *options])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_errors_are_found_and_the_decisions_on_them_make_a_cleaned_copy(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = photos / "train"
    (train / "blue/03.png").rename(train / "red/wrong.png")
    (train / "green/04.png").rename(train / "blue/wrong.png")
    shutil.copy(photos / "test/green/05.png", train / "green/leak.png")
    with Image.open(train / "blue/07.png") as image:
        image.resize((64, 64)).save(train / "blue/larger.jpg", quality=85)
    (train / "red/cut.png").write_bytes((train / "red/00.png").read_bytes()[:60])
    original = content(photos)

    done = review(photos, *QUICK)
    assert done.exit_code == 0, done.output
    table = pd.read_csv("review.csv", keep_default_na=False).set_index(["issue", "image"])
    assert table.loc["label"]["suggestion"].to_dict() == {
        "train/red/wrong.png": "blue",
        "train/blue/wrong.png": "green",
    }
    others = {issue: table.loc[issue]["other"].to_dict() for issue in ("leak", "duplicate", "unreadable")}
    assert others == {
        "leak": {"train/green/leak.png": "test/green/05.png"},
        "duplicate": {"train/blue/larger.jpg": "train/blue/07.png"},
        "unreadable": {"train/red/cut.png": ""},
    }
    assert set(table["decision"]) == {""}
    assert "cut short" in str(table.loc["unreadable"]["reason"].to_dict()["train/red/cut.png"])

    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (run.info.status, run.data.tags["kind"], run.data.params["folds"]) == ("FINISHED", "review", "2")
    assert {run.data.metrics[f"review/{issue}"] for issue in ("leak", "duplicate", "unreadable")} == {1}
    assert run.data.metrics["review/label"] == 2
    assert run.data.metrics["review/accuracy"] > 0.9
    assert "listed as wrong" not in done.output + run.data.tags["mlflow.note.content"]
    assert len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "fold2/train/loss")) == 6
    logged = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/review/findings.csv")
    assert logged == Path("review.csv").read_text()
    for figure in ("labels", "duplicates"):
        assert mlflow.artifacts.load_image(f"runs:/{run.info.run_id}/review/{figure}.png").size[0] == 900

    rows = list(csv.DictReader(io.StringIO(logged)))
    with Path("decided.csv").open("w", encoding="utf-8-sig", newline="") as file:
        decided = csv.DictWriter(file, rows[0], delimiter=";")  # as a spreadsheet may save it
        decided.writeheader()
        decided.writerows(
            {**row, "decision": row["suggestion"].upper() * (row["suggestion"] == "drop")}
            | ({"decision": row["suggestion"]} if row["issue"] == "label" else {})
            for row in rows
        )
    done = review(photos, "--apply", "decided.csv", "--output", "cleaned")
    assert done.exit_code == 0, done.output
    assert "2 with another label, 2 dropped, 1 unreadable file left out" in done.output
    cleaned = content(Path("cleaned"))
    assert cleaned["train/blue/wrong.png"] == original["train/red/wrong.png"]
    assert cleaned["train/green/wrong.png"] == original["train/blue/wrong.png"]
    gone = {"train/red/wrong.png", "train/blue/larger.jpg", "train/green/leak.png", "train/red/cut.png"}
    assert cleaned.keys() == original.keys() - gone | {"train/green/wrong.png", "labels.csv"}
    assert content(photos) == original
    for place in ("cleaned", "cleaned/labels.csv"):
        dataset = load_dataset(DataConfig(dataset="folder", data_dir=Path(place)))
        assert len(dataset.split("train")) == 72
        assert len(dataset.split("test")) == 24


@pytest.mark.usefixtures("mlflow_store")
def test_a_trained_model_judges_the_images_that_it_has_not_seen(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = load_dataset(DataConfig(dataset="folder", data_dir=photos))
    torch.manual_seed(0)
    network = ImageClassifier(build_network("cnn", 3, width=0.25), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    card = ModelCard(
        model="cnn",
        width=0.25,
        classes=dataset.classes,
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        data="photos",
        data_digest=dataset.digest,
        val_size=0.25,
        split_seed=3,
    )
    save_weights(Path("known.safetensors"), network, card)
    save_weights(Path("other.safetensors"), network, card.model_copy(update={"data_digest": "0"}))
    Path("file").touch()

    for options, complaint in (
        (("other.safetensors",), "it is not known which of the images it has seen"),
        (("known.safetensors", "--folds", "3", "--epochs", "2"), "leave out --epochs, --folds"),
        (("known.safetensors", "--output", "file/review.csv"), "file/review.csv: cannot be written"),
    ):
        done = review(photos, "--trained-model", *options)
        assert done.exit_code in (1, 2), done.output
        assert complaint in done.stderr
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []

    done = review(photos, "--trained-model", "known.safetensors")
    assert done.exit_code == 0, done.output
    assert "of 42 labels were predicted" in done.output  # 18 for validation, 24 for the test
    split = DataConfig(dataset="folder", data_dir=photos, val_size=0.25, split_seed=3)
    assert dataset.names
    names = dataset.names("train")
    held_out = {names[index] for index in train_val_indices(dataset, split)[1]}
    table = pd.read_csv("review.csv", keep_default_na=False)
    labels = table[table["issue"] == "label"]
    assert len(labels) > 5  # it is not trained at all
    assert set(labels["image"][labels["split"] == "train"]) <= held_out
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.params["trained_model"] == "known.safetensors"
    assert not {"epochs", "folds", "lr"} & run.data.params.keys()
    for text in (done.output, run.data.tags["mlflow.note.content"]):
        assert "of the labels are listed as wrong" in text


@pytest.mark.usefixtures("mlflow_store")
def test_the_released_network_judges_the_test_images_of_another_copy_of_cifar10(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = load_dataset(DataConfig(dataset="sample"))
    train, test = sample.split("train"), sample.split("test")
    labels = test.labels[:200].copy()
    labels[:20] = (labels[:20] + 1) % 10
    write_cifar10(
        tmp_path / "data", train=(train.images[:100], train.labels[:100]), test=(test.images[:200], labels)
    )
    arguments = ["review", "--data-dir", "data", "--trained-model", "pretrained", "--threads", "1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "of 200 labels were predicted" in done.output
    table = pd.read_csv("review.csv")
    assert set(table["split"][table["issue"] == "label"]) == {"test"}


@pytest.mark.usefixtures("mlflow_store")
def test_without_cleanlab_one_line_says_how_to_get_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "cleanlab"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cleanlab", None)  # importing it fails, as if it were not installed
    done = review(photos, *QUICK)
    assert done.exit_code == 2, done.output
    assert f"not installed: {install_command('review')}" in done.stderr
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


def test_a_class_with_one_training_image_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    for number in range(1, 24):
        (photos / f"train/red/{number:02}.png").unlink()
    done = review(photos, *QUICK)
    assert done.exit_code == 2, done.output
    assert "at least 2 training images of each class, but there is only one of red" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_the_run_as_killed(
    photos: Path, tmp_path: Path, empty_store: Path, shared_cache: Path
) -> None:
    with open_project(tmp_path, photos, empty_store, shared_cache) as project:
        process = project.start(
            "review", "--dataset", "folder", "--data-dir", str(photos), *QUICK, "--epochs", "1000"
        )
        project.wait_for(lambda: "epoch 2/1000  " in project.output(), "epoch 2")
        assert project.stop(process, signal.SIGINT) == 130
        (run,) = project.runs
        assert run.info.status == "KILLED"
        assert "--resume" not in project.output()  # it cannot be continued
        assert not (tmp_path / "review.csv").exists()


@pytest.mark.thorough
@pytest.mark.usefixtures("mlflow_store")
def test_most_flipped_labels_of_the_sample_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 5 % flipped labels, at least 80 % are found, and at least half of the suggestions are of them."""
    monkeypatch.chdir(tmp_path)
    sample = load_dataset(DataConfig(dataset="sample"))
    train, test = sample.split("train"), sample.split("test")
    rng = np.random.default_rng(0)
    flipped = rng.permutation(len(train))[: len(train) // 20]
    labels = train.labels.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    write_cifar10(tmp_path / "data", train=(train.images, labels), test=(test.images, test.labels))
    done = CliRunner().invoke(
        main, ["review", "--data-dir", "data", "--recipe", "demo", "--dataset", "cifar10"]
    )
    assert done.exit_code == 0, done.output
    table = pd.read_csv("review.csv")
    table = table[(table["issue"] == "label") & (table["split"] == "train")]
    suggested = {int(name.removeprefix("train/")) for name in table["image"]}
    right = len(suggested & set(flipped.tolist()))
    with capsys.disabled():
        print(f"\nfound {right} of {len(flipped)} flipped labels among {len(suggested)} suggestions")
    assert right >= 0.8 * len(flipped)
    assert right >= 0.5 * len(suggested)

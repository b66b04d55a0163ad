"""From feedback to training data: the exported folder, and the promotion of a model trained on it."""

import csv
import hashlib
import io
import shutil
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cifar_mlflow import pipeline
from cifar_mlflow.cli import main
from cifar_mlflow.config import TrainConfig
from cifar_mlflow.settings import validate
from serving.monitoring.request_log import RequestLog
from tests.serving.monitoring.request_logs import UNLIMITED, record
from tests.serving.registry.conftest import Trained, promote, register, registered, trained

__all__ = ["registered", "trained"]  # fixtures

pytestmark = pytest.mark.slow

LOG = "sqlite:///requests.db"


def keep_image(folder: Path, colour: tuple[int, int, int]) -> str:
    """Keep an image as the service does, and return its sha256."""
    pixels = np.random.default_rng(sum(colour)).integers(0, 60, (32, 32, 3)) + colour
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    name = hashlib.sha256(file.getvalue()).hexdigest()
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.png").write_bytes(file.getvalue())
    return name


def write_log(
    images: dict[str, str | None], feedback: dict[str, dict[str, Any]], version: str = "images/1"
) -> None:
    log = RequestLog(LOG, **UNLIMITED)
    for number, (request_id, sha256) in enumerate(images.items()):
        log.put(
            record(
                request_id, time=time.time() - 60 + number, label="red", confidence=0.9, uncertain=False,
                model_version=version, image_sha256=sha256,
            )
        )  # fmt: skip
    for request_id, given in feedback.items():
        assert log.feedback(request_id, 0, **{"correct": None, "label": None, **given})
    log.close()


def export(*options: str) -> str:
    command = ["monitor", "--request-log", LOG, "--images-dir", "kept", "--export-feedback", "corrected"]
    done = CliRunner().invoke(main, [*command, *options])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("mlflow_store")
def test_images_with_a_known_class_are_exported_with_their_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"
    right, wrong, unknown, deleted = (keep_image(kept, (40 * i, 0, 0)) for i in range(4))
    (kept / f"{deleted}.png").unlink()
    shas = {"right": right, "wrong": wrong, "unknown": unknown, "deleted": deleted, "unjudged": right}
    write_log(
        {**shas, "no image": None},
        {
            "right": {"correct": True},
            "wrong": {"correct": False, "label": "blue"},
            "unknown": {"correct": False},
            "deleted": {"label": "blue"},
            "no image": {"label": "blue"},
        },
    )
    output = export()
    assert "Feedback: 2 images copied to" in output
    assert "; 1 more no longer in " in output
    found = {path.relative_to("corrected").as_posix() for path in Path("corrected").rglob("*.png")}
    assert found == {f"red/{right}.png", f"blue/{wrong}.png"}
    with Path("corrected/provenance.csv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows.keys() == found
    row = rows[f"blue/{wrong}.png"]
    assert (row["label"], row["answer"], row["model_version"]) == ("blue", "red", "images/1")
    assert (row["request_id"], row["item"], row["confidence"]) == ("wrong", "0", "0.9")

    # A later verdict moves the image; the other one stays.
    write_log({"again": wrong}, {"again": {"label": "green"}})
    export()
    found = {path.relative_to("corrected").as_posix() for path in Path("corrected").rglob("*.png")}
    assert found == {f"red/{right}.png", f"green/{wrong}.png"}
    with Path("corrected/provenance.csv").open() as file:
        assert {row["file"] for row in csv.DictReader(file)} == found


@pytest.mark.usefixtures("mlflow_store")
def test_a_later_verdict_that_the_class_is_wrong_removes_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    right, told, again, other = (keep_image(tmp_path / "kept", (40 * i, 0, 0)) for i in range(4))
    write_log(
        {"right": right, "told": told, "again": again, "other": other},
        {
            "right": {"correct": True},
            "told": {"label": "blue"},
            "again": {"correct": True},
            "other": {"label": "blue"},
        },
    )
    export()
    assert len(list(Path("corrected").rglob("*.png"))) == 4
    # The same answers are judged again, and the same images with a new answer, which is red.
    write_log({}, {"right": {"correct": False}, "told": {"correct": False}})
    wrong = {"correct": False}
    write_log({"again-2": again, "other-2": other}, {"again-2": wrong, "other-2": wrong})
    assert "Feedback: 1 image copied to" in export()
    found = [path.relative_to("corrected").as_posix() for path in Path("corrected").rglob("*.png")]
    assert found == [f"blue/{other}.png"]  # red was wrong, as its class says
    with Path("corrected/provenance.csv").open() as file:
        assert [row["file"] for row in csv.DictReader(file)] == found


def test_only_the_feedback_on_one_model_is_exported(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(registered, tmp_path)
    photo, car, ship = (keep_image(tmp_path / "kept", (40 * i, 0, 0)) for i in range(3))
    write_log({"car": car}, {"car": {"label": "blue"}}, "cifar10/1")
    write_log({"ship": ship}, {"ship": {"correct": True}}, "cifar10/2")
    write_log({"photo": photo}, {"photo": {"label": "violet"}}, "photos/1")
    assert "Feedback on other models than photos left out: 2 " in export()
    exported = {"corrected": {f"violet/{photo}.png"}, "colours": {f"blue/{car}.png", f"red/{ship}.png"}}
    uri = ("--model-uri", "models:/cifar10/1")
    assert "than cifar10 left out: 1 " in export(*uri, "--export-feedback", "colours")
    for folder, files in exported.items():
        assert {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.png")} == files


@pytest.mark.usefixtures("mlflow_store")
def test_an_export_says_that_nothing_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = RequestLog(LOG, **UNLIMITED)
    log.put(record("refused", status=503, error_code="overloaded"))
    log.close()
    Path("kept").mkdir()
    assert "Feedback: 0 images copied to " in export()


def test_the_folder_of_the_images_must_be_named() -> None:
    done = CliRunner().invoke(main, ["monitor", "--export-feedback", "corrected"])
    assert done.exit_code == 2
    assert "--export-feedback needs --images-dir" in done.output


@pytest.mark.usefixtures("mlflow_store")
def test_kept_images_inside_the_exported_folder_are_refused_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("feedback").mkdir()
    kept = Path("feedback/kept")
    sha256 = keep_image(kept, (0, 0, 0))
    write_log({"right": sha256}, {"right": {"correct": True}})
    options = ("--images-dir", "feedback/kept", "--export-feedback", "feedback")
    done = CliRunner().invoke(main, ["monitor", "--request-log", LOG, *options])
    assert done.exit_code == 2, done.output
    assert "--export-feedback: feedback contains feedback/kept" in done.output
    assert [path.name for path in Path("feedback").rglob("*.png")] == [f"{sha256}.png"]


def test_a_model_trained_with_corrected_images_is_promoted_on_the_same_validation_images(
    registered: Path,
    trained: Trained,
    tmp_path: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(registered, tmp_path)
    promote("1")
    for i in range(3):
        request = f"request-{i}"
        write_log({request: keep_image(tmp_path / "kept", (0, 30 * i, 200))}, {request: {"label": "blue"}})
    export()
    settings = {
        "dataset": f"folder+{tmp_path / 'corrected'}", "data_dir": trained.images, "model": "cnn",
        "width": 0.25, "epochs": 8, "batch_size": 16, "threads": 1, "crop_padding": 0, "val_size": 0.5,
        "split_seed": 7, "test": False, "cache_dir": shared_cache,
    }  # fmt: skip
    run = pipeline.train(validate(TrainConfig, settings))
    logged = mlflow.MlflowClient().get_run(run.run_id).data
    assert logged.tags["extra_images"] == f"3 training images of {tmp_path / 'corrected'}"
    shutil.rmtree(tmp_path / "corrected")
    made = register(run.run_id, serve_precision="fp32")
    promotion = promote(made.number)
    assert promotion.champion == made.number

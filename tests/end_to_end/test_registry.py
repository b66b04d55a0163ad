"""From a training run to the champion and an answer, on the command line."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from cifar_mlflow.export import load_model_file
from tests.end_to_end.conftest import Project, open_project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registered(
    tmp_path_factory: pytest.TempPathFactory, images: Path, empty_store: Path, shared_cache: Path
) -> Iterator[Project]:
    """Return a project with version 1 from `train --register` and version 2 from a later `register`."""
    folder = tmp_path_factory.mktemp("registered")
    with open_project(folder, images, empty_store, shared_cache) as project:
        named = ("--registered-model", "cifar10")  # not the name of the folder
        output = project.train("--register", "--serve-precision", "fp32", "--epochs", "4", *named)
        assert "The validation split has only 12 images" in output
        assert "The test split has only 12 images" in output
        assert "Registered version 1 of cifar10: cnn as fp32" in output
        phases = (
            "Loading the libraries",
            "Training ",
            "Evaluating on ",
            "Exporting cnn of run ",
            "Logging and ",
        )
        places = [output.find(f" {phase}") for phase in phases]
        assert -1 < places[0] < places[1] < places[2] < places[3] < places[4], output
        project.train("--epochs", "1", "--lr", "1e-4")
        output = project.invoke("register", newest_training(project), "--target_accuracy", "0.8", *named)
        assert "Registered version 2 of cifar10: cnn as" in output
        decision = output.partition("cnn as ")[2].splitlines()[0]
        assert output.count(decision) == 1
        yield project


def test_promote_refuse_force_and_roll_back(registered: Project) -> None:
    assert "no previous champion" in registered.invoke("rollback", code=2)
    assert "\nversion 1 " in registered.invoke("promote", "1")
    refusal = registered.invoke("promote", newest_training(registered), code=1)
    assert "it is worse than the champion" in refusal
    assert "already" in registered.invoke("promote", code=1)
    assert "It was forced" in registered.invoke("promote", "2", "--force")
    assert champion(registered) == "2"
    assert "in place of version 2" in registered.invoke("rollback")
    assert champion(registered) == "1"


def test_classify_uses_the_champion(registered: Project, images: Path) -> None:
    registered.invoke("promote", "1", "--force", code=1 if champion(registered) == "1" else 0)
    folder = registered.folder / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no image")
    for color in ("red", "green", "blue"):
        (folder / f"{color}.png").write_bytes((images / color / "00.png").read_bytes())
    output = registered.invoke("classify", "photos", "--output", "answers.csv", "--top_k", "2")
    assert "photos/broken.png: This is not a picture" in output
    answers = pd.read_csv(registered.folder / "answers.csv").set_index("path")
    for color in ("red", "green", "blue"):
        assert answers.loc[f"photos/{color}.png", "label"] == color


def test_evaluate_and_export_use_the_trained_weights_of_a_version(registered: Project) -> None:
    version = registered.client.get_model_version("cifar10", "1")
    registered.client.set_registered_model_alias("cifar10", "tried", "1")
    output = registered.invoke(
        "evaluate", "--model", "models:/cifar10@tried", "--dataset", "folder", "--threads", "1",
        "--data-dir", str(registered.images),
    )  # fmt: skip
    assert f"models:/cifar10@tried is version 1; loading the weights of its run {version.run_id}" in output
    evaluated, trained = registered.runs[0], registered.client.get_run(str(version.run_id))
    assert evaluated.data.tags["model_run_id"] == version.run_id
    for name, value in evaluated.data.metrics.items():
        assert value == pytest.approx(trained.data.metrics[name], abs=1e-6), name

    registered.invoke("export", "models:/cifar10/1", "--output", "served.safetensors")
    assert load_model_file(registered.folder / "served.safetensors")[1].run_id == version.run_id


def test_export_refuses_a_version_that_register_did_not_make(registered: Project) -> None:
    mlflow.set_tracking_uri(registered.env["MLFLOW_TRACKING_URI"])
    run_id = registered.client.get_model_version("cifar10", "1").run_id
    mlflow.register_model(f"runs:/{run_id}/model", "elsewhere")
    output = registered.invoke("export", "models:/elsewhere/1", code=2)
    assert "models:/elsewhere/1 was not created by cifar-mlflow register" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("register", "abc"), "not the id of a run"),
        (("register", "f" * 32, "--serve-precision", "int4"), "--serve-precision"),
        (("promote", "7"), "no version 7"),
        (("promote", "--registered-model", "a/b"), "has up to 100 letters, digits"),
        (("classify", "nowhere", "--model-uri", "models:/cifar10/1"), "nowhere"),
        (
            ("classify", ".", "--model-uri", "models:/other@champion"),
            "models:/other@champion cannot be loaded",
        ),
        (("train", "--register", "--target-accuracy", "2"), "--target-accuracy"),
    ],
)
def test_a_wrong_argument_is_reported_without_a_traceback(
    registered: Project, arguments: tuple[str, ...], message: str
) -> None:
    assert message in registered.invoke(*arguments, code=2)


def newest_training(project: Project) -> str:
    return next(run.info.run_id for run in project.runs if run.data.tags["kind"] == "train")


def champion(project: Project) -> str | None:
    version = project.client.get_registered_model("cifar10").aliases.get("champion")
    return str(version) if version else None

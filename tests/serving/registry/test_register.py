"""`register`: the contents of a new version, and the checks before it is created."""

import hashlib
import io
import logging
import re
import shutil
import sqlite3
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import Split, load_dataset
from cifar_mlflow.data.split import divide
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.evaluation.job import evaluate
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.evaluation.report import report_on
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.tracking.settings import settings_of_run
from cifar_mlflow.verb_config import EvaluateConfig
from serving.registry.abstention import ood_images
from serving.registry.loader import load_scorer
from serving.registry.versions import RECORD_TAG, facts, model_of_run
from tests.serving.registry.conftest import CLASSES, Registry, Trained, paint, register

pytestmark = pytest.mark.slow


def validation(trained: Trained, cache_dir: Path) -> Split:
    config = DataConfig(
        dataset="folder", data_dir=trained.images, val_size=0.5, split_seed=7, cache_dir=cache_dir
    )
    return divide(load_dataset(config), config)[1]


def versions(client: mlflow.MlflowClient) -> list[Any]:
    return list(client.search_model_versions("name = 'cifar10'"))


def test_the_version_gives_the_answers_of_the_trained_network(
    registry: Registry, trained: Trained, shared_cache: Path
) -> None:
    data = validation(trained, shared_cache)
    classifier, card = load_classifier(trained.run_id)
    scorer = load_scorer("models:/cifar10/1")
    scores = scorer.score(data.images)
    expected = report_on(
        classifier,
        data,
        card.classes,
        "val",
        temperature=card.temperature,
        device=torch.device("cpu"),
    )
    np.testing.assert_array_equal(
        scores.probabilities.argmax(1), predict_logits(classifier, data.images).argmax(1)
    )
    accuracy = (scores.probabilities.argmax(1) == data.labels).mean()
    assert accuracy == card.metrics["val/accuracy"] == float(registry.original.tags["val_accuracy"])
    assert scorer.card["metrics"]["serve/val_ece"] == pytest.approx(expected.calibrated.ece, abs=1e-3)


def test_the_version_explains_its_answers(registry: Registry, trained: Trained, shared_cache: Path) -> None:
    images = validation(trained, shared_cache).images[:20]
    classifier, _ = load_classifier(trained.run_id)
    scorer = load_scorer("models:/cifar10/1")
    assert scorer.card["class_map"] == {"side": 4, "stride": 8}
    maps = scorer.score(images, explain=True).class_maps
    np.testing.assert_allclose(maps.sum((1, 2)), predict_logits(classifier, images).max(1), atol=1e-3)


def test_coverage_and_accuracy_in_the_card_are_those_of_the_certain_answers(
    registry: Registry, trained: Trained, shared_cache: Path
) -> None:
    data = validation(trained, shared_cache)
    scorer = load_scorer("models:/cifar10/1")
    scores = scorer.score(data.images)
    uncertain = scorer.card["uncertain"]
    assert 0 < uncertain["coverage"] < 1
    assert (~scores.uncertain).mean() == uncertain["coverage"]
    right = scores.probabilities.argmax(1) == data.labels
    assert right[~scores.uncertain].mean() == pytest.approx(uncertain["accuracy"])
    assert uncertain["accuracy"] >= uncertain["target_accuracy"] == 0.95
    assert (scores.ood > scorer.card["ood"]["above"]).mean() == pytest.approx(0.2, abs=0.01)
    assert scorer.card["ood"]["auroc"].keys() == ood_images(32).keys()


def test_tags_of_a_version_are_few_and_one_has_the_record(
    registry: Registry, trained: Trained, tmp_path: Path
) -> None:
    version, card = registry.original, load_classifier(trained.run_id)[1]
    assert version.tags.keys() == {
        "run_id", "model", "data", "precision", "val_accuracy", "test_accuracy", RECORD_TAG,
    }  # fmt: skip
    expected = {
        "run_id": trained.run_id, "model": "cnn", "precision": "fp32", "data": "images", "agreement": 1.0,
        "data_digest": card.data_digest, "val_size": 0.5, "split_seed": 7, "classes": [*CLASSES],
        "decision": "fp32, as requested", "judged_by": "108 validation images",
        "test_accuracy": repr(card.metrics["test/accuracy"]),
    }  # fmt: skip
    assert {key: facts(version.tags)[key] for key in expected} == expected
    assert version.run_id == trained.run_id
    folder = Path(
        mlflow.artifacts.download_artifacts("models:/cifar10/1/artifacts/scorer", dst_path=tmp_path)
    )
    digests = {
        f"sha256.{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
    }
    assert digests.keys() == {"sha256.model.onnx", "sha256.scorer.json"}
    assert facts(version.tags).items() >= digests.items()


def test_the_model_card_is_on_the_pages_of_version_and_model_and_a_file(
    registry: Registry, trained: Trained, tmp_path: Path
) -> None:
    version, metrics = registry.original, load_scorer("models:/cifar10/1").card["metrics"]
    text = version.description
    first, _, rest = text.partition("\n")
    assert first == (
        f"cnn on images, served as fp32: {metrics['serve/fp32/val_accuracy']:.1%} of validation images right"
    )
    for section in ("Data", "Results", "Results by class", "Calibration", "Limits", "How to call it"):
        assert f"\n## {section}\n" in rest
    assert re.search(rf"\n\| test, as trained\s+\| {metrics['test/accuracy']:.1%}\s+\|", rest)
    assert all(re.search(rf"\n\| {name}\s+\| [\d.]+%\s+\|", rest) for name in CLASSES)
    assert f"is then {metrics['serve/val_ece']:.3f}" in rest
    assert registry.model("1").tags["mlflow.note.content"] == text
    file = mlflow.artifacts.download_artifacts("models:/cifar10/1/artifacts/MODEL_CARD.md", dst_path=tmp_path)
    assert Path(file).read_text() == text
    about = registry.client.get_registered_model("cifar10").description
    assert about.startswith("Classifies images into 3 classes: blue, green, red\n")


def test_the_example_of_the_model_card_runs(registry: Registry) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", registry.original.description, re.DOTALL)
    said = io.StringIO()
    with redirect_stdout(said):
        exec(code, {})
    assert "'top_k'" in said.getvalue()


def test_the_run_does_not_change_and_the_logged_model_has_the_metrics(
    registry: Registry, trained: Trained
) -> None:
    run = registry.client.get_run(trained.run_id)
    before = mlflow.MlflowClient(f"sqlite:///{trained.store}").get_run(trained.run_id)
    assert run.info == before.info
    assert run.data.to_dictionary() == before.data.to_dictionary()
    logged = {metric.key: metric for metric in registry.model("1").metrics}
    assert {key for key in logged if "ood_auroc" not in key} == {
        "val/accuracy", "val/f1_macro", "val/ece",
        "serve/agreement", "serve/val_ece", "serve/val_coverage", "serve/val_certain_accuracy",
        "serve/fp32/val_accuracy", "serve/fp32/agreement", "serve/fp32/megabytes", "serve/fp32/ms_batch_1",
        "serve/fp32/ms_batch_16",
    }  # fmt: skip
    assert len(logged) == 12 + 7
    accuracy = before.data.metrics["val/accuracy"]
    assert logged["serve/fp32/val_accuracy"].value == logged["val/accuracy"].value == accuracy
    assert logged["val/accuracy"].dataset_name == "images-validation"
    measured = registry.client.get_run(logged["val/accuracy"].run_id)
    assert (measured.info.status, measured.data.tags["kind"]) == ("FINISHED", "register")
    assert measured.data.tags["mlflow.parentRunId"] == trained.run_id
    assert [model.model_id for model in measured.inputs.model_inputs] == [registry.model("1").model_id]


def test_the_trained_and_the_served_network_can_be_ranked_together(
    registry: Registry, trained: Trained
) -> None:
    run = registry.client.get_run(trained.run_id)
    found = registry.client.search_logged_models(
        [run.info.experiment_id], order_by=[{"field_name": "metrics.val/accuracy", "ascending": False}]
    )
    assert {model.name for model in found if any(m.key == "val/accuracy" for m in model.metrics)} == {
        "model", "scorer",
    }  # fmt: skip


def test_int8_is_registered_with_the_metrics_of_both_candidates(
    client: mlflow.MlflowClient, trained: Trained, shared_cache: Path
) -> None:
    made = register(trained.easy, serve_precision="int8")
    assert (made.name, made.number, made.precision) == ("cifar10", "1", "int8")
    assert made.message.endswith("cnn as int8, as requested, validation accuracy 100.0 %")
    scorer = load_scorer("models:/cifar10/1")
    assert scorer.card["precision"] == "int8"
    config = DataConfig(
        dataset="folder", data_dir=trained.folder / "vivid", val_size=0.5, cache_dir=shared_cache
    )
    data = divide(load_dataset(config), config)[1]
    np.testing.assert_array_equal(scorer.score(data.images).probabilities.argmax(1), data.labels)
    assert client.get_model_version("cifar10", "1").tags["val_accuracy"] == "1.0"
    metrics = load_scorer("models:/cifar10/1").card["metrics"]
    assert metrics["serve/int8/val_accuracy"] == metrics["serve/fp32/val_accuracy"] == 1
    assert metrics["serve/int8/megabytes"] < metrics["serve/fp32/megabytes"]
    assert metrics["serve/int8/ms_batch_16"] > 0


def test_a_run_without_validation_images_has_no_coverage_and_no_accuracy(
    registry: Registry, trained: Trained
) -> None:
    version = registry.version("2")
    assert "val_accuracy" not in version.tags
    assert facts(version.tags)["judged_by"] == "216 training images, as no images were held out"
    assert "No images were held out to measure it." in version.description
    card = load_scorer("models:/cifar10/2").card
    assert card["uncertain"] == {
        "confidence_below": 0.95,
        "target_accuracy": 0.95,
        "coverage": None,
        "accuracy": None,
        "reason": "no images were held out, so nothing verifies that 95 % of the certain answers are right",
    }
    metrics = [metric.key for metric in registry.model("2").metrics]
    assert {"serve/fp32/train_accuracy", "train/accuracy"} <= {*metrics}
    assert not [name for name in metrics if "val" in name]


def test_a_target_out_of_reach_makes_every_answer_uncertain(
    client: mlflow.MlflowClient,
    trained: Trained,
    shared_cache: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("cifar_mlflow"), "propagate", True)
    register(trained.run_id, serve_precision="fp32", target_accuracy=0.999)
    reason = (
        r"\d+ validation images of 108, those like the training images, are too few to verify that 99\.9 % "
        "of the certain answers are right"
    )
    scorer = load_scorer("models:/cifar10/1")
    uncertain = scorer.card["uncertain"]
    assert (uncertain["coverage"], uncertain["accuracy"]) == (0, None)
    assert re.match(reason, uncertain["reason"])
    assert scorer.score(validation(trained, shared_cache).images).uncertain.all()
    description = client.get_model_version("cifar10", "1").description
    for text in (caplog.text, description):
        assert re.search(f"Every answer is marked as uncertain: {reason}.*--target-accuracy", text)
    assert "below a confidence" not in description
    assert "may get confident answers" not in caplog.text
    model_id = client.get_model_version("cifar10", "1").source.removeprefix("models:/")
    metrics = {metric.key: metric.value for metric in client.get_logged_model(model_id).metrics or ()}
    assert metrics["serve/val_coverage"] == 0
    assert "serve/val_certain_accuracy" not in metrics


def test_auto_takes_fp32_without_validation_images(client: mlflow.MlflowClient, trained: Trained) -> None:
    made = register(trained.on_all_images)
    assert made.precision == "fp32"
    assert "no images were held out" in made.message
    assert not [name for name in load_scorer("models:/cifar10/1").card["metrics"] if "int8" in name]


def test_images_that_moved_are_found_by_data_dir(
    client: mlflow.MlflowClient, trained: Trained, tmp_path: Path
) -> None:
    moved = shutil.copytree(trained.images, tmp_path / "images")
    run_id = elsewhere(client, trained, tmp_path / "gone")
    with pytest.raises(UsageError, match="gone is not a folder"):
        register(run_id, serve_precision="fp32")
    assert register(run_id, serve_precision="fp32", data_dir=moved).number == "1"


def elsewhere(client: mlflow.MlflowClient, trained: Trained, data_dir: Path) -> str:
    """Change the run as if its images had been in another folder, and return its id."""
    with sqlite3.connect(client.tracking_uri.removeprefix("sqlite:///")) as database:
        database.execute(
            "UPDATE params SET value = ? WHERE key = 'data_dir' AND run_uuid = ?",
            (str(data_dir), trained.run_id),
        )
    return trained.run_id


def test_images_other_than_the_training_data_are_refused(
    client: mlflow.MlflowClient, trained: Trained, tmp_path: Path
) -> None:
    other = paint(tmp_path / "other")
    (other / "red" / "00.png").unlink()
    with pytest.raises(UsageError, match=r"trained on other images than those of .*other .*--data-dir"):
        register(trained.run_id, data_dir=other)
    assert versions(client) == []


def test_a_logged_model_with_different_answers_does_not_become_a_version(
    client: mlflow.MlflowClient, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = mlflow.pyfunc.load_model

    class Defective:
        """A model that gives the answers in the wrong order."""

        def __init__(self, uri: str) -> None:
            self.model = load(uri)

        def predict(self, table: pd.DataFrame) -> list[dict[str, Any]]:
            return list(self.model.predict(table))[::-1]

    monkeypatch.setattr(mlflow.pyfunc, "load_model", Defective)
    with pytest.raises(CifarError, match="the logged model classifies an image as"):
        register(trained.run_id, serve_precision="fp32")
    assert versions(client) == []


def test_a_logged_model_that_does_not_load_does_not_become_a_version(
    client: mlflow.MlflowClient, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_model(path: str) -> None:
        raise ValueError(f"{Path(path).name} was changed\nmore")

    monkeypatch.setattr(mlflow.pyfunc, "load_model", load_model)
    with pytest.raises(CifarError, match=r"the logged model does not work: \w+ was changed$"):
        register(trained.run_id, serve_precision="fp32")
    assert versions(client) == []


def test_a_model_of_own_images_is_named_after_the_folder_and_keeps_its_edited_description(
    client: mlflow.MlflowClient, trained: Trained
) -> None:
    client.create_registered_model("vivid", description="ours")
    made = register(trained.easy, serve_precision="fp32", registered_model=None)
    assert (made.name, made.number) == ("vivid", "1")
    assert model_of_run(trained.easy) == "vivid"
    assert model_of_run(trained.run_id) is None
    assert [model.name for model in client.search_registered_models()] == ["vivid"]
    assert client.get_registered_model("vivid").description == "ours"


def test_the_description_of_a_registered_model_has_its_commands(
    client: mlflow.MlflowClient, trained: Trained
) -> None:
    register(trained.easy, serve_precision="fp32", registered_model="my photos")
    commands = re.findall("`(.*?)`", client.get_registered_model("my photos").description)
    assert commands == [
        "champion",
        "cifar-mlflow serve --model-uri 'models:/my photos@champion'",
        "mlflow models serve -m 'models:/my photos@champion' --env-manager local",
        "cifar-mlflow promote --registered-model 'my photos'",
        "cifar-mlflow rollback --registered-model 'my photos'",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run_id": "abc"}, "not the id of a run"),
        ({"run_id": "pretraind"}, r"pretraind; did you mean pretrained\?"),
        ({"serve_precision": "int4"}, r"--serve-precision must be .*'fp32'.*, not int4"),
        ({"registered_model": "a/b"}, r"has up to 100 letters, digits"),
        ({"target_accuracy": 1.0}, r"--target-accuracy must be less than 1, not 1\.0"),
    ],
)
def test_arguments_are_checked_first(
    client: mlflow.MlflowClient, trained: Trained, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        register(**{"run_id": trained.run_id, **arguments})


def test_an_unknown_run_and_a_run_without_weights_are_refused(
    client: mlflow.MlflowClient, trained: Trained, shared_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"there is no run {'f' * 32} in sqlite"):
        register("f" * 32)
    evaluated = evaluate(
        EvaluateConfig(
            model_uri=trained.run_id, dataset="folder", data_dir=trained.images, cache_dir=shared_cache
        )
    )
    with pytest.raises(UsageError, match="is not a training, but of kind evaluate"):
        register(evaluated.run_id)
    stopped = client.create_run(client.create_experiment("stopped", str(tmp_path))).info.run_id
    client.log_text(stopped, "", "notes.txt")
    client.set_terminated(stopped, "KILLED")
    with pytest.raises(UsageError, match=f"no weights to load; .*: cifar-mlflow train --resume {stopped}"):
        register(stopped)


def test_instead_of_a_search_its_best_trial_is_named(client: mlflow.MlflowClient, trained: Trained) -> None:
    experiment = client.get_run(trained.run_id).info.experiment_id
    search = client.create_run(experiment, tags={"kind": "search", "best.run_id": trained.run_id}).info.run_id
    message = f"run {search} is not a training, but of kind search; take its best trial, {trained.run_id}"
    for refused in (lambda: register(search), lambda: settings_of_run(search)):
        with pytest.raises(UsageError, match=message):
            refused()


def test_an_unfinished_or_deleted_run_is_refused(client: mlflow.MlflowClient, trained: Trained) -> None:
    client.update_run(trained.run_id, status="RUNNING")
    with pytest.raises(UsageError, match="is not finished"):
        register(trained.run_id)
    client.update_run(trained.run_id, status="FINISHED")
    client.delete_run(trained.run_id)
    with pytest.raises(UsageError, match="is deleted"):
        register(trained.run_id)


def test_an_unreachable_server_is_reported(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://alice:S3cret@127.0.0.1:{free_port}")
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0.1")
    for call in (register, load_classifier):
        with pytest.raises(
            CifarError, match=rf"MLflow at http://alice:\*\*\*@127.0.0.1:{free_port} does not answer"
        ) as found:
            call(trained.run_id)
        assert not isinstance(found.value, UsageError), "which would say that it was requested wrongly"


def test_a_run_that_is_registered_already_is_named(
    registry: Registry, trained: Trained, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cifar_mlflow"), "propagate", True)
    assert register(trained.run_id, serve_precision="fp32").number == "3"
    (warning,) = {record.message for record in caplog.records if "already" in record.message}
    assert warning.startswith(f"Run {trained.run_id} is version 1 (fp32, validation accuracy ")
    assert "of cifar10 already" in warning


def test_ctrl_c_leaves_no_run_that_seems_to_be_running(
    client: mlflow.MlflowClient, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        register(trained.easy, serve_precision="fp32")
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.info.status for run in runs if run.data.tags.get("kind") == "register"] == ["KILLED"]
    assert versions(client) == []


def test_a_lost_response_leaves_no_run_that_seems_to_be_running(
    client: mlflow.MlflowClient, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([MlflowException("the connection broke", TEMPORARILY_UNAVAILABLE), None])
    creates = mlflow.MlflowClient.create_run

    def create_run(self: mlflow.MlflowClient, *arguments: Any, **settings: Any) -> Any:
        made = creates(self, *arguments, **settings)
        if error := next(answers):
            raise error
        return made

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", create_run)
    register(trained.easy, serve_precision="fp32")
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.info.status for run in runs if run.data.tags.get("kind") == "register"] == ["FINISHED"]


def test_a_lost_response_does_not_create_a_second_version(
    client: mlflow.MlflowClient, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([MlflowException("the connection broke", TEMPORARILY_UNAVAILABLE), None])

    def register_model(*arguments: Any, registers: Any = mlflow.register_model, **settings: Any) -> Any:
        made = registers(*arguments, **settings)
        if error := next(answers):
            raise error
        return made

    monkeypatch.setattr(mlflow, "register_model", register_model)
    made = register(trained.easy, serve_precision="fp32")
    assert [str(version.version) for version in versions(client)] == [made.number]
    assert client.get_model_version(made.name, made.number).description.startswith("cnn on vivid")

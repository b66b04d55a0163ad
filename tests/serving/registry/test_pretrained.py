"""`pretrained`: the network that is released with the package."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner

from cifar_mlflow.cli import main
from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.reference import load_classifier
from cifar_mlflow.models.pretrained import RELEASED_WEIGHTS
from serving.registry.loader import load_scorer

EXAMPLES = Path(__file__).parents[3] / "serving" / "examples"
LARGEST_BYTES = 4_000_000


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_the_released_network_becomes_the_champion_without_images_of_its_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["register", "pretrained", "--promote"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "is now the champion of cifar10" in result.output
    scorer = load_scorer("models:/cifar10@champion")
    sample = load_dataset(DataConfig(dataset="sample")).split("test")
    scores = scorer.score(sample.images)
    classifier, card = load_classifier("pretrained")
    logits = predict_logits(classifier, sample.images)
    assert np.abs(softmax(logits, card.temperature) - scores.probabilities).mean() < 0.01
    assert (scores.probabilities.argmax(1) == sample.labels).mean() > 0.85
    assert (scores.probabilities.argmax(1) == logits.argmax(1)).mean() > 0.97
    # The run of the version has the weights, so that the other verbs take it.
    run = mlflow.MlflowClient().get_model_version_by_alias("cifar10", "champion").tags["run_id"]
    assert scorer.card["run_id"] == run
    again, _ = load_classifier("models:/cifar10@champion")
    few = sample.images[:50]  # both in one batch of the same size: the last bits depend on it
    np.testing.assert_array_equal(predict_logits(again, few), predict_logits(classifier, few))
    shown = CliRunner().invoke(main, ["runs"]).output
    assert f"{card.metrics['test/accuracy']:.1%}".replace("%", " %") in shown
    # A refused promotion fails as that of `promote` does.
    mlflow.MlflowClient().set_model_version_tag("cifar10", "1", "val_accuracy", "1.0")
    refused = CliRunner().invoke(main, ["register", "pretrained", "--promote"])
    assert refused.exit_code == 1, refused.output
    assert "Registered" in refused.output
    assert "is worse than the champion" in refused.output


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_the_released_network_is_exported_without_images_of_its_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    registered = CliRunner().invoke(main, ["register", "pretrained", "--promote"])
    assert registered.exit_code == 0, registered.output
    champion = ["export", "models:/cifar10@champion", "--format", "onnx", "--precision", "fp32,int8"]
    result = CliRunner().invoke(main, [*champion, "--output", "exported"])
    assert result.exit_code == 0, result.output
    assert {path.suffix for path in Path("exported").iterdir()} == {".onnx"}
    (run,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.kind = 'export'", output_format="list"
    )
    assert run.data.tags["verified_on"] == "1,000 test images"


def test_settings_without_effect_on_the_released_network_are_refused() -> None:
    result = CliRunner().invoke(main, ["register", "pretrained", "--serve-precision", "fp32"])
    assert result.exit_code == 2
    assert "leave out --serve-precision" in result.stderr


def test_the_released_files_are_small() -> None:
    assert RELEASED_WEIGHTS.stat().st_size <= LARGEST_BYTES


@pytest.mark.thorough
@pytest.mark.usefixtures("mlflow_store")
def test_training_starts_from_the_released_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--dataset", "sample", "--weights", "pretrained", "--epochs", "1", "--lr", "0.001"]
    result = CliRunner().invoke(main, [*arguments, "--aux-lr", "0.001", "--test", "false"])
    assert result.exit_code == 0, result.output
    (run,) = mlflow.MlflowClient().search_runs(["1"])
    assert run.data.params["model"] == "fast"
    assert run.data.metrics["val/accuracy"] > 0.85

"""The requirements on every export format. A format's tests subclass the contract and import `written`."""

import json
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar, NamedTuple

import numpy as np
import pytest

from cifar_mlflow.cli import EXPORT_FORMATS
from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.format import ExportFormat, ModelToExport, Predict
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.verb_config import ExportConfig
from tests.export.models import block_images, to_export


class Written(NamedTuple):
    form: ExportFormat
    model: ModelToExport
    path: Path
    predict: Predict

    def expected(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the trained network."""
        return softmax(predict_logits(self.model.classifier, images), self.model.card.temperature)


def write(
    name: str,
    architecture: str,
    precision: str,
    folder: Path,
    reference: str = "models:/cifar10/7",
    **options: object,
) -> Written:
    form: ExportFormat = resolve_name(EXPORT_FORMATS[name])
    config = ExportConfig.model_validate({"license": "CC-BY-4.0", **options})
    if command := form.missing(config):
        pytest.skip(command)
    model = to_export(architecture, precision, config, reference)  # type: ignore[arg-type]
    path = form.write(model, folder)
    return Written(form, model, path, form.load(path))


@pytest.fixture(scope="class")
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Write a small network in the format of the test class."""
    contract: type[FormatContract] = request.cls
    return write(contract.name, "cnn", "fp32", tmp_path_factory.mktemp(contract.name), **contract.options)  # type: ignore[arg-type]


class FormatContract:
    """The tests; a class per format inherits them."""

    name: ClassVar[str]
    options: ClassVar[dict[str, object]] = {}

    def test_it_writes_one_file_or_folder_that_is_named_after_the_model(self, written: Written) -> None:
        assert [path.name for path in written.path.parent.iterdir()] == [written.path.name]
        assert written.path.name.startswith("cnn")

    def test_a_batch_of_64_gets_the_probabilities_of_the_trained_network(self, written: Written) -> None:
        images = block_images(64, seed=3)
        probabilities, expected = written.predict(images), written.expected(images)
        assert probabilities.dtype == np.float32
        assert len(set(expected.argmax(axis=1))) > 1  # otherwise the comparison would say little
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)

    def test_a_batch_of_one_gets_the_same_probabilities(self, written: Written) -> None:
        images = block_images(64, seed=3)
        np.testing.assert_allclose(written.predict(images[5:6]), written.predict(images)[5:6], atol=1e-5)

    @pytest.mark.parametrize(
        "wrong",
        [
            np.zeros((2, 31, 31, 3), np.uint8),
            np.zeros((2, 3, 32, 32), np.uint8),
            np.zeros((32, 32, 3), np.uint8),
            np.zeros((2, 32, 32, 3), np.float32),
        ],
        ids=["size", "layout", "no batch", "dtype"],
    )
    def test_images_of_another_kind_are_refused(self, written: Written, wrong: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"images must be uint8 \(N, 32, 32, 3\)"):
            written.predict(wrong)

    def test_the_file_describes_itself(self, written: Written) -> None:
        metadata = written.form.metadata(written.path)
        assert ModelCard.model_validate_json(metadata["card"]) == written.model.card
        assert json.loads(metadata["classes"]) == list(written.model.card.classes)
        assert "central square, resized to 32 x 32" in metadata["preprocessing"]
        assert metadata["license"] == "CC-BY-4.0"
        assert metadata["version"].startswith("cifar-mlflow ")
        assert metadata["version"].endswith(written.model.reference)

    def test_the_model_is_not_changed(self, written: Written) -> None:
        fresh = to_export("cnn").classifier
        for name, tensor in written.model.classifier.state_dict().items():
            assert (tensor == fresh.state_dict()[name]).all(), name
        assert not any(module.training for module in written.model.classifier.modules())

    def test_the_runtime_is_named(self, written: Written) -> None:
        library, version = written.form.runtime().split(" ")
        assert library
        assert version[0].isdecimal()

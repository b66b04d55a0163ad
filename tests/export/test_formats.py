"""Every format of this package keeps the contract, with every architecture."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from cifar_mlflow.cli import EXPORT_FORMATS
from tests.export.contract import FormatContract, write, written
from tests.export.models import block_images

__all__ = ["written"]

FORMATS = sorted(name for name, place in EXPORT_FORMATS.items() if place.startswith("cifar_mlflow."))


class TestOnnx(FormatContract):
    name = "onnx"


@pytest.mark.slow
class TestOnnxWithPreprocessing(FormatContract):
    name = "onnx"
    options: ClassVar[dict[str, object]] = {"with_preprocessing": True}


class TestSafetensors(FormatContract):
    name = "safetensors"


class TestHdf5Weights(FormatContract):
    name = "hdf5-weights"


@pytest.mark.slow
class TestPt2(FormatContract):
    name = "pt2"


@pytest.mark.slow
class TestSavedModel(FormatContract):
    name = "savedmodel"


@pytest.mark.slow
class TestKeras(FormatContract):
    name = "keras"


@pytest.mark.slow
class TestH5(FormatContract):
    name = "h5"


@pytest.mark.slow
class TestLitert(FormatContract):
    name = "litert"


@pytest.mark.slow
class TestExecutorch(FormatContract):
    name = "executorch"


def test_every_format_keeps_the_contract() -> None:
    assert {contract.name for contract in FormatContract.__subclasses__()} >= {*FORMATS}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        pytest.param("onnx", "fast", marks=pytest.mark.slow),
        *(
            pytest.param("onnx", architecture, marks=pytest.mark.thorough)
            for architecture in ("resnet18", "resnet34", "resnet50", "vgg11", "vgg13", "vgg16", "vgg19")
        ),
        *(
            pytest.param(name, architecture, marks=pytest.mark.thorough)
            for name in FORMATS
            if name != "onnx"
            for architecture in ("fast", "resnet18", "vgg16")
        ),
    ],
)
def test_every_architecture_gets_the_probabilities_of_the_trained_network(
    name: str, architecture: str, tmp_path: Path
) -> None:
    written = write(name, architecture, "fp32", tmp_path)
    images = block_images(8, seed=3)
    np.testing.assert_allclose(written.predict(images), written.expected(images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_int8_is_smaller_and_close_to_the_trained_network(name: str, tmp_path: Path) -> None:
    fp32 = write(name, "cnn", "fp32", tmp_path)
    int8 = write(name, "cnn", "int8", tmp_path)
    assert int8.path.name == f"cnn-int8{fp32.path.suffix}"
    assert int8.form.metadata(int8.path)["precision"] == "int8"
    images = block_images(200, seed=3)
    answers, expected = int8.predict(images), int8.expected(images)
    assert answers.dtype == np.float32
    assert (answers.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
    assert 0 < np.abs(answers - expected).mean() < 0.1
    large_fp32 = write(name, "fast", "fp32", tmp_path).path.stat().st_size
    large_int8 = write(name, "fast", "int8", tmp_path).path.stat().st_size
    assert large_int8 < 0.5 * large_fp32

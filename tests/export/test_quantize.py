import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from cifar_mlflow.export.onnx import save_onnx
from cifar_mlflow.export.quantize import quantize
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network


def block_images(count: int, seed: int) -> np.ndarray:
    """Return images of coloured blocks, which even an untrained network tells apart, unlike noise."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


pytestmark = pytest.mark.slow

TRAINING = block_images(450, seed=0)  # more than are used for calibration


def logits(model: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"images": images})[0]
    return answer


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    classifier = ImageClassifier(build_network("cnn", 5, width=0.5), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    with torch.no_grad():
        classifier(torch.from_numpy(TRAINING).permute(0, 3, 1, 2) / 255)
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    save_onnx(
        path,
        classifier,
        ModelCard(
            model="cnn",
            classes=tuple("abcde"),
            image_size=32,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            width=0.5,
        ),
    )
    return path


@pytest.fixture(scope="module")
def int8(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    quantize(fp32, path, TRAINING)
    return path


def test_int8_logits_are_close_to_fp32(fp32: Path, int8: Path) -> None:
    images = block_images(200, seed=1)
    expected, actual = logits(fp32, images), logits(int8, images)
    error = np.sqrt(((actual - expected) ** 2).mean()) / expected.std(axis=0).mean()
    assert 0 < error < 0.1
    assert (actual.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_inputs_and_outputs_stay_the_same_for_any_batch_size(fp32: Path, int8: Path) -> None:
    for count in (1, 7):
        assert logits(int8, block_images(count, seed=2)).shape == (count, 5)
    for side in ("input", "output"):
        (before,), (after,) = (getattr(onnx.load(model).graph, side) for model in (fp32, int8))
        assert (after.name, after.type) == (before.name, before.type)


def test_the_model_shrinks_to_a_third_and_weights_use_7_bits(fp32: Path, int8: Path) -> None:
    assert int8.stat().st_size < fp32.stat().st_size / 3
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(int8).graph.initializer}
    filters = [values for values in tensors.values() if values.dtype == np.int8 and values.ndim == 4]
    assert len(filters) == 5  # of six convolutions, all but the first
    # 2 * 255 * 64 is the largest sum of two products that 16 bits hold.
    assert max(np.abs(weights.astype(int)).max() for weights in filters) == 64
    scales = {values.shape for name, values in tensors.items() if name.endswith("weight_scale")}
    assert scales == {(len(weights),) for weights in filters}  # one per output channel


def test_operators_between_convolutions_are_quantized(int8: Path) -> None:
    graph = onnx.load(int8).graph
    producer = {output: node.op_type for node in graph.node for output in node.output}
    pools = [node for node in graph.node if node.op_type == "MaxPool"]
    assert len(pools) == 3
    assert {producer[pool.input[0]] for pool in pools} == {"DequantizeLinear"}


def test_quantization_is_deterministic(fp32: Path, int8: Path, tmp_path: Path) -> None:
    quantize(fp32, tmp_path / "again.onnx", TRAINING)
    assert (tmp_path / "again.onnx").read_bytes() == int8.read_bytes()


def test_ranges_are_calibrated_on_the_training_images(fp32: Path, tmp_path: Path) -> None:
    dark = TRAINING // 8
    quantize(fp32, tmp_path / "dark.onnx", dark)
    images = block_images(200, seed=1)

    def error(model: Path, shown: np.ndarray) -> float:
        expected = logits(fp32, shown)
        return float(np.sqrt(((logits(model, shown) - expected) ** 2).mean()) / expected.std())

    assert error(tmp_path / "dark.onnx", images // 8) < error(tmp_path / "dark.onnx", images) / 2


def test_three_images_are_enough_and_nothing_is_printed(
    fp32: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        quantize(fp32, tmp_path / "few.onnx", TRAINING[:3])
    assert logits(tmp_path / "few.onnx", TRAINING).shape == (450, 5)
    assert (capfd.readouterr(), caplog.text) == (("", ""), "")

"""The preprocessing in the graph against that of the scorer, bit by bit."""

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from cifar_mlflow.export.preprocessing import preprocessing_graph
from cifar_mlflow.scorer.preprocess import decode_image

EXAMPLES = Path(__file__).parents[2] / "serving/examples"
# Height and width: same size, odd margins, enlarged, reduced, extreme aspects.
SIZES = [
    *[(32, 32), (33, 33), (31, 31), (1, 1), (2, 2), (1, 40), (40, 1), (3, 5), (16, 16), (32, 41), (41, 32)],
    *[(64, 64), (65, 64), (37, 512), (100, 101), (333, 500), (427, 640), (640, 480), (600, 1100)],
]


def session(size: int) -> onnxruntime.InferenceSession:
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(preprocessing_graph(size), opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def to_32() -> onnxruntime.InferenceSession:
    return session(32)


def pictures(height: int, width: int) -> dict[str, np.ndarray]:
    """Return noise, noise of the two extreme values, which overshoots most, and a ramp."""
    rng = np.random.default_rng(height * 1000 + width)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    extremes = np.where(noise > 127, np.uint8(255), np.uint8(0))
    ramp = np.linspace(0, 255, height)[:, None, None] * np.linspace(0, 1, width)[:, None] * [1, 0.5, 0.2]
    return {"noise": noise, "extremes": extremes, "ramp": ramp.astype(np.uint8)}


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_pixel_is_that_of_the_scorer(
    height: int, width: int, to_32: onnxruntime.InferenceSession
) -> None:
    for kind, pixels in pictures(height, width).items():
        (images,) = to_32.run(None, {"image": pixels})
        np.testing.assert_array_equal(images[0], decode_image(as_png(pixels), 32), err_msg=kind)


def test_photos_get_the_pixels_of_the_scorer(to_32: onnxruntime.InferenceSession) -> None:
    for path in EXAMPLES.glob("*.png"):
        (images,) = to_32.run(None, {"image": np.asarray(Image.open(path).convert("RGB"))})
        np.testing.assert_array_equal(images[0], decode_image(path.read_bytes(), 32))


def test_another_size_of_the_network(to_32: onnxruntime.InferenceSession) -> None:
    pixels = pictures(150, 99)["noise"]
    (images,) = session(48).run(None, {"image": pixels})
    np.testing.assert_array_equal(images[0], decode_image(as_png(pixels), 48))

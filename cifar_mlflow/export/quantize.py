"""Quantize an ONNX model to 8-bit weights and activations: a quarter of the size, several times the speed.

Static quantization in QDQ format:
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
The convolutions and the operators between them are quantized. The head stays in fp32: it costs next to
nothing, and small differences there decide between two classes.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from cifar_mlflow.data import SelectedImages

CALIBRATION_IMAGES = 400
CALIBRATION_SEED = 0
# The range of a layer is the mean minimum to the mean maximum over the calibration batches, so the batch size
# decides how much is clipped. 10 was the best of 1 to 100: a `fast` network kept 98.8 to 99.0 % of fp32's
# labels on the 5,000 validation images of CIFAR-10 (three draws of images); with 100 it kept 98.0 to 98.6 %.
CALIBRATION_BATCH = 10
QUANTIZED_OPERATORS = ["Conv", "Relu", "Add", "MaxPool"]


def quantize(model: Path, path: Path, images: NDArray[np.uint8] | SelectedImages) -> None:
    """Write the int8 version of `model` to `path`.

    Weights become int8 with one scale per output channel, activations uint8 with one scale per layer: the
    vector instructions of CPUs (VNNI) multiply unsigned by signed numbers. Weights use 7 of their 8 bits:
    CPUs without VNNI add two products in 16 bits, which 8 bits would overflow, so that the answers would
    depend on the machine.

    Args:
        model: a file that `save_onnx` wrote.
        images: training images, uint8 (N, S, S, 3), N > 0. The ranges of the activations are measured on up
            to 400 of them; the draw is seeded.
    """
    graph = onnx.load(model).graph
    first = next(node.name for node in graph.node if node.op_type == "Conv")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        # Only add the shapes: constants are folded already.
        quant_pre_process(str(model), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            _CalibrationBatches(calibration_images(images)),
            op_types_to_quantize=QUANTIZED_OPERATORS,
            # Its input is the image itself, with only three channels: there is nothing to gain.
            nodes_to_exclude=[first],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},
        )


def calibration_images(images: NDArray[np.uint8] | SelectedImages) -> NDArray[np.uint8]:
    """Return up to 400 of the images, drawn by a fixed seed and in their order."""
    drawn = np.random.default_rng(CALIBRATION_SEED).permutation(len(images))[:CALIBRATION_IMAGES]
    return images[np.sort(drawn)]


class _CalibrationBatches(CalibrationDataReader):
    def __init__(self, images: NDArray[np.uint8]) -> None:
        starts = range(0, len(images), CALIBRATION_BATCH)
        self._batches = iter([images[start : start + CALIBRATION_BATCH] for start in starts])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}

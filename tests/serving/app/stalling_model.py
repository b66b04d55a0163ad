"""A model whose inference time depends on the colour of the image, to make a server time out."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.registry.mlflow_model import save_model
from tests.scorer_folders import CLASSES, SIZE, write_scorer_folder
from tests.serving.app.conftest import image

SLOW = image((13, 1, 0))  # many seconds
ENDLESS = image((255, 1, 0))  # days


def save_stalling_model(folder: Path) -> str:
    """Write the model to a new folder and return its path."""
    save_model(write_stalling_scorer(folder), folder / "model")
    return str(folder / "model")


def write_stalling_scorer(folder: Path) -> Path:
    """Write the scorer folder of the model into a new folder and return its path."""
    folder.mkdir()
    network = (folder / "network.onnx").absolute()
    onnx.save(_network(), network)
    digest = hashlib.sha256(network.read_bytes()).hexdigest()
    scorer = write_scorer_folder(folder / "scorer", files={"model.onnx": digest})
    network.replace(scorer / "model.onnx")
    return scorer


def _network() -> onnx.ModelProto:
    """Build a network whose logits are 10 x the mean of each channel, in 0..1.

    If the largest green value of the batch is 1, the network first multiplies matrices; the number of
    multiplications is the fourth power of the largest red value.
    """
    constants: dict[str, np.ndarray] = {
        "sides": np.array([1, 2], np.int64),
        "all_but_channels": np.array([0, 1, 2], np.int64),
        "scale": np.array(10 / 255, np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "four": np.array(4, np.float32),
        "first": np.array(0, np.int64),
        "second": np.array(1, np.int64),
        "true": np.array(True),
        "matrix": np.eye(200, dtype=np.float32),
    }
    loop = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
            helper.make_node("MatMul", ["factor", "factor"], ["product"]),
        ],
        "loop",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, [200, 200]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, [200, 200]),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "sides"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["colours"]),
        helper.make_node("ReduceMax", ["pixels", "all_but_channels"], ["highest"], keepdims=0),
        helper.make_node("Gather", ["highest", "first"], ["red"]),
        helper.make_node("Gather", ["highest", "second"], ["green"]),
        helper.make_node("Equal", ["green", "one"], ["is_slow"]),
        helper.make_node("Pow", ["red", "four"], ["power"]),
        helper.make_node("Where", ["is_slow", "power", "zero"], ["number"]),
        helper.make_node("Cast", ["number"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "true", "matrix"], ["last"], body=loop),
        helper.make_node("ReduceMin", ["last"], ["lowest"], keepdims=0),
        helper.make_node("Mul", ["lowest", "zero"], ["nothing"]),
        helper.make_node("Add", ["colours", "nothing"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stalling",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

"""Create scorer folders with predictable answers: the network measures the colours of an image."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cifar_mlflow.export.on_demand import compute_on_demand

CLASSES = ["red", "green", "blue"]
CLASS_MAP = {"side": 4, "stride": 8}  # in a card: the network gives maps
SIZE = 32


def colour_network(path: Path, slow: bool = False, class_map: bool = False, distance: bool = False) -> Path:
    """Write a network whose logits are 10 x the mean of each channel, in 0..1.

    The `slow` one takes about 0.1 s per batch and fails if a pixel of a batch is 255. With `class_map`, it
    gives maps of 4 x 4 on demand, and with `distance`, the mean of all channels, in 0..255.
    """
    constants: dict[str, np.ndarray] = {
        "axes": np.array([1, 2], np.int64),
        "scale": np.array(10 / 255, np.float32),
        "square": np.array([1000, 1000], np.int64),
        "zeros": np.zeros(255, np.float32),
        "cells": np.array([-1, 4, SIZE // 4, 4, SIZE // 4, 3], np.int64),
        "within_cells": np.array([2, 4], np.int64),
        "share": np.array(10 / 255 / SIZE**2, np.float32),
        "channels": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["fast_logits" if slow else "logits"]),
    ]
    if slow:
        nodes += [
            helper.make_node("ReduceMax", ["pixels"], ["matrix0"], keepdims=0),
            helper.make_node("Expand", ["matrix0", "square"], ["product0"]),
            *(
                helper.make_node("MatMul", [f"product{i}", f"product{i}"], [f"product{i + 1}"])
                for i in range(4)
            ),
            helper.make_node("ReduceMin", ["product4"], ["number"], keepdims=0),
            helper.make_node("Cast", ["matrix0"], ["highest"], to=TensorProto.INT64),
            helper.make_node("Gather", ["zeros", "highest"], ["zero"]),
            helper.make_node("Min", ["number", "zero"], ["nothing"]),
            helper.make_node("Add", ["fast_logits", "nothing"], ["logits"]),
        ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])]
    if distance:
        nodes.append(helper.make_node("ReduceMean", ["means", "channels"], ["distance"], keepdims=1))
        outputs.append(helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["N", 1]))
    if class_map:
        nodes += [
            helper.make_node("Reshape", ["pixels", "cells"], ["in_cells"]),
            helper.make_node("ReduceSum", ["in_cells", "within_cells"], ["sums"], keepdims=0),
            helper.make_node("Mul", ["sums", "share"], ["last_channels"]),
            helper.make_node("Transpose", ["last_channels"], ["class_map"], perm=[0, 3, 1, 2]),
        ]
        shape = ("N", len(CLASSES), 4, 4)
        outputs.append(helper.make_tensor_value_info("class_map", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    compute_on_demand(path)
    return path


def write_scorer_folder(folder: Path, **card: Any) -> Path:
    """Create `folder` with a colour network and a card, whose fields `card` overrides."""
    folder.mkdir(parents=True)
    model = colour_network(folder / "model.onnx", class_map="class_map" in card)
    content = {
        "format": 1,
        "classes": CLASSES,
        "image_size": SIZE,
        "fit": "crop",
        "precision": "fp32",
        "temperature": 1.0,
        "uncertain": {"confidence_below": 0.6, "target_accuracy": 0.95, "coverage": 0.9, "accuracy": 0.96},
        "ood": {"score": "energy", "above": -2.0, "auroc": {}},
        "data": "colours",
        "data_digest": "0",
        "run_id": "0",
        "metrics": {},
        "files": {"model.onnx": hashlib.sha256(model.read_bytes()).hexdigest()},
        **card,
    }
    (folder / "scorer.json").write_text(json.dumps(content))
    return folder

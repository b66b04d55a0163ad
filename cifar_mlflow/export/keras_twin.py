"""Rebuild a network as a Keras model with the same weights, from its ONNX graph.

ONNX has the channels before rows and columns, Keras has them last: the twin drops the first transposition of
the graph and keeps every image in Keras's order. Each operator becomes a standard layer, so that the model
can be loaded without our code, retrained, and converted further. An operator that is not in the table, or
that has attributes which no network here uses, is an error.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers
from onnx import helper, numpy_helper

from cifar_mlflow.errors import CifarError

Tensor = Any  # Keras's symbolic tensor
CHANNELS_FIRST = [0, 3, 1, 2]


class _UnsupportedOperatorError(CifarError):
    def __init__(self, node: onnx.NodeProto, detail: str = "") -> None:
        super().__init__(f"Keras: operator {node.op_type} is not supported{detail} (node {node.name})")


class _Node:
    """An ONNX node: its attributes by name, its inputs (symbolic tensors or constants), and a unique name."""

    def __init__(
        self,
        node: onnx.NodeProto,
        position: int,
        tensors: dict[str, Tensor],
        constants: dict[str, np.ndarray],
    ) -> None:
        self.proto = node
        self.name = f"{node.op_type.lower()}_{position}"
        self.attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        self.images = [tensors[name] for name in node.input if name in tensors]
        self.constants = [constants[name] for name in node.input if name in constants]

    def require(self, condition: bool, detail: str) -> None:
        if not condition:
            raise _UnsupportedOperatorError(self.proto, f" {detail}")


def keras_twin(network: onnx.ModelProto, temperature: float) -> keras.Model:
    """Return a Keras model that gives the same answers as the network.

    Args:
        network: as `save_onnx` writes it, fp32.

    Returns:
        A functional model. Input `images`: uint8 (N, S, S, 3), RGB. Outputs `probabilities` and `logits`:
        float32 (N, classes).

    Raises:
        CifarError: an operator is not supported.
    """
    graph = network.graph
    (entry,) = graph.input
    (logits,) = graph.output
    shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim[1:]]
    images = keras.Input(shape=shape, dtype="uint8", name="images")
    tensors: dict[str, Tensor] = {entry.name: images}
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for position, node in enumerate(graph.node):
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            continue
        if node.op_type not in _LAYERS:
            raise _UnsupportedOperatorError(node)
        tensors[node.output[0]] = _LAYERS[node.op_type](_Node(node, position, tensors, constants))
    answer = layers.Identity(name="logits")(tensors[logits.name])
    calibrated = layers.Rescaling(1 / temperature, name="temperature")(answer)
    probabilities = layers.Softmax(name="probabilities")(calibrated)
    return keras.Model(images, {"probabilities": probabilities, "logits": answer}, name="classifier")


def _transpose(node: _Node) -> Tensor:
    node.require(node.attributes["perm"] == CHANNELS_FIRST, "except before the first layer")
    return node.images[0]


def _cast(node: _Node) -> Tensor:
    node.require(node.attributes["to"] == onnx.TensorProto.FLOAT, "to another type than float32")
    return node.images[0]  # the first layer casts


def _subtract(node: _Node) -> Tensor:
    node.require(len(node.constants) == 1 and len(node.images) == 1, "of two images")
    return layers.Rescaling(1.0, _per_channel(node, -node.constants[0]))(node.images[0])


def _multiply(node: _Node) -> Tensor:
    node.require(len(node.constants) == 1, "of two images")
    return layers.Rescaling(_per_channel(node, node.constants[0]))(node.images[0])


def _add(node: _Node) -> Tensor:
    node.require(len(node.images) == 2, "with a constant")
    return layers.Add()(node.images)


def _per_channel(node: _Node, constant: np.ndarray) -> float | list[float]:
    values = constant.ravel().tolist()
    if len(values) == 1:
        return float(values[0])
    node.require(constant.ndim == 4 and constant.shape[1] == len(values), "with a constant of this shape")
    return [float(value) for value in values]


def _conv(node: _Node) -> Tensor:
    kernel, *bias = node.constants
    node.require(node.attributes.get("group", 1) == 1, "in groups")
    node.require(set(node.attributes.get("dilations", [1])) == {1}, "with dilation")
    node.require(node.attributes.get("auto_pad", b"NOTSET") == b"NOTSET", "with auto_pad")
    x = node.images[0]
    top, left, bottom, right = node.attributes.get("pads", [0, 0, 0, 0])
    strides = node.attributes.get("strides", [1, 1])
    # Keras's "same" pads like ONNX only without strides.
    centred = (top, left) == (bottom, right) and (2 * top + 1, 2 * left + 1) == kernel.shape[2:]
    same = centred and strides == [1, 1]
    if not same and any((top, left, bottom, right)):
        x = layers.ZeroPadding2D(((top, bottom), (left, right)))(x)
    layer = layers.Conv2D(
        kernel.shape[0],
        kernel.shape[2:],
        strides=strides,
        padding="same" if same else "valid",
        use_bias=bool(bias),
        name=node.name,
    )
    return _with_weights(layer, x, kernel.transpose(2, 3, 1, 0), *bias)


def _batch_norm(node: _Node) -> Tensor:
    layer = layers.BatchNormalization(epsilon=node.attributes.get("epsilon", 1e-5), name=node.name)
    return _with_weights(layer, node.images[0], *node.constants)


def _gemm(node: _Node) -> Tensor:
    weight, *bias = node.constants
    factors = (node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0))
    node.require(factors == (1.0, 1.0) and not node.attributes.get("transA"), "with these attributes")
    kernel = weight.T if node.attributes.get("transB") else weight
    layer = layers.Dense(kernel.shape[1], use_bias=bool(bias), name=node.name)
    return _with_weights(layer, node.images[0], kernel, *bias)


def _with_weights(layer: layers.Layer, x: Tensor, *weights: np.ndarray) -> Tensor:
    y = layer(x)  # creates the weights
    layer.set_weights(weights)
    return y


def _max_pool(node: _Node) -> Tensor:
    window, strides = node.attributes["kernel_shape"], node.attributes["strides"]
    plain = not any(node.attributes.get("pads", [0])) and set(node.attributes.get("dilations", [1])) == {1}
    rounds_up = bool(node.attributes.get("ceil_mode"))
    # Keras's "same" makes the last window smaller, as rounding up does. Larger windows it would also shift.
    node.require(plain and (not rounds_up or window == strides == [2, 2]), "with padding")
    return layers.MaxPooling2D(window, strides, "same" if rounds_up else "valid")(node.images[0])


def _global_pool(layer: type[layers.Layer]) -> Callable[[_Node], Tensor]:
    def pool(node: _Node) -> Tensor:
        axes = {int(axis) % 4 for axis in node.constants[0].ravel()} if node.constants else set()
        node.require(axes == {2, 3} and node.attributes.get("keepdims", 1) == 1, "except over the image")
        return layer(keepdims=True)(node.images[0])

    return pool


def _reshape(node: _Node) -> Tensor:
    x = node.images[0]
    # With rows and columns left, the order of the values would depend on the layout.
    node.require(len(x.shape) == 4 and x.shape[1:3] == (1, 1), "except after global pooling")
    return layers.Flatten()(x)


_LAYERS: dict[str, Callable[[_Node], Tensor]] = {
    "Add": _add,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Conv": _conv,
    "Gelu": lambda node: layers.Activation("gelu")(node.images[0]),
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "Mul": _multiply,
    "ReduceMax": _global_pool(layers.GlobalMaxPooling2D),
    "ReduceMean": _global_pool(layers.GlobalAveragePooling2D),
    "Relu": lambda node: layers.ReLU()(node.images[0]),
    "Reshape": _reshape,
    "Sub": _subtract,
    "Transpose": _transpose,
}

"""The Keras model beside the network: standard layers that Keras can load, train and export again."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cifar_mlflow.errors import CifarError
from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.keras import H5, KERAS, prepare_tensorflow
from cifar_mlflow.verb_config import ExportConfig
from tests.export.models import block_images, to_export

MISSING = KERAS.missing(ExportConfig())

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=MISSING or "")]


def test_keras_loads_both_files_without_our_code_and_can_train_them(tmp_path: Path) -> None:
    model = to_export("cnn")
    files = [form.write(model, tmp_path) for form in (KERAS, H5)]
    import keras

    for file in files:
        loaded = keras.models.load_model(file)
        assert {layer.__class__.__module__.split(".")[0] for layer in loaded.layers} == {"keras"}
        images = block_images(8, seed=3)
        before = loaded.predict(images, verbose=0)["probabilities"]
        loaded.compile("sgd", loss={"probabilities": "sparse_categorical_crossentropy"})
        loaded.fit(images, {"probabilities": np.zeros(8)}, verbose=0)
        assert np.abs(loaded.predict(images, verbose=0)["probabilities"] - before).max() > 0


def test_smaller_windows_at_the_border_give_the_probabilities_of_the_trained_network(tmp_path: Path) -> None:
    model = to_export("vgg11", size=40)  # the last two stages have 5 and 3 positions per side
    images = block_images(8, 3, 40)
    expected = softmax(predict_logits(model.classifier, images), model.card.temperature)
    answers = KERAS.load(KERAS.write(model, tmp_path))(images)
    np.testing.assert_allclose(answers, expected, atol=1e-4)


def node(operator: str, *more_inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, ["images", *more_inputs], ["logits"], **attributes)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (node("Sigmoid"), "operator Sigmoid is not supported"),
        (node("Transpose", perm=[0, 2, 1, 3]), "Transpose is not supported except before"),
        (node("Conv", "kernel", group=3), "Conv is not supported in groups"),
        (node("Add", "kernel"), "Add is not supported with a constant"),
        (
            node("MaxPool", kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1),
            "MaxPool is not supported with padding",
        ),
        (node("Reshape", "kernel"), "Reshape is not supported except after global pooling"),
    ],
)
def test_an_unsupported_operator_is_named(operator: onnx.NodeProto, words: str) -> None:
    prepare_tensorflow()
    from cifar_mlflow.export.keras_twin import keras_twin

    graph = helper.make_graph(
        [operator],
        "network",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.zeros((3, 1, 3, 3), np.float32), "kernel")],
    )
    with pytest.raises(CifarError, match=words):
        keras_twin(helper.make_model(graph), 1.0)

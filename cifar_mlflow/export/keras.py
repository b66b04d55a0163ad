"""The export formats `savedmodel`, `keras` and `h5`: TensorFlow and Keras, for servers and further training.

All three hold the Keras model of `keras_twin`: uint8 (N, S, S, 3) RGB in, `probabilities` and `logits`,
float32 (N, classes), out. The SavedModel has them in its signature `serving_default`.
"""

import importlib
import importlib.metadata
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from cifar_mlflow.export.conversion import conversion
from cifar_mlflow.export.format import ExportFormat, Images, ModelToExport, Predict, check_images
from cifar_mlflow.export.metadata import ENTRY, append_metadata, read_metadata
from cifar_mlflow.export.onnx import network_onnx
from cifar_mlflow.models.card import ModelCard

if TYPE_CHECKING:
    import keras

SIGNATURE = "serving_default"
H5_ATTRIBUTE = "cifar_mlflow"


class _Tensorflow(ExportFormat):
    extra = "tensorflow"
    modules = ("tensorflow", "keras")

    def build(self, model: ModelToExport) -> "keras.Model":
        network = network_onnx(model)
        with conversion("TensorFlow"):
            prepare_tensorflow()
            from cifar_mlflow.export.keras_twin import keras_twin

            return keras_twin(network, model.card.temperature)

    def load(self, path: Path) -> Predict:
        size = ModelCard.model_validate_json(self.metadata(path)["card"]).image_size
        with conversion("TensorFlow"):
            prepare_tensorflow()
            run = self.open(path)

        def predict(images: Images) -> np.ndarray:
            check_images(images, size)
            probabilities: np.ndarray = run(images)["probabilities"].numpy()
            return probabilities

        return predict

    def open(self, path: Path) -> Any:
        """Return a function from images to tensors by the name of the output."""
        import keras
        import tensorflow as tf

        model = keras.models.load_model(path)
        return tf.function(lambda images: model(images, training=False))

    def runtime(self) -> str:
        return f"tensorflow {importlib.metadata.version('tensorflow')}"


class _SavedModel(_Tensorflow):
    name = "savedmodel"

    def write(self, model: ModelToExport, folder: Path) -> Path:
        network = self.build(model)
        path = folder / f"{model.stem}-savedmodel"
        with conversion("TensorFlow"):
            import tensorflow as tf
            from keras.export import ExportArchive

            size = model.card.image_size
            archive = ExportArchive()
            archive.add_endpoint(  # tracks the weights; `track` would store them a second time
                SIGNATURE,
                lambda images: network(images, training=False),
                [tf.TensorSpec((None, size, size, 3), tf.uint8, name="images")],
            )
            archive.write_out(str(path), verbose=False)
        extra = path / "assets.extra"  # where TensorFlow Serving expects files that are not part of the graph
        extra.mkdir()
        (extra / ENTRY).write_text(json.dumps(model.metadata(), indent=2, ensure_ascii=False))
        return path

    def open(self, path: Path) -> Any:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))
        signature = loaded.signatures[SIGNATURE]
        return lambda images: signature(images=tf.constant(images))

    def metadata(self, path: Path) -> dict[str, str]:
        metadata: dict[str, str] = json.loads((path / "assets.extra" / ENTRY).read_text())
        return metadata


class _Keras(_Tensorflow):
    name = "keras"

    def write(self, model: ModelToExport, folder: Path) -> Path:
        path = folder / f"{model.stem}.keras"
        network = self.build(model)
        with conversion("TensorFlow"):
            network.save(path)
        append_metadata(path, model.metadata())
        return path

    def metadata(self, path: Path) -> dict[str, str]:
        return read_metadata(path)


class _H5(_Tensorflow):
    name = "h5"

    def write(self, model: ModelToExport, folder: Path) -> Path:
        path = folder / f"{model.stem}.h5"
        network = self.build(model)
        with conversion("TensorFlow"):
            network.save(path)
        with h5py.File(path, "r+") as file:
            file.attrs[H5_ATTRIBUTE] = json.dumps(model.metadata(), ensure_ascii=False)
        return path

    def metadata(self, path: Path) -> dict[str, str]:
        with h5py.File(path) as file:
            metadata: dict[str, str] = json.loads(file.attrs[H5_ATTRIBUTE])
        return metadata


def prepare_tensorflow() -> None:
    """Prepare this process for TensorFlow and Keras; call this before their first import."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # torch imports Triton when it first exports a network. After TensorFlow, that import crashes the process.
    with suppress(ImportError):
        importlib.import_module("triton")


SAVEDMODEL = _SavedModel()
KERAS = _Keras()
H5 = _H5()

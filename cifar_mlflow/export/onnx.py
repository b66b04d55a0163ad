"""Save models as .onnx: one file that any ONNX runtime can run, from pixels to logits or probabilities.

`save_onnx` writes the network that `register` serves. Input `images`: uint8 (N, S, S, 3), RGB. Output
`logits`: float32 (N, classes), to be divided by the temperature before the softmax. Output `distance`:
float32 (N, 1), to be added to the energy of the logits (`FeatureDistance`). Output `class_map`: float32
(N, classes, h, w), computed only if the optional input `explain`, a bool, is true. N is free, S is the card's
image size; the graph normalizes the images. The file's metadata has `cifar_mlflow_format` (version) and
`card` (the model card as JSON).

The export format `onnx` adds the output `probabilities`, float32 (N, classes), before the logits. With
preprocessing, the input is `image`, uint8 (H, W, 3) of any size, and N is 1.
"""

import json
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import compose, helper
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

from cifar_mlflow.evaluation.class_map import WithClassMap, ending
from cifar_mlflow.evaluation.feature_distance import FeatureDistance, WithDistance, fit_distance
from cifar_mlflow.export.files import FORMAT_VERSION
from cifar_mlflow.export.format import ExportFormat, Images, ModelToExport, Predict, check_images
from cifar_mlflow.export.pixels import LogitsOfPixels
from cifar_mlflow.export.preprocessing import preprocessing_graph
from cifar_mlflow.export.quantize import quantize
from cifar_mlflow.files import atomic_write
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.scorer.engine import CLASS_MAP

# The first with the activation of `fast` as one operator; ONNX Runtime has it since 1.17.
OPSET = 20


def save_onnx(
    path: Path,
    classifier: ImageClassifier,
    card: ModelCard,
    distance: FeatureDistance | None = None,
    *,
    class_map: bool = False,
) -> None:
    """Write a model to `path` atomically.

    Batch norms are folded into the convolutions before them. The classifier is not changed and may be in any
    mode and on any device.

    Args:
        distance: adds the output `distance`, float32 (N, 1).
        class_map: add the output `class_map`, if the network allows it. It is always computed until
            `compute_on_demand` has changed the file, which comes after `quantize`.

    Raises:
        CifarError: the file cannot be written.
    """
    example = torch.zeros(2, card.image_size, card.image_size, 3, dtype=torch.uint8)
    classifier = deepcopy(classifier).cpu()
    last = ending(classifier.network) if class_map else None
    outputs = ["logits"]
    if distance:
        classifier.network = WithDistance(classifier.network, distance)
        outputs.append("distance")
    if last:
        classifier.network = WithClassMap(classifier.network, last)
        outputs.append(CLASS_MAP)
    program = torch.onnx.export(
        LogitsOfPixels(classifier).eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=outputs,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    assert program is not None  # only the old exporter returns None
    # The exporter adds to each node the lines of code it comes from, with the paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(
        {"cifar_mlflow_format": str(FORMAT_VERSION), "card": json.dumps(card.model_dump(mode="json"))}
    )
    with atomic_write(path) as temporary:
        program.save(temporary)


def network_onnx(model: ModelToExport, *, with_distance: bool = False) -> onnx.ModelProto:
    """Return the network as `save_onnx` describes it, in the model's precision."""
    distance = None
    if with_distance:
        images = model.eval_set.images.images
        distance = fit_distance(model.classifier, model.training_images, images, model.card.temperature)
    with TemporaryDirectory() as folder:
        path = Path(folder, "fp32.onnx")
        save_onnx(path, model.classifier, model.card, distance)
        if model.precision == "int8":
            path = Path(folder, "int8.onnx")
            quantize(Path(folder, "fp32.onnx"), path, model.training_images)
        return onnx.load(path)


def complete_onnx(
    model: ModelToExport, *, with_preprocessing: bool, with_distance: bool = False
) -> onnx.ModelProto:
    """Return the network as the format `onnx` describes it, with its metadata."""
    network = network_onnx(model, with_distance=with_distance)
    graph = network.graph
    _add_probabilities(graph, model.card.temperature)
    if with_preprocessing:
        graph = _put_first(preprocessing_graph(model.card.image_size), graph)
    complete = helper.make_model(
        graph, opset_imports=network.opset_import, ir_version=network.ir_version, producer_name="cifar-mlflow"
    )
    helper.set_model_props(complete, model.metadata())
    onnx.checker.check_model(complete, full_check=True)
    return complete


class _Onnx(ExportFormat):
    name = "onnx"
    precisions = ("fp32", "int8")
    preprocessing = True

    def write(self, model: ModelToExport, folder: Path) -> Path:
        path = folder / f"{model.stem}.onnx"
        complete = complete_onnx(model, with_preprocessing=model.config.with_preprocessing)
        path.write_bytes(complete.SerializeToString())
        return path

    def load(self, path: Path) -> Predict:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        size = ModelCard.model_validate_json(self.metadata(path)["card"]).image_size

        def run(images: Images) -> np.ndarray:
            probabilities: np.ndarray = session.run(["probabilities"], {entry.name: images})[0]
            return probabilities

        def predict(images: Images) -> np.ndarray:
            check_images(images, size)
            if entry.name == "images":
                return run(images)
            return np.concatenate([run(image) for image in images])

        return predict

    def metadata(self, path: Path) -> dict[str, str]:
        return {prop.key: prop.value for prop in onnx.load(path).metadata_props}

    def runtime(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}"


ONNX = _Onnx()


def _add_probabilities(graph: onnx.GraphProto, temperature: float) -> None:
    """Add the output `probabilities` before `logits`."""
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(temperature, np.float32), "temperature"))
    graph.node.append(helper.make_node("Div", ["logits", "temperature"], ["calibrated_logits"]))
    graph.node.append(helper.make_node("Softmax", ["calibrated_logits"], ["probabilities"], axis=1))
    probabilities = deepcopy(graph.output[0])  # the logits
    probabilities.name = "probabilities"
    graph.output.insert(0, probabilities)


def _put_first(preprocessing: onnx.GraphProto, network: onnx.GraphProto) -> onnx.GraphProto:
    """Feed the network from the preprocessing, which gives one image at a time."""
    del network.value_info[:]  # the shapes there have N images
    for output in network.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    first = compose.add_prefix_graph(preprocessing, "preprocessing/", rename_inputs=False)
    return compose.merge_graphs(first, network, io_map=[("preprocessing/images", "images")])

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cifar_mlflow.errors import CifarError
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.onnx import OPSET, save_onnx
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network

CARD = ModelCard(
    model="cnn",
    classes=("cat", "Hund", "größerer Vogel", "鳥"),
    image_size=32,
    mean=(0.49, 0.48, 0.45),
    std=(0.25, 0.24, 0.26),
    width=0.25,
    temperature=1.37,
    run_id="f" * 32,
    metrics={"test/accuracy": 0.8125},
)


def trained(card: ModelCard) -> ImageClassifier:
    """Return a network as training leaves it: with running statistics, channels_last, in train mode."""
    torch.manual_seed(0)
    network = build_network(card.model, len(card.classes), width=card.width)
    classifier = ImageClassifier(network, card.mean, card.std).to(memory_format=torch.channels_last)
    with torch.no_grad():
        classifier(torch.rand(16, 3, card.image_size, card.image_size))
    return classifier


def random_images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"images": images})[0]
    return logits


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    return trained(CARD)


@pytest.fixture(scope="module")
def exported(classifier: ImageClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    save_onnx(path, classifier, CARD)
    return path


def test_a_network_gives_the_logits_of_torch(exported: Path, classifier: ImageClassifier) -> None:
    assert_logits_of_torch(exported, classifier)


@pytest.mark.slow
@pytest.mark.parametrize("model", [pytest.param("fast", marks=pytest.mark.thorough), "resnet18", "vgg11"])
def test_the_other_families_do_too(model: str, tmp_path: Path) -> None:
    card = CARD.model_copy(update={"model": model, "width": 0.25 if model == "fast" else 1.0})
    classifier = trained(card)
    save_onnx(tmp_path / "model.onnx", classifier, card)
    assert_logits_of_torch(tmp_path / "model.onnx", classifier)


def assert_logits_of_torch(exported: Path, classifier: ImageClassifier) -> None:
    images = random_images(5)
    expected = predict_logits(classifier, images)
    for count in (5, 1):
        logits = answers(exported, images[:count])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[:count], rtol=1e-4, atol=1e-4 * expected.std())


@pytest.mark.slow
def test_images_of_another_size_are_accepted(tmp_path: Path) -> None:
    card = CARD.model_copy(update={"image_size": 48})
    classifier = trained(card)
    save_onnx(tmp_path / "model.onnx", classifier, card)
    images = random_images(3, 48)
    expected = predict_logits(classifier, images)
    np.testing.assert_allclose(
        answers(tmp_path / "model.onnx", images), expected, rtol=1e-4, atol=1e-4 * expected.std()
    )


def test_the_file_describes_itself(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert ModelCard.model_validate(json.loads(metadata["card"])) == CARD
    assert metadata["cifar_mlflow_format"] == "1"
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    described = [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert described == [
        ("images", onnx.TensorProto.UINT8, ["N", 32, 32, 3]),
        ("logits", onnx.TensorProto.FLOAT, ["N", 4]),
    ]


def test_normalization_is_in_the_graph_and_batch_norms_are_folded(exported: Path) -> None:
    operators = [node.op_type for node in onnx.load(exported).graph.node]
    assert operators[:4] == ["Transpose", "Cast", "Sub", "Mul"]
    assert set(operators[4:]) == {"Conv", "Relu", "MaxPool", "ReduceMean", "Reshape", "Gemm"}


@pytest.mark.slow
def test_an_export_writes_the_same_file_again_and_leaves_nothing_else_behind(
    exported: Path, classifier: ImageClassifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    random_state = torch.get_rng_state()
    folder = tmp_path / "new" / "folder"
    save_onnx(folder / "model.onnx", classifier, CARD)

    content = (folder / "model.onnx").read_bytes()
    assert content == exported.read_bytes()
    for private in (str(Path(__file__).parents[2]).encode(), b".py"):
        assert private not in content
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")

    assert all(module.training for module in classifier.modules())
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.stride() == before[name].stride(), name
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.slow
def test_an_unwritable_path_is_named(classifier: ImageClassifier, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder is needed")
    with pytest.raises(CifarError, match=r"file/model\.onnx: cannot be written"):
        save_onnx(tmp_path / "file" / "model.onnx", classifier, CARD)

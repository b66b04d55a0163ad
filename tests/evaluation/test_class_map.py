"""The maps that explain an answer sum to the logit, in the network and in the files that are served."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from cifar_mlflow.data import Split
from cifar_mlflow.evaluation.class_map import class_map_info, class_maps_of, ending
from cifar_mlflow.evaluation.feature_distance import fit_distance
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.evaluation.report import report_on
from cifar_mlflow.export.on_demand import compute_on_demand
from cifar_mlflow.export.onnx import save_onnx
from cifar_mlflow.export.quantize import quantize
from cifar_mlflow.models.card import ClassMapInfo
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.scorer.engine import Engine
from tests.export.models import CLASSES, MEAN, STD, block_images, untrained

IMAGES = block_images(6, seed=3)
EFFICIENTNETS = ["torchvision/efficientnet_b0", "timm/tf_efficientnet_lite0"]


@pytest.mark.parametrize(
    ("name", "size", "side", "stride"),
    [
        ("cnn", 32, 4, 8),
        pytest.param("fast", 32, 3, 8, marks=pytest.mark.slow),
        pytest.param("resnet18", 32, 4, 8, marks=pytest.mark.thorough),
        pytest.param("vgg11", 32, 2, 16, marks=pytest.mark.slow),
        pytest.param("vgg11", 40, 3, 16, marks=pytest.mark.slow),
        pytest.param(EFFICIENTNETS[0], 32, 1, 32, marks=pytest.mark.thorough),
        pytest.param(EFFICIENTNETS[1], 32, 1, 32, marks=pytest.mark.slow),
    ],
)
def test_the_maps_of_the_served_files_sum_to_the_logits(
    name: str, size: int, side: int, stride: int, tmp_path: Path
) -> None:
    classifier, card = untrained(name, size)
    training, images = block_images(40, 1, size), block_images(6, 3, size)
    distance = fit_distance(classifier, training, training, card.temperature)
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    save_onnx(fp32, classifier, card, distance, class_map=True)
    quantize(fp32, int8, training)
    maps = []
    for path in (fp32, int8):
        compute_on_demand(path)
        engine = Engine(path)
        plain, explained = engine.run(images), engine.run(images, explain=True)
        engine.close()
        assert plain.shape == (len(images), len(CLASSES) + 1)  # the distance
        np.testing.assert_allclose(explained[:, : plain.shape[1]], plain, atol=1e-5)
        maps.append(explained[:, plain.shape[1] :].reshape(len(images), len(CLASSES), side, side))
        np.testing.assert_allclose(maps[-1].sum((2, 3)), plain[:, : len(CLASSES)], atol=1e-4)
    assert class_map_info(classifier, size) == ClassMapInfo(side=side, stride=stride)
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.85  # int8 costs untrained networks much


@pytest.mark.parametrize(
    ("name", "size"),
    [("cnn", 32), ("cnn", 45), ("fast", 32), ("fast", 45), *((name, 96) for name in EFFICIENTNETS)],
)
def test_a_class_can_be_chosen_and_any_image_size_is_exact(name: str, size: int) -> None:
    classifier, _ = untrained(name)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    logits = predict_logits(classifier, images)
    for classes in ([0, 1, 2], [3, 3, 0]):
        maps = class_maps_of(classifier, images, np.array(classes))
        np.testing.assert_allclose(maps.sum((1, 2)), logits[range(3), classes], atol=1e-4)


@pytest.mark.parametrize(("size", "side"), [(24, 2), (32, 2), (40, 3), (48, 3)])
def test_the_map_of_vgg_covers_smaller_windows_at_the_border(size: int, side: int) -> None:
    torch.manual_seed(0)
    classifier = ImageClassifier(build_network("vgg11", len(CLASSES)), MEAN, STD).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    maps = class_maps_of(classifier, images, np.array([0, 1, 3]))
    assert maps.shape == (3, side, side)
    logits = predict_logits(classifier, images)[range(3), [0, 1, 3]]
    np.testing.assert_allclose(maps.sum((1, 2)), logits, rtol=1e-4, atol=1e-5)
    assert class_map_info(classifier, size) == ClassMapInfo(side=side, stride=16)


def test_only_the_position_of_each_maximum_counts_in_a_max_pooling() -> None:
    classifier, _ = untrained("fast")
    last = ending(classifier.network)
    assert last is not None
    seen = []
    last.features.register_forward_hook(lambda module, args, output: seen.append(output[0].flatten(1)))
    found = class_maps_of(classifier, IMAGES[:1], np.array([1]))[0].ravel()
    values, positions = seen[0].max(1)
    expected = torch.zeros(9).index_add_(0, positions, last.weight[1].detach() * values)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_report_explains_the_most_confident_mistakes() -> None:
    classifier, _ = untrained("cnn")
    right = predict_logits(classifier, IMAGES).argmax(1)
    labels = np.where(np.arange(len(IMAGES)) < 2, (right + 1) % len(CLASSES), right)
    report = report_on(classifier, Split(IMAGES, labels), CLASSES, "val", device=torch.device("cpu"))
    assert len(report.overlays) == 2
    for picture in report.overlays:
        assert picture.shape == (32, 32, 3)
        assert min(np.abs(picture.astype(int) - image).mean() for image in IMAGES[:2]) < 60


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_the_maps_of_an_efficientnet_divide_the_image_into_squares_of_32_pixels(name: str) -> None:
    classifier, _ = untrained(name)
    assert class_map_info(classifier, 96) == ClassMapInfo(side=3, stride=32)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "convnext_tiny"])
def test_layers_between_the_pooling_and_the_linear_layer_allow_no_map(name: str) -> None:
    assert ending(get_model(name, num_classes=2)) is None


def test_a_network_with_another_ending_gives_no_maps() -> None:
    classifier, _ = untrained("cnn")
    classifier.network = torch.nn.Sequential(classifier.network, torch.nn.Softmax(1))
    assert class_map_info(classifier, 32) is None

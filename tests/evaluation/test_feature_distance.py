"""The distance of an image's features from those of the training images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.evaluation.feature_distance import WithDistance, fit_distance
from cifar_mlflow.export.onnx import save_onnx
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import stages
from cifar_mlflow.scorer.engine import Engine
from serving.registry.abstention import energy, ood_auroc, ood_images
from tests.export.models import untrained

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def images(shared_cache: Path) -> Images:
    return load_dataset(DataConfig(dataset="sample", cache_dir=shared_cache)).split("train").images[:900]


def outputs(network: torch.nn.Module, classifier: ImageClassifier, images: Images) -> list[np.ndarray]:
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        return [part.numpy() for part in network((pixels - classifier.mean) / classifier.std)]


@pytest.mark.slow
def test_noise_and_flat_colours_are_far_from_photographs(images: Images) -> None:
    torch.manual_seed(0)
    classifier, card = untrained("cnn")
    distance = fit_distance(classifier, images[:600], images[600:750], card.temperature)
    network = WithDistance(classifier.network, distance)
    held_out = outputs(network, classifier, images[750:])[1][:, 0]
    for kind in ("noise", "gray_noise", "flat"):
        foreign = outputs(network, classifier, ood_images(32)[kind][:50])[1][:, 0]
        assert ood_auroc(held_out, foreign) > 0.7, kind  # of an untrained network


def test_on_the_images_of_the_scale_it_has_mean_0_and_the_spread_of_the_energy(images: Images) -> None:
    classifier, card = untrained("cnn")
    distance = fit_distance(classifier, images[:600], images[600:], card.temperature)
    logits, distances = outputs(WithDistance(classifier.network, distance), classifier, images[600:])
    assert distances.mean() == pytest.approx(0, abs=1e-4)
    assert distances.std() == pytest.approx(energy(logits, card.temperature).std(), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "fast"])
def test_the_onnx_file_gives_the_logits_and_the_distance(name: str, images: Images, tmp_path: Path) -> None:
    classifier, card = untrained(name)
    distance = fit_distance(classifier, images[:300], images[300:400], card.temperature)
    save_onnx(tmp_path / "model.onnx", classifier, card, distance)
    engine = Engine(tmp_path / "model.onnx")
    found = engine.run(images[400:470])
    assert engine.run(images[:0]).shape == (0, found.shape[1])
    engine.close()
    expected = np.hstack(outputs(WithDistance(classifier.network, distance), classifier, images[400:470]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_image_is_enough_to_fit() -> None:
    classifier, card = untrained("cnn")
    one = np.zeros((1, 32, 32, 3), np.uint8)
    two = np.stack([one[0], one[0] + 255])
    distance = fit_distance(classifier, two, one, card.temperature)
    assert np.isfinite(outputs(WithDistance(classifier.network, distance), classifier, two)[1]).all()


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("cnn", [8, 16, 32]),
        ("fast", [16, 64, 64]),
        pytest.param("resnet18", [64, 128, 256, 512], marks=pytest.mark.thorough),
        pytest.param("vgg11", [64, 128, 256, 512, 512], marks=pytest.mark.thorough),
    ],
)
def test_every_family_has_stages_of_falling_resolution(name: str, channels: list[int]) -> None:
    classifier, _ = untrained(name)
    shapes = []
    for stage in stages(classifier.network):
        stage.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[1:])))
    classifier.network(torch.zeros(1, 3, 32, 32))
    assert [shape[0] for shape in shapes] == channels
    assert [shape[1] for shape in shapes] == sorted((shape[1] for shape in shapes), reverse=True)

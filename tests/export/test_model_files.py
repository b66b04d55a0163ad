import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cifar_mlflow.config import MODELS_WITH_WIDTH
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export import FORMATS, load_model_file, write_weights
from cifar_mlflow.export.hdf5 import save_hdf5
from cifar_mlflow.export.weights import save_weights
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network

Save = Callable[[Path, ImageClassifier, ModelCard], None]
SAVERS: dict[str, Save] = {".safetensors": save_weights, ".h5": save_hdf5, ".hdf5": save_hdf5}

CARD = ModelCard(
    model="cnn",
    classes=("cat", "Hund", "größerer Vogel", "鳥"),
    image_size=32,
    mean=(0.49, 0.48, 0.45),
    std=(0.25, 0.24, 0.26),
    width=0.25,
    dropout=0.125,
    temperature=1.37,
    data="sample",
    data_digest="0123456789abcdef",
    run_id="f" * 32,
    metrics={"test/accuracy": 0.8125, "val/loss": 0.1},
)


def trained(card: ModelCard) -> ImageClassifier:
    """Return a network as training leaves it: with running statistics, channels_last, in train mode."""
    torch.manual_seed(0)
    network = build_network(card.model, len(card.classes), width=card.width, dropout=card.dropout)
    classifier = ImageClassifier(network, card.mean, card.std).to(memory_format=torch.channels_last)
    with torch.no_grad():
        classifier(torch.rand(2, 3, 32, 32))
    return classifier


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    return trained(CARD)


@pytest.fixture(params=SAVERS)
def saved(request: pytest.FixtureRequest, tmp_path: Path, classifier: ImageClassifier) -> Path:
    path = tmp_path / f"model{request.param}"
    SAVERS[request.param](path, classifier, CARD)
    return path


def set_version(path: Path, version: int) -> None:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() | {"cifar_mlflow_format": str(version)}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        save_file(tensors, path, metadata)
    else:
        with h5py.File(path, "r+") as file:
            file.attrs["cifar_mlflow_format"] = version


@pytest.mark.parametrize(
    "model", ["cnn", "fast", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vgg11"))]
)
def test_every_family_is_restored_bit_for_bit(model: str, tmp_path: Path) -> None:
    card = CARD.model_copy(update={"model": model, "width": 0.5 if model in MODELS_WITH_WIDTH else 1.0})
    classifier = trained(card)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = predict_logits(classifier, images)
    for suffix in (".safetensors", ".h5"):
        SAVERS[suffix](tmp_path / f"model{suffix}", classifier, card)
        loaded, loaded_card = load_model_file(tmp_path / f"model{suffix}")
        assert loaded_card == card
        assert not any(module.training for module in loaded.modules())
        np.testing.assert_array_equal(predict_logits(loaded, images), expected)


def test_the_card_is_restored_completely(saved: Path) -> None:
    _, card = load_model_file(saved)
    assert card == CARD
    assert type(card.temperature) is float
    assert type(card.image_size) is int
    assert type(card.metrics["val/loss"]) is float
    json.dumps(card.model_dump(mode="json"))


def test_a_loaded_model_can_be_trained(saved: Path, classifier: ImageClassifier) -> None:
    loaded, _ = load_model_file(saved)
    trainable = {name: p.requires_grad for name, p in classifier.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == trainable
    loaded.train()(torch.rand(4, 3, 32, 32)).sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    before = saved.read_bytes()
    assert not torch.equal(next(loaded.parameters()), next(classifier.parameters()))
    assert saved.read_bytes() == before


def test_loading_does_not_change_the_random_state(saved: Path) -> None:
    before = torch.get_rng_state()
    load_model_file(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_does_not_depend_on_its_file(saved: Path, classifier: ImageClassifier) -> None:
    loaded, _ = load_model_file(saved)
    with saved.open("r+b") as file:
        file.write(b"\x01" * saved.stat().st_size)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, classifier.state_dict()[name]), name


def test_plain_h5py_can_read_everything_in_an_hdf5_file(tmp_path: Path, classifier: ImageClassifier) -> None:
    save_hdf5(tmp_path / "model.h5", classifier, CARD)
    with h5py.File(tmp_path / "model.h5") as file:
        about = dict(file.attrs)
        assert (about["cifar_mlflow_format"], about["model"], about["num_classes"]) == (1, "cnn", 4)
        assert (about["width"], about["dropout"], about["image_size"]) == (0.25, 0.125, 32)
        assert list(about["classes"]) == list(CARD.classes)
        assert list(about["mean"]) == list(CARD.mean)
        assert list(about["std"]) == list(CARD.std)
        assert (about["temperature"], about["run_id"]) == (1.37, "f" * 32)
        assert (about["data"], about["data_digest"]) == ("sample", "0123456789abcdef")
        assert dict(file["metrics"].attrs) == CARD.metrics
        assert file["libraries"].attrs["torch"] == str(torch.__version__)
        for name, tensor in classifier.state_dict().items():
            np.testing.assert_array_equal(file["weights/" + name.replace(".", "/")][()], tensor.numpy())


def test_a_file_is_replaced_completely_or_not_at_all(
    saved: Path, classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(CifarError, match="No space left on device"):
            SAVERS[saved.suffix](saved, classifier, CARD)
    assert saved.read_bytes() == before
    SAVERS[saved.suffix](saved, classifier, CARD.model_copy(update={"data": "other"}))
    assert load_model_file(saved)[1].data == "other"
    assert os.listdir(saved.parent) == [saved.name]  # noqa: PTH208


def test_folders_are_created_and_the_file_is_readable_by_others(
    saved: Path, classifier: ImageClassifier, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "folder" / saved.name
    umask = os.umask(0o022)
    try:
        SAVERS[saved.suffix](path, classifier, CARD)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_that_reads_back_differently_is_not_handed_over(
    tmp_path: Path, classifier: ImageClassifier
) -> None:
    def save_other(path: Path, _: ImageClassifier, card: ModelCard) -> None:
        torch.manual_seed(1)
        save_weights(path, ImageClassifier(build_network("cnn", 4, width=0.25), card.mean, card.std), card)

    output = tmp_path / "model.safetensors"
    write_weights(output, FORMATS["safetensors"], classifier, CARD)
    before = output.read_bytes()
    with pytest.raises(CifarError, match=r"model\.safetensors: the file read back differs from the model"):
        write_weights(output, FORMATS["safetensors"]._replace(save=save_other), classifier, CARD)
    assert output.read_bytes() == before
    assert os.listdir(tmp_path) == [output.name]  # noqa: PTH208


@pytest.mark.parametrize("suffix", SAVERS)
def test_an_unwritable_path_is_named(suffix: str, tmp_path: Path, classifier: ImageClassifier) -> None:
    (tmp_path / "file").write_text("where a folder is needed")
    with pytest.raises(CifarError, match=r"file/model\S+: cannot be written"):
        SAVERS[suffix](tmp_path / "file" / f"model{suffix}", classifier, CARD)


def test_a_path_that_is_not_utf8_is_written_and_read(
    saved: Path, classifier: ImageClassifier, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"K\xe4tzchen") / saved.name
    SAVERS[saved.suffix](path, classifier, CARD)
    assert load_model_file(path)[1] == CARD


def test_an_upper_case_suffix_is_accepted(saved: Path) -> None:
    assert load_model_file(saved.rename(saved.with_suffix(saved.suffix.upper())))[1] == CARD


def test_an_unknown_suffix_is_refused_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.pt: .*\.safetensors, \.h5, \.hdf5"):
        load_model_file(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", SAVERS)
def test_a_missing_file_is_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_model_file(tmp_path / f"model{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(UsageError, match="no such file"):
        load_model_file(tmp_path / f"folder{suffix}")


def test_a_file_of_another_program_is_refused(saved: Path) -> None:
    if saved.suffix == ".safetensors":
        save_file({"weight": torch.zeros(3)}, saved)
    else:
        with h5py.File(saved, "w") as file:
            file["weight"] = np.zeros(3)
    with pytest.raises(UsageError, match="not a model of cifar_mlflow; create one with"):
        load_model_file(saved)


def test_a_newer_format_asks_for_an_update(saved: Path) -> None:
    set_version(saved, 2)
    with pytest.raises(UsageError, match=r"newer cifar_mlflow \(format 2.*update"):
        load_model_file(saved)
    set_version(saved, 1)
    assert load_model_file(saved)[1] == CARD


def test_a_model_of_an_unknown_name_is_refused(saved: Path, classifier: ImageClassifier) -> None:
    SAVERS[saved.suffix](saved, classifier, CARD.model_copy(update={"model": "resnet1001"}))
    with pytest.raises(UsageError, match="contains a resnet1001"):
        load_model_file(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -1000])
def test_a_truncated_file_is_reported_in_one_line(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CifarError, match="damaged; copy or export it again") as caught:
        load_model_file(saved)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_not_called_damaged(saved: Path) -> None:
    memory = Path("/proc/self/mem")  # not even root may read its first byte
    if not memory.exists():
        pytest.skip("needs /proc/self/mem, which only Linux has")
    saved.unlink()
    saved.symlink_to(memory)
    with pytest.raises(CifarError) as caught:
        load_model_file(saved)
    assert str(caught.value) == f"{saved}: cannot be read (Input/output error)"


def test_weights_that_do_not_fit_the_card_are_reported(saved: Path, classifier: ImageClassifier) -> None:
    SAVERS[saved.suffix](saved, classifier, CARD.model_copy(update={"width": 1.0}))
    with pytest.raises(CifarError, match=r"damaged.*size mismatch") as caught:
        load_model_file(saved)
    assert "\n" not in str(caught.value)


def test_a_card_with_a_false_size_costs_nothing(saved: Path, classifier: ImageClassifier) -> None:
    SAVERS[saved.suffix](saved, classifier, CARD.model_copy(update={"width": 5_000.0}))  # 100 terabytes
    with pytest.raises(CifarError, match="damaged"):
        load_model_file(saved)


@pytest.mark.parametrize("suffix", SAVERS)
def test_a_pickle_is_never_opened(suffix: str, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CifarError, match="damaged"):
        load_model_file(path)
    torch.save({"weight": Payload()}, path)
    with pytest.raises(CifarError, match="damaged"):
        load_model_file(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("trick", ["external link", "external storage", "virtual", "hollow"])
def test_hdf5_data_outside_the_file_is_refused(
    trick: str, tmp_path: Path, classifier: ImageClassifier
) -> None:
    path, secret = tmp_path / "model.h5", tmp_path / "secret.h5"
    save_hdf5(path, classifier, CARD)
    with h5py.File(path, "r+") as file:
        name = next(f"weights/{n.replace('.', '/')}" for n in classifier.state_dict() if n.endswith("bias"))
        values = file[name][()]
        del file[name]
        with h5py.File(secret, "w") as other:
            other["values"] = values
        if trick == "external link":
            file[name] = h5py.ExternalLink(str(secret), "values")
        elif trick == "external storage":
            file.create_dataset(name, values.shape, "f4", external=[(str(secret), 0, values.nbytes)])
        elif trick == "virtual":
            layout = h5py.VirtualLayout(values.shape, "f4")
            layout[:] = h5py.VirtualSource(str(secret), "values", values.shape)
            file.create_virtual_dataset(name, layout)
        else:
            file.create_dataset(name, (10**12,), "f4", chunks=(1024,))
    with pytest.raises(CifarError, match="damaged"):
        load_model_file(path)

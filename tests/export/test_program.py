"""Exported programs: loaded without MLflow's loader, and refused if they could run code."""

import io
import json
import os
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch

from cifar_mlflow.errors import CifarError
from cifar_mlflow.export.program import load_program
from cifar_mlflow.export.reference import load_model

FIXTURE = Path(__file__).parents[1] / "fixtures/registered_at_00676c6/model"
CONFIG = "data/weights/model_weights_config.json"


class Payload:
    """Unpickling it creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """Return the folder that exists only if a payload was unpickled."""
    return tmp_path / "executed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURE, tmp_path / "model")


def register(model: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the folder of an MLflow model as it is; return its address."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    client = mlflow.MlflowClient(f"sqlite:///{store}", f"sqlite:///{store}")
    client.create_registered_model("program")
    return f"models:/program/{client.create_model_version('program', str(model)).version}"


def saved_with_torch(payload: Payload) -> bytes:
    content = io.BytesIO()
    torch.save({"weight": payload}, content)
    return content.getvalue()


def rewrite(path: Path, changes: dict[str, Callable[[bytes], bytes]], added: dict[str, bytes]) -> None:
    """Write the archive again with changed and added records, below the folder that it has."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).split("/")[0]
    records |= {f"{root}/{name}": change(records[f"{root}/{name}"]) for name, change in changes.items()}
    records |= {f"{root}/{name}": content for name, content in added.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def test_a_logged_program_is_loaded_with_its_card(
    model: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copy(empty_store, tmp_path / "store.db")
    module, card = load_model(register(model, Path(store), monkeypatch))
    assert card.model == "cnn"
    with torch.inference_mode():
        assert module(torch.rand(5, 3, 32, 32)).shape == (5, 10)


def test_a_pickle_beside_the_program_is_never_opened(
    model: Path, executed: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "data/model.pth").write_bytes(saved_with_torch(Payload(executed)))
    (model / "data/pickle_module_info.txt").write_text("pickle")
    shutil.copytree(model / "data", model / "other")
    (model / "other/model.pt2").unlink()
    mlmodel = (model / "MLmodel").read_text()
    (model / "MLmodel").write_text(mlmodel.replace("model_data: data", "model_data: other"))
    store = shutil.copy(empty_store, tmp_path / "store.db")
    module, _ = load_model(register(model, Path(store), monkeypatch))
    assert module(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert not executed.exists()


def pickled_weight(content: bytes) -> bytes:
    config = json.loads(content)
    next(iter(config["config"].values()))["use_pickle"] = True
    return json.dumps(config).encode()


@pytest.mark.parametrize(
    "trick", ["weight", "sample inputs", "opaque constant", "old weights", "old format", "native code"]
)
def test_a_program_that_could_run_code_is_refused(trick: str, model: Path, executed: Path) -> None:
    path = model / "data/model.pt2"
    payload = Payload(executed)
    if trick == "weight":
        weight = saved_with_torch(payload)
        rewrite(path, {CONFIG: pickled_weight}, {"data/weights/weight_0": weight})
    elif trick == "sample inputs":
        rewrite(path, {}, {"data/sample_inputs/model.pt": saved_with_torch(payload)})
    elif trick == "opaque constant":
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        config = json.dumps({"config": {"x": entry}}).encode()
        rewrite(
            path,
            {"data/constants/model_constants_config.json": lambda _: config},
            {"data/constants/opaque_obj_0": pickle.dumps(payload)},
        )
    elif trick == "old weights":
        rewrite(path, {}, {"data/weights/model.pt": saved_with_torch(payload)})
    elif trick == "old format":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("version", "8.16")
            archive.writestr("serialized_exported_program.json", "{}")
            for name in ("state_dict", "constants", "example_inputs"):
                archive.writestr(f"serialized_{name}.pt", saved_with_torch(payload))
    else:
        rewrite(path, {}, {"data/aotinductor/model/code.so": b"\x7fELF"})
    with pytest.raises(CifarError, match=r"model\.pt2: the file is damaged"):
        load_program(path)
    assert not executed.exists()


def test_a_path_that_is_not_utf8_is_read(model: Path) -> None:
    path = model / os.fsdecode(b"K\xe4tzchen.pt2")
    (model / "data/model.pt2").rename(path)
    assert load_program(path)(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("keep", [0, 100, 20_000, -100])
def test_a_truncated_program_is_reported_in_one_line(keep: int, model: Path) -> None:
    path = model / "data/model.pt2"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CifarError, match="damaged; copy or export it again") as caught:
        load_program(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_program_of_a_model_in_mlflow_is_named_by_its_address(
    model: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model / "data/model.pt2"
    path.write_bytes(path.read_bytes()[:100])
    address = register(model, Path(shutil.copy(empty_store, tmp_path / "store.db")), monkeypatch)
    with pytest.raises(CifarError) as caught:
        load_model(address)
    assert str(caught.value).startswith(f"{address}/data/model.pt2: the file is damaged")


def test_a_server_that_does_not_answer_is_reported_in_few_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        store = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(CifarError) as caught:
        load_model(f"runs:/{'a' * 32}/model")
    assert str(caught.value) == f"MLflow at {store} does not answer: Connection refused"

"""The addresses of models, and the checks of their files, with a real MLflow store."""

import hashlib
import shutil
import socket
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import fsspec
import mlflow
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cifar_mlflow.errors import CifarError, UsageError
from serving.batch import classify, classify_on_engine, load_scorer
from serving.batch.pipeline import model_digest
from serving.registry.mlflow_model import log_model, save_model
from serving.registry.versions import FILE_TAG
from tests.scorer_folders import write_scorer_folder
from tests.serving.batch.test_classify import paint
from tests.shared import use_store


class Registered(NamedTuple):
    """A store with the registered model `colours`; its version 1 is the champion."""

    store: Path
    experiment: str
    run_id: str
    model_id: str


@pytest.fixture(scope="module")
def registered(
    tmp_path_factory: pytest.TempPathFactory, scorer_folder: Path, empty_store: Path
) -> Registered:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, folder)
    with use_store(f"sqlite:///{folder / 'mlflow.db'}") as patch:
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("colours", str(folder / "artifacts"))
        # MLflow logs a model to the active experiment, not to that of its run.
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        run_id = client.create_run(experiment).info.run_id
        model = log_model(scorer_folder, run_id)
        version = mlflow.register_model(model.model_uri, "colours")
        client.set_registered_model_alias("colours", "champion", version.version)
        return Registered(folder / "mlflow.db", experiment, run_id, model.model_id)


@pytest.fixture
def store(registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registered:
    """Use the store, with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered.store}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", registered.experiment)
    monkeypatch.setenv("CIFAR_MLFLOW_CACHE", str(tmp_path / "cache"))
    return registered


@pytest.mark.parametrize(
    "uri",
    [
        "models:/colours@champion",
        "models:/colours/1",
        "models:/colours/latest",
        "models:/{0.model_id}",
        "runs:/{0.run_id}/scorer",
        "{0.run_id}",
    ],
)
def test_a_model_is_found_by_name_id_and_run(uri: str, store: Registered) -> None:
    paint("photo.png")
    scorer = load_scorer(uri.format(store))
    assert classify(["photo.png"], scorer).labels.total() == 1


def test_scorer_folders_and_mlflow_models_are_loaded_from_disk(
    scorer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save_model(scorer_folder, Path("saved"))
    shutil.copytree(scorer_folder, "copied")
    for uri in ("saved", "copied", "~/copied", str(tmp_path / "saved")):
        assert load_scorer(uri).classes == ["red", "green", "blue"]


def test_the_code_of_a_model_is_not_executed(
    scorer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(scorer_folder, Path("saved"))
    for file in Path("saved").rglob("*.py"):
        file.write_text("from pathlib import Path\nPath('executed').touch()\n")
    load_scorer("saved")
    assert not Path("executed").exists()


def test_a_model_is_downloaded_once_unless_the_copy_is_damaged(store: Registered, tmp_path: Path) -> None:
    load_scorer("models:/colours@champion")
    (copy,) = (tmp_path / "cache/scorers").iterdir()
    moment = (copy / "model.onnx").stat().st_mtime_ns
    load_scorer("models:/colours/1")
    assert (copy / "model.onnx").stat().st_mtime_ns == moment
    (copy / "model.onnx").write_bytes(b"damaged")
    load_scorer("models:/colours/1")
    assert list((tmp_path / "cache/scorers").iterdir()) == [copy]
    assert (copy / "model.onnx").stat().st_size > 100


def test_a_moved_alias_loads_the_other_model(store: Registered, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    other = log_model(write_scorer_folder(tmp_path / "other", classes=["x", "y", "z"]), store.run_id, "other")
    version = mlflow.register_model(other.model_uri, "colours")
    client.set_registered_model_alias("colours", "moving", "1")
    assert load_scorer("models:/colours@moving").classes == ["red", "green", "blue"]
    client.set_registered_model_alias("colours", "moving", version.version)
    assert load_scorer("models:/colours@moving").classes == ["x", "y", "z"]


class ListingMovesTheAlias(MemoryFileSystem):
    """Files whose listing takes so long that someone promotes version 2 meanwhile."""

    protocol = "promoting"
    store: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("promoting:/")))

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        mlflow.MlflowClient().set_registered_model_alias("colours", "moving", "2")
        return super().find(path, *args, **kwargs)


def test_a_job_keeps_the_model_that_it_began_with(store: Registered, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    if len(client.search_model_versions("name = 'colours'")) < 2:
        folder = write_scorer_folder(tmp_path / "other", classes=["x", "y", "z"])
        mlflow.register_model(log_model(folder, store.run_id, "other").model_uri, "colours")
    client.set_registered_model_alias("colours", "moving", "1")
    fsspec.register_implementation("promoting", ListingMovesTheAlias, clobber=True)
    fsspec.filesystem("promoting").pipe("/in/red.png", paint("red.png").read_bytes())
    summary = classify_on_engine(["promoting://in"], "models:/colours@moving", "answers")
    assert int(client.get_model_version_by_alias("colours", "moving").version) == 2
    assert summary.labels == {"red": 1}
    assert pd.read_parquet("answers")["model"].tolist() == [model_digest(load_scorer("models:/colours/1"))]


def test_a_job_takes_a_model_by_its_id_wherever_its_files_are(
    store: Registered, scorer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("by address", (tmp_path / "artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    model = log_model(scorer_folder, client.create_run(experiment).info.run_id)
    paint("red.png")
    assert classify_on_engine(["red.png"], model.model_uri, "answers").labels == {"red": 1}


def test_a_model_whose_files_do_not_match_its_card_is_refused(store: Registered, tmp_path: Path) -> None:
    model = log_model(write_scorer_folder(tmp_path / "good", data="other"), store.run_id, "changed")
    location = mlflow.MlflowClient().get_logged_model(model.model_id).artifact_location
    with Path(location, "artifacts/scorer/model.onnx").open("ab") as file:
        file.write(b"\0")
    for uri in (f"models:/{model.model_id}", f"{location}/artifacts/scorer"):
        with pytest.raises(CifarError, match=r"cannot be used: .*model\.onnx was changed"):
            load_scorer(uri)


def test_a_card_that_differs_from_the_registered_one_is_refused(store: Registered, tmp_path: Path) -> None:
    """The tag of the version reveals that the files and the card were both replaced."""
    folder = write_scorer_folder(tmp_path / "good", data="good")
    digest = hashlib.sha256((folder / "scorer.json").read_bytes()).hexdigest()
    model = log_model(folder, store.run_id, "exchanged")
    tags = {f"{FILE_TAG}scorer.json": digest}
    version = mlflow.register_model(model.model_uri, "colours", tags=tags).version
    assert load_scorer(f"models:/colours/{version}").card["data"] == "good"
    other = write_scorer_folder(tmp_path / "other", data="other")
    location = mlflow.MlflowClient().get_logged_model(model.model_id).artifact_location
    shutil.copytree(other, Path(location, "artifacts/scorer"), dirs_exist_ok=True)
    with pytest.raises(
        CifarError, match=r"cannot be used: its scorer\.json differs from the one that was registered"
    ):
        load_scorer(f"models:/colours/{version}")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/colours@nobody", "alias nobody not found"),
        ("models:/colours/99", "version=99"),
        ("models:/nothing/1", "name=nothing"),
        ("models:/colours", "colours not found|colours. not found"),
        ("models:/m-" + "0" * 32, "not found"),
        ("runs:/{0.run_id}/nothing", "path is correct"),
        ("f" * 32, "f{{32}} not found"),
    ],
)
def test_an_unknown_model_is_reported_with_the_store(uri: str, words: str, store: Registered) -> None:
    uri = uri.format(store)
    with pytest.raises(UsageError, match=words.format()) as raised:
        load_scorer(uri)
    assert uri in str(raised.value)
    assert str(store.store) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_moved_artifact_folder_is_named(
    store: Registered, scorer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient()
    old = tmp_path / "old place"
    experiment = client.create_experiment("moved", (old / "artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    run_id = client.create_run(experiment).info.run_id
    model = log_model(scorer_folder, run_id)
    version = mlflow.register_model(model.model_uri, "colours").version
    old.rename(tmp_path / "new place")
    for uri in (run_id, model.model_uri, f"models:/colours/{version}"):
        with pytest.raises(UsageError, match=rf"should be in {old}/artifacts.*ln -s NEW_PLACE {old}\)"):
            load_scorer(uri)


def test_an_address_of_another_kind_is_reported_with_examples(tmp_path: Path) -> None:
    for uri in ("nowhere", str(tmp_path), "cifar10@champion", ""):
        with pytest.raises(UsageError, match=r"neither a model in MLflow .models:/cifar10@champion"):
            load_scorer(uri)


def test_a_missing_store_is_reported_and_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    for uri in ("models:/cifar10@champion", "f" * 32):
        with pytest.raises(UsageError, match=r"no MLflow store at /.*/mlflow\.db.*MLFLOW_TRACKING_URI"):
            load_scorer(uri)
    assert not Path("mlflow.db").exists()


def test_an_unreachable_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"@127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://alice:S3cret{address}")
        with pytest.raises(CifarError) as raised:
            load_scorer("models:/cifar10@champion")
    assert str(raised.value) == f"MLflow at http://alice:***{address} does not answer: Connection refused"

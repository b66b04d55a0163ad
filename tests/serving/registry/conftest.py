"""An MLflow store with finished training runs; every test gets a copy of it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from PIL import Image

from cifar_mlflow import pipeline
from cifar_mlflow.config import TrainConfig
from cifar_mlflow.settings import validate
from cifar_mlflow.verb_config import RegisterConfig
from serving.registry import mlflow_server, promotion
from serving.registry.register import RegisteredVersion
from serving.registry.register import register as register_run
from serving.registry.versions import RECORD_TAG
from tests.shared import made_once, use_store

CLASSES = ("blue", "green", "red")
NAME = "cifar10"


def register(run_id: str, **settings: Any) -> RegisteredVersion:
    return register_run(run_id, validate(RegisterConfig, {"registered_model": NAME, **settings}))


def promote(which: str | None = None, name: str = NAME, *, force: bool = False) -> promotion.Promotion:
    return promotion.promote(which, name, force=force)


def rollback(name: str = NAME) -> promotion.Promotion:
    return promotion.rollback(name)


@dataclass(frozen=True)
class Trained:
    """A store, a folder of images, and the ids of three runs.

    Attributes:
        run_id: trained with validation images.
        on_all_images: trained without.
        easy: trained on images that int8 classifies correctly as well, on any machine.
    """

    folder: Path
    images: Path
    run_id: str
    on_all_images: str
    easy: str

    @property
    def store(self) -> Path:
        return self.folder / "mlflow.db"


@contextmanager
def working_in(folder: Path, cache: Path) -> Iterator[None]:
    """Use an MLflow store in this folder, with the artifacts beside it."""
    with use_store(f"sqlite:///{folder / 'mlflow.db'}") as patch:
        patch.chdir(folder)
        patch.setenv("CIFAR_MLFLOW_CACHE", str(cache))
        yield


def paint(root: Path, strength: tuple[int, int] = (0, 60)) -> Path:
    """Write images of three colours; the weaker the colour, the harder they are to classify."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(80):
            pixels = rng.integers(0, 100, (32, 32, 3))
            pixels[..., 2 - label] += rng.integers(*strength)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Trained:
    def train_all(folder: Path) -> list[str]:
        images, vivid = paint(folder / "images"), paint(folder / "vivid", (100, 150))
        settings: dict[str, Any] = {
            "dataset": "folder", "model": "cnn", "width": 0.25, "epochs": 4, "batch_size": 16, "threads": 1,
            "crop_padding": 0, "cache_dir": shared_cache,
        }  # fmt: skip
        with working_in(folder, shared_cache):
            run = pipeline.train(TrainConfig(**settings, data_dir=images, val_size=0.5, split_seed=7))
            on_all = pipeline.train(TrainConfig(**settings, data_dir=images, val_size=0, test=False))
            easy = pipeline.train(TrainConfig(**settings, data_dir=vivid, val_size=0.5, test=False))
        return [run.run_id, on_all.run_id, easy.run_id]

    folder, run_ids = made_once(tmp_path_factory, "trained", train_all)
    return Trained(folder, folder / "images", *run_ids)


@pytest.fixture(scope="session")
def registered(trained: Trained, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with two versions of cifar10 in fp32: 1 is `run_id`, 2 is `on_all_images`."""

    def register_two(folder: Path) -> None:
        shutil.copy(trained.store, folder)
        with working_in(folder, shared_cache):
            for run_id in (trained.run_id, trained.on_all_images):
                register(run_id, serve_precision="fp32")

    folder, _ = made_once(tmp_path_factory, "registered", register_two)
    return folder / "mlflow.db"


@pytest.fixture
def client(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Return a client of a store with the runs and no registered model."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.store, tmp_path)
    return mlflow.MlflowClient()


class Registry:
    """A store with registered versions, and a fast way to add more."""

    def __init__(self) -> None:
        self.client = mlflow.MlflowClient()
        self.original = self.client.get_model_version("cifar10", "1")

    def add(self, without: str | None = None, **tags: Any) -> str:
        """Add a version with the files of version 1 and these tags, and return its number."""
        record = json.loads(self.original.tags[RECORD_TAG])
        record.pop(without, None)
        known = {key: value for key, value in self.original.tags.items() if key != without}
        known[RECORD_TAG] = json.dumps(record)
        return str(
            self.client.create_model_version(
                "cifar10",
                self.original.source,
                self.original.run_id,
                tags=known | {key: str(value) for key, value in tags.items()},
            ).version
        )

    @property
    def aliases(self) -> dict[str, str]:
        return {
            alias: str(number)
            for alias, number in self.client.get_registered_model("cifar10").aliases.items()
        }

    def version(self, number: str) -> ModelVersion:
        return self.client.get_model_version("cifar10", number)

    def model(self, number: str) -> LoggedModel:
        """Return the logged model that a version was made from."""
        return self.client.get_logged_model(self.version(number).source.removeprefix("models:/"))


@pytest.fixture
def free_port() -> int:
    return mlflow_server.free_port()


@pytest.fixture
def registry(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.chdir(tmp_path)
    shutil.copy(registered, tmp_path)
    return Registry()

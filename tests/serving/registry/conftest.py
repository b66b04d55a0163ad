"""Finished trainings in a store of MLflow, to be registered and promoted; each test has a copy of it."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion
from PIL import Image

from cifar_mlflow import pipeline
from cifar_mlflow.config import RegisterConfig, TrainConfig, validate
from serving.registry import promotion as registered_models
from serving.registry.register import RegisteredVersion
from serving.registry.register import register as register_run

CLASSES = ("blue", "green", "red")
NAME = "cifar10"


def register(run_id: str, **settings: Any) -> RegisteredVersion:
    return register_run(run_id, validate(RegisterConfig, settings))


def promote(
    which: str | None = None, name: str = NAME, *, force: bool = False
) -> registered_models.Promotion:
    return registered_models.promote(which, name, force=force)


def rollback(name: str = NAME) -> registered_models.Promotion:
    return registered_models.rollback(name)


@dataclass(frozen=True)
class Trained:
    """A store, the folder of images, and runs: with images held out, on all of them, and an easy one.

    The easy one is right by a margin that int8 cannot use up, on whatever machine.
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
    """MLflow's store in this folder, and the artifacts beside it: MLflow puts them into the current one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("CIFAR_MLFLOW_CACHE", str(cache))
        patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        yield


def paint(root: Path, strength: tuple[int, int] = (0, 60)) -> Path:
    """Images of three colours, of a strength between these two: the weakest are hard to tell."""
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
    folder = tmp_path_factory.mktemp("trained")
    images = paint(folder / "images")
    settings: dict[str, Any] = {
        "dataset": "folder", "model": "cnn", "width": 0.25, "epochs": 4, "batch_size": 16, "threads": 1,
        "crop_padding": 0, "cache_dir": shared_cache,
    }  # fmt: skip
    with working_in(folder, shared_cache):
        run = pipeline.train(TrainConfig(**settings, data_dir=images, val_size=0.5, split_seed=7))
        on_all = pipeline.train(TrainConfig(**settings, data_dir=images, val_size=0, test=False))
        vivid = paint(folder / "vivid", (100, 150))
        easy = pipeline.train(TrainConfig(**settings, data_dir=vivid, val_size=0.5, test=False))
    return Trained(folder, images, run.run_id, on_all.run_id, easy.run_id)


@pytest.fixture(scope="session")
def registered(trained: Trained, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the run is version 1 of cifar10, in fp32, and the one on all images version 2."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(trained.store, folder)
    with working_in(folder, shared_cache):
        for run_id in (trained.run_id, trained.on_all_images):
            register(run_id, serve_precision="fp32")
    return folder / "mlflow.db"


@pytest.fixture
def client(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """With the trainings, and nothing registered."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.store, tmp_path)
    return mlflow.MlflowClient()


class Registry:
    """What is registered, and how more gets there than a test has time to train."""

    def __init__(self) -> None:
        self.client = mlflow.MlflowClient()
        self.original = self.client.get_model_version("cifar10", "1")

    def add(self, without: str | None = None, **tags: Any) -> str:
        """One more version with the files of the first, and these tags besides; its number."""
        known = {key: value for key, value in self.original.tags.items() if key != without}
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


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def registry(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.chdir(tmp_path)
    shutil.copy(registered, tmp_path)
    return Registry()

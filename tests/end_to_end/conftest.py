"""The product as users run it: real processes, a real MLflow store, and small images."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.entities import Run
from PIL import Image

from cifar_mlflow.cli import main
from tests.shared import use_store

# A training of about a second: three classes of plain colours and a narrow network.
QUICK = ("--model", "cnn", "--width", "0.25", "--epochs", "2", "--batch-size", "16", "--threads", "1")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one subfolder per class; sizes and formats of the images differ."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for i in range(40):
            pixels = rng.integers(0, 80, (36 + i % 5, 40, 3))
            pixels[..., 2 - label] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.{('png', 'jpg')[i % 2]}")
    return root


@dataclass
class Project:
    """A working folder with a store, where commands run."""

    folder: Path
    images: Path
    env: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.env["MLFLOW_TRACKING_URI"])

    @property
    def runs(self) -> list[Run]:
        """Return all runs, newest first."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(experiments))

    @property
    def trained_run(self) -> Run:
        """Return the run of the `trained` fixture."""
        return next(run for run in self.runs if run.info.run_name == "trained")

    def artifacts(self, run_id: str, folder: str = "") -> set[str]:
        found: set[str] = set()
        for item in self.client.list_artifacts(run_id, folder):
            found |= self.artifacts(run_id, item.path) if item.is_dir else {item.path}
        return found

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `cifar-mlflow`; its output goes to `<folder>/output`."""
        with (self.folder / "output").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "cifar_mlflow", *arguments],
                cwd=self.folder, env=self.env, text=True, stdout=output, stderr=subprocess.STDOUT, **options,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run `cifar-mlflow`, check its exit code, and return its output."""
        process = self.start(*arguments)
        process.wait(timeout=300)
        output = self.output()
        assert process.returncode == code, output
        assert "Traceback" not in output, output
        return output

    def invoke(self, *arguments: str, code: int = 0) -> str:
        """Run `cifar-mlflow` like `run`, but in this process.

        This is faster: a new process needs seconds to import torch and MLflow.
        """
        with use_store(self.env["MLFLOW_TRACKING_URI"]) as patch:
            patch.chdir(self.folder)
            for name in ("CIFAR_MLFLOW_CACHE", "CIFAR_MLFLOW_PATIENCE"):
                patch.setenv(name, self.env[name])
            result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit | None), result.exception
        return result.output

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def train(self, *arguments: str, code: int = 0) -> str:
        """Run a quick training on the folder of images, in this process."""
        return self.invoke("train", *self.quick, *arguments, code=code)

    @property
    def quick(self) -> tuple[str, ...]:
        return (*QUICK, "--dataset", "folder", "--data-dir", str(self.images))

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}\n{self.output()}"
            time.sleep(0.02)

    def stop(self, process: subprocess.Popen[str], signum: int) -> int:
        """Send a signal and return the exit code."""
        process.send_signal(signum)
        return process.wait(timeout=120)


@contextmanager
def open_project(folder: Path, images: Path, empty_store: Path, cache: Path) -> Iterator[Project]:
    store = folder / "mlflow.db"
    shutil.copy(empty_store, store)
    started = Project(
        folder,
        images,
        {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
            # One cache for all projects, so that the images are decoded once; runs have different ids.
            "CIFAR_MLFLOW_CACHE": str(cache),
            "CIFAR_MLFLOW_PATIENCE": "60",
        },
    )
    started.env.pop("CIFAR10_DIR", None)
    yield started
    for process in started.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.fixture
def project(tmp_path: Path, images: Path, empty_store: Path, shared_cache: Path) -> Iterator[Project]:
    with open_project(tmp_path, images, empty_store, shared_cache) as started:
        yield started


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, images: Path, empty_store: Path, shared_cache: Path
) -> Iterator[Project]:
    """Return a project with one finished training, for tests that only read it or add to it."""
    with open_project(tmp_path_factory.mktemp("trained"), images, empty_store, shared_cache) as started:
        started.run("train", *started.quick, "--tta", "flip", "--seed", "3", "--run-name", "trained")
        yield started


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

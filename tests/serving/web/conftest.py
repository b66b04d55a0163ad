"""A web folder of a registered version, served as static files, and Chromium."""

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from cifar_mlflow import pipeline
from cifar_mlflow.cli import main
from cifar_mlflow.config import TrainConfig
from cifar_mlflow.environment import default_cache_dir
from cifar_mlflow.errors import CifarError
from serving.web.runtime import Runtime, install_runtime, installed_runtime
from serving.web.server import create_server
from tests.serving.registry.conftest import register, working_in
from tests.shared import made_once

USER_CACHE = default_cache_dir()  # before the tests get a cache of their own, without the runtime
VERSION = "models:/cifar10/1"


@dataclass(frozen=True)
class Trained:
    """A store, and the id of a run in it that is registered as version 1 of cifar10, in int8."""

    folder: Path
    run_id: str


class Exported(NamedTuple):
    """A web folder, and the output of the command that exported it."""

    folder: Path
    stdout: str
    stderr: str


class Site:
    """A web folder on a server of static files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: ThreadingHTTPServer = create_server(folder, 0)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def export(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    site = Site(folder)
    yield site
    site.stop()


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    """Return onnxruntime-web; npm downloads it once per user."""
    try:
        return installed_runtime(USER_CACHE) or install_runtime(USER_CACHE)
    except CifarError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Trained:
    def train_and_register(folder: Path) -> str:
        with working_in(folder, shared_cache):
            config = TrainConfig(
                dataset="sample", model="cnn", width=0.25, epochs=2, test=False, cache_dir=shared_cache
            )
            run_id = pipeline.train(config).run_id
            register(run_id, serve_precision="int8", target_accuracy=0.5)
        return run_id

    folder, run_id = made_once(tmp_path_factory, "trained-for-web", train_and_register)
    return Trained(folder, run_id)


@pytest.fixture(scope="session")
def exported(
    trained: Trained, runtime: Runtime, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """Export version 1 as int8."""

    def export_int8(folder: Path) -> list[str]:
        options = ("--format=web", "--precision=int8", f"--output={folder}", f"--runtime={runtime.folder}")
        with working_in(trained.folder, shared_cache):
            result = export(VERSION, *options)
        assert result.exit_code == 0, result.output
        return [result.stdout, result.stderr]

    folder, printed = made_once(tmp_path_factory, "exported-for-web", export_int8)
    return Exported(folder / "cnn-int8-web", *printed)


@pytest.fixture(scope="session")
def folder(exported: Exported) -> Path:
    return exported.folder


@pytest.fixture(scope="session")
def site(folder: Path) -> Iterator[Site]:
    with served(folder) as site:
        yield site


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Iterator[Site]:
    """Serve a copy of the site, which a test may change or stop."""
    shutil.copytree(folder, tmp_path / "copy")
    with served(tmp_path / "copy") as site:
        yield site


ANSWERED = re.compile(r"Answered in \d+ ms on this device")

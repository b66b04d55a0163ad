"""Fixtures for every test: no settings of the user leak in, and nothing is left behind."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.shared import made_once, use_store

# A slow machine must not fail a test, and a failure must be reproducible.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# A job in the background of a shell script ignores SIGINT, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_DATA = os.environ.get("CIFAR10_DIR")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one cache for the whole session, so that the sample is decoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new SQLite store of MLflow; creating one takes seconds, so the tests copy it."""
    import mlflow  # slow; the process that only starts the workers of pytest-xdist does not need it

    def create(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)  # where the files of its experiment Default belong
            mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    folder, _ = made_once(tmp_path_factory, "empty-store", create)
    return folder / "mlflow.db"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: pytest-xdist's workers share two cores, so torch's threads would mostly wait."""
    if "torch" in sys.modules:  # by the tests that need it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def mlflow_store(empty_store: Path, tmp_path: Path) -> Path:
    """Return an empty store at the address that `_isolated` sets."""
    return Path(shutil.copy(empty_store, tmp_path))


@pytest.fixture(autouse=True)
def _isolated(request: pytest.FixtureRequest, tmp_path: Path, shared_cache: Path) -> Iterator[None]:
    with use_store(f"sqlite:///{tmp_path / 'mlflow.db'}") as patch:
        patch.setenv("CIFAR_MLFLOW_CACHE", str(shared_cache))
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        if request.node.get_closest_marker("real_data") is None:
            patch.delenv("CIFAR10_DIR", raising=False)
        elif REAL_DATA is None:
            pytest.skip("CIFAR10_DIR is not set")
        yield


@pytest.fixture
def real_data_dir() -> Path:
    """Return the folder with the real CIFAR-10; only for tests marked real_data."""
    assert REAL_DATA is not None
    return Path(REAL_DATA)


@pytest.fixture(scope="session")
def scorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a scorer folder that classifies images by their colour."""
    from tests.scorer_folders import write_scorer_folder

    return write_scorer_folder(tmp_path_factory.mktemp("scorer") / "colours")

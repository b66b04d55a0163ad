"""The package as `pip install` puts it into another project."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cifar_mlflow.extras import install_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("cifar_mlflow", "serving", "tuning")
NOT_SHIPPED = {"__pycache__", "node_modules"}
BUILD = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it; the checkout is not touched."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for name in PACKAGES
        for path in (folder / name).rglob("*")
        if path.is_file() and not NOT_SHIPPED & {*path.parts}
    }


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(installed: Path) -> None:
    assert files(installed) == files(ROOT)
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {*PACKAGES}


def test_an_extra_is_installed_by_its_packages_as_the_folder_of_the_source_may_be_gone(
    installed: Path, tmp_path: Path
) -> None:
    code = "from cifar_mlflow.extras import install_command; print(install_command('tensorflow'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "pip install 'tensorflow<2.22,>=2.21' 'keras<4,>=3.12'\n", done.stderr


def test_in_a_checkout_an_extra_is_installed_from_there() -> None:
    assert install_command("tensorflow") == f"pip install -e '{ROOT}[tensorflow]'"


def test_the_command_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import cifar_mlflow; print(cifar_mlflow.__file__); from cifar_mlflow.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "models"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(installed)), done.stderr

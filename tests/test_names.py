"""Names of files and folders that are not UTF-8 or hard to print, from the folder to MLflow."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cifar_mlflow.cli import main
from cifar_mlflow.errors import CifarError
from cifar_mlflow.names import counted, printable, registered_name
from cifar_mlflow.settings import validate
from cifar_mlflow.verb_config import RegistryConfig

ROOT = Path(__file__).parents[1]
LATIN1 = os.fsdecode(b"K\xe4tzchen")
ODD = "🐶 $x$\nй 猫 שלום"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Kätzchen 猫", "Kätzchen 猫"),
        (LATIN1, "K\\xe4tzchen"),
        ("\udc80\udcff", "\\x80\\xff"),
        ("half \ud83d", "half \\ud83d"),
        ("\x1b[2J cat\r\x9b", "\\x1b[2J cat\\x0d\\x9b"),
        ("two\nlines\tof text", "two\nlines\tof text"),
    ],
)
def test_invalid_unicode_and_what_controls_a_terminal_are_escaped(name: str, expected: str) -> None:
    assert printable(name) == expected


def test_a_count_has_its_noun_in_the_right_number() -> None:
    assert [counted(count, "file") for count in (0, 1, 2_000)] == ["0 files", "1 file", "2,000 files"]
    assert [counted(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]


@pytest.mark.parametrize(
    ("dataset", "data", "expected"),
    [
        ("cifar10", "cifar10", "cifar10"),
        ("sample", "cifar10-sample", "cifar10"),
        (None, "", "cifar10"),  # a run of an old release
        ("folder", "my photos", "my photos"),
        ("folder", "CIFAR10", "CIFAR10-images"),
        ("folder", "../a:b/c", "_a_b_c"),
        ("folder", "...", "images"),
        ("folder", "x" * 200, "x" * 90),
    ],
)
def test_a_model_of_own_images_is_never_named_like_the_cifar10_model(
    dataset: str | None, data: str, expected: str
) -> None:
    assert registered_name(dataset, data) == expected
    validate(RegistryConfig, {"registered_model": expected})


def test_messages_can_be_printed_and_stored() -> None:
    str(CifarError(f"{LATIN1}: no such file")).encode()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with images of two classes; all names are unusual."""
    rng = np.random.default_rng(0)
    for name in (LATIN1, ODD):
        folder = tmp_path / f"{LATIN1} photos" / name
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i} {LATIN1}.png")
    return tmp_path / f"{LATIN1} photos"


def run(verb: str, photos: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cifar_mlflow", verb, "--dataset", "folder", "--data-dir", str(photos)]
    done = subprocess.run(
        [*command, *options],
        cwd=photos.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_data_summarizes_and_draws_any_name(photos: Path, tmp_path: Path) -> None:
    picture = tmp_path / f"{LATIN1}.png"
    done = run("data", photos, "--picture", str(picture))
    assert "K\\xe4tzchen photos, 32x32" in done.stdout
    assert "Samples: " in done.stdout
    assert picture.exists()
    assert "Warning" not in done.stderr


@pytest.mark.slow
def test_train_logs_any_name(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"model": "cnn", "width": "0.25", "epochs": "1", "threads": "1", "dropout": "0"}
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    monkeypatch.chdir(photos.parent)
    done = CliRunner().invoke(main, ["train", "--dataset", "folder", "--data-dir", str(photos), *options])
    assert done.exit_code == 0, done.output
    assert "Glyph" not in done.output
    (logged,) = mlflow.search_runs(experiment_names=["K\\xe4tzchen photos"], output_format="list")
    assert logged.info.status == "FINISHED"
    assert logged.data.params["data_dir"].endswith("K\\xe4tzchen photos")
    assert logged.data.tags["dataset"] == "K\\xe4tzchen photos"

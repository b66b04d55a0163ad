"""Bad input at the command line: a line or two that name the value and the way out; nothing half-made."""

import errno
import os
import signal
import tempfile
from pathlib import Path

import click
import mlflow
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cifar_mlflow.cli import Group, main
from cifar_mlflow.export import load_model_file
from cifar_mlflow.export.weights import save_weights
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.tracking.local_state import RunDirectory

SAMPLE = ("--dataset", "sample")
VERBS = main.list_commands(click.Context(main))


def command_of(verb: str) -> click.Command:
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    return command


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def assert_refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)  # anything else would be a traceback
    assert len(result.stderr.strip().splitlines()) <= 4, result.stderr
    assert "Pydantic" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "0"], ["epochs", "greater than or equal to 1", "'0'"]),
        (["--lr", "-1"], ["lr", "greater than 0", "'-1'"]),
        (["--lr", "nan"], ["lr", "nan"]),
        (["--epochs", "many"], ["epochs", "integer", "'many'"]),
        (["--model", "lenet"], ["model", "resnet18", "vgg16", "lenet"]),
        (["--recipe", "best"], ["recipe", "'demo'", "best"]),
        (["--width", "2"], ["width", "resnet18 has none"]),
        (["--deterministic", "perhaps"], ["deterministic", "perhaps"]),
        (["--patience", "3", "--val-size", "0"], ["patience", "val_size"]),
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["--bogus", "3"], ["--bogus"]),
        (["--crop-padding", "16", "--image-size", "64", *SAMPLE], ["image_size"]),
        (["--device", "cuda", *SAMPLE], ["device", "cuda", "cpu"]),
        (["--weights", "nothing.h5", *SAMPLE], ["nothing.h5", "no such file"]),
        (["--weights", "f" * 32, *SAMPLE], ["f" * 32, "no weights"]),
        (["--data-dir", "nowhere"], ["nowhere"]),
        (["--dataset", "folder"], ["--data-dir"]),
        (["--resume", "f" * 32], ["f" * 32, "no checkpoint"]),
        (["--resume", "f" * 32, "--lr", "0.1"], ["leave out lr"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and str(value[0]).startswith("-") else "",
)
def test_a_wrong_option_is_refused_with_exit_code_2(options: list[str], words: list[str]) -> None:
    assert_refused(invoke("train", *options), 2, *words)
    assert not Path("mlruns").exists()


def test_two_wrong_options_are_both_named() -> None:
    assert_refused(invoke("train", "--epochs", "0", "--lr", "-1"), 2, "epochs", "lr")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epocs: 3", ["epocs", "did you mean epochs"]),
        ("epochs: 0", ["epochs", "greater than or equal to 1"]),
        ("- 1\n- 2", ["must hold lines"]),
        ("epochs: [", ["is not YAML"]),
        ("model: {a: b}", ["model"]),
        ("epochs: null", ["epochs"]),
        ("recipe: [1]", ["recipe"]),
    ],
)
def test_a_wrong_config_file_is_refused_with_exit_code_2(text: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert_refused(invoke("train", "--config", str(file)), 2, *words)


def test_a_missing_or_binary_config_file_is_refused(tmp_path: Path) -> None:
    assert_refused(invoke("train", "--config", "nowhere.yaml"), 2, "nowhere.yaml", "No such file")
    (tmp_path / "binary").write_bytes(os.urandom(100) + b"\xff")
    assert_refused(invoke("train", "--config", "binary"), 2, "binary")


def test_an_empty_config_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    printed = invoke("train", "--config", "empty.yaml", "--print-config")
    assert printed.output == invoke("train", "--print-config").output


def test_an_option_wins_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: vgg11\nlr: 0.01\nbatch-size: 32\n")
    printed = invoke("train", "--config", "config.yaml", "--batch_size", "64", "--print-config").output
    assert "lr: 0.01\n" in printed
    assert "batch_size: 64\n" in printed
    assert "recipe: vgg\n" in printed
    assert "dropout: 0.2\n" in printed


def make_images(folder: Path, *classes: str) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", "cat", "dog")
    (images / "bird").mkdir()
    assert_refused(invoke("train", "--dataset", "folder", "--data-dir", str(images)), 2, "bird")


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", "cat", "dog")
    (images / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    result = invoke("train", "--dataset", "folder", "--data-dir", str(images))
    assert result.exit_code in (1, 2)
    assert_refused(result, result.exit_code, "broken.jpg")


def test_a_store_that_cannot_be_used_is_named_and_leaves_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    assert_refused(invoke("train", *SAMPLE, "--model", "cnn"), 1, "/proc/nowhere", "MLFLOW_TRACKING_URI")


def test_a_cache_that_cannot_be_written_is_named() -> None:
    result = invoke("train", *SAMPLE, "--model", "cnn", "--cache-dir", "/proc/nowhere")
    assert_refused(result, 1, "/proc/nowhere", "cache_dir")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nothing.h5", ["nothing.h5", "no such file"]),
        ("nosuch", ["nosuch", "no such file", "neither a run id (32 digits 0-9a-f)", "runs:/ or models:/"]),
        ("746a" + 27 * "0", ["746a", "no such file", "32 digits"]),
        (300 * "a", ["no such file"]),
        ("f" * 32, ["f" * 32, "no weights"]),
        ("models:/nobody@champion", ["models:/nobody@champion"]),
        ("runs:/nothing/model", ["runs:/nothing/model"]),
    ],
)
def test_a_model_that_is_not_there_is_named(reference: str, words: list[str]) -> None:
    assert_refused(invoke("evaluate", "--model", reference, *SAMPLE), 2, *words)
    assert_refused(invoke("export", reference), 2, words[0])


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    card = ModelCard(model="cnn", classes=("cat", "dog"), image_size=32, mean=mean, std=std, width=0.25)
    classifier = ImageClassifier(build_network("cnn", 2, width=0.25), mean, std)
    save_weights(tmp_path / "given.safetensors", classifier, card)
    return "given.safetensors"


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ([], "cnn.h5"),
        (["--format", "safetensors"], "cnn.safetensors"),
        (["--output", "my.safetensors"], "my.safetensors"),
        (["--output", "my.HDF5"], "my.HDF5"),
        (["--output", "my.hdf5", "--format", "hdf5"], "my.hdf5"),
    ],
)
def test_an_exported_file_is_what_its_name_says(model_file: str, options: list[str], file: str) -> None:
    result = invoke("export", model_file, *options)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{file}  ")
    assert load_model_file(Path(file))[1] == load_model_file(Path(model_file))[1]


@pytest.mark.parametrize(
    ("options", "right"),
    [
        (["--output", "my.pt"], ".safetensors or .h5 or .hdf5"),
        (["--output", "my"], ".safetensors or .h5 or .hdf5"),
        (["--output", "my.safetensors", "--format", "hdf5"], ".h5 or .hdf5 for --format hdf5"),
        (["--output", "my.h5", "--format", "safetensors"], ".safetensors for --format safetensors"),
    ],
)
def test_an_export_under_a_name_of_another_kind_is_refused(
    model_file: str, options: list[str], right: str
) -> None:
    assert_refused(invoke("export", model_file, *options), 2, options[1], f"must end in {right}\n")
    assert os.listdir() == [model_file]  # noqa: PTH208


def test_data_prints_a_summary_and_draws_samples(tmp_path: Path) -> None:
    result = invoke("data", *SAMPLE, "--picture", "samples.png")
    assert result.exit_code == 0
    for word in ("airplane", "train", "val", "test", "5000" if "5000" in result.output else "4499", "red"):
        assert word in result.output
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width > 500
    assert_refused(invoke("data", *SAMPLE, "--picture", "samples.xyz"), 2, "samples.xyz")


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_each_option_of_a_verb(verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0, result.output
    for param in command_of(verb).params:
        assert isinstance(param, click.Argument) or param.opts[0] in result.output
    shown = " ".join(result.output.split())
    assert "Undefined" not in shown
    assert "[default ]" not in shown


def test_help_shows_what_the_demo_takes_and_not_what_train_does() -> None:
    for verb, defaults in (
        ("train", ["cifar10", "resnet18", "30, >= 1", "0.1, >= 0, <= 0.5"]),
        ("demo", ["sample", "fast", "18, >= 1", "0.05, >= 0, <= 0.5", "demo"]),
    ):
        shown = " ".join(invoke(verb, "--help").output.split())
        for default in defaults:
            assert f"[default {default}" in shown


def test_help_does_not_wait_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    script = (
        "import sys; from cifar_mlflow.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'mlflow', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_environment_names_a_folder_for_cifar10_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_DIR", "/data/cifar10")
    assert "data_dir: /data/cifar10\n" in invoke("train", "--print-config").output
    assert "data_dir: null\n" in invoke("train", *SAMPLE, "--print-config").output
    assert_refused(invoke("train", "--dataset", "folder"), 2, "--data-dir")


def test_paths_are_absolute_and_may_begin_with_a_tilde(tmp_path: Path) -> None:
    printed = invoke("train", "--cache-dir=~/cache", "--data-dir", "here", "--print-config").output
    assert f"cache_dir: {Path.home() / 'cache'}\n" in printed
    assert f"data_dir: {tmp_path / 'here'}\n" in printed


def test_a_deleted_experiment_is_named_with_the_way_on() -> None:
    client = mlflow.MlflowClient()
    client.delete_experiment(client.create_experiment("gone"))
    result = invoke("train", *SAMPLE, "--model", "cnn", "--experiment", "gone")
    assert_refused(result, 1, "'gone'", "deleted", "--experiment")


def test_a_damaged_owner_file_hinders_no_other_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        directory = RunDirectory.of(tmp_path, name)
        directory.acquire()
        directory.sign("sqlite://")
        directory.release()
    (tmp_path / "runs" / "a" / "owner.json").write_text("")
    assert [directory.path.name for directory in RunDirectory.all(tmp_path)] == ["b"]


def test_the_lock_of_a_run_is_held_by_one(tmp_path: Path) -> None:
    first, second = (RunDirectory.of(tmp_path, "a") for _ in range(2))
    first.acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()


def test_a_full_disk_is_said_in_a_line() -> None:
    @click.group(cls=Group)
    def verbs() -> None:
        pass

    @verbs.command()
    def write() -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    assert_refused(CliRunner().invoke(verbs, ["write"]), 1, os.strerror(errno.ENOSPC))


def test_sigterm_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    @click.group(cls=Group)
    def verbs() -> None:
        pass

    @verbs.command()
    def work() -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)

    assert CliRunner().invoke(verbs, ["work"]).exit_code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())

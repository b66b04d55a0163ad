"""Invalid input on the command line: one or two lines name the value and what to do; no files are left."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from PIL import Image

from cifar_mlflow.cli import main
from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.effective import effective_settings
from cifar_mlflow.export import load_model_file
from cifar_mlflow.export.weights import save_weights
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.settings import validate
from cifar_mlflow.tracking.local_state import RunDirectory
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import store_uri
from cifar_mlflow.verb_group import VERBS_ELSEWHERE, Group
from tuning.config import SEARCHED
from tuning.space import Space

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
    message = result.stderr.strip().rpartition("Loading the libraries\n")[2]
    assert len(message.splitlines()) <= 4, result.stderr
    assert "Pydantic" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("verb", "option"), [("tune", "--study"), ("train", "--epochs"), ("serve", "--port")]
)
def test_an_option_without_its_value_names_the_help_of_its_verb(verb: str, option: str) -> None:
    assert_refused(invoke(verb, option), 2, option, f" {verb} --help` lists the options")


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "0"], ["--epochs must be at least 1, not 0"]),
        (["--lr", "-1"], ["--lr must be greater than 0, not -1"]),
        (["--lr", "nan"], ["lr", "nan"]),
        (["--batch-size", "many"], ["--batch-size must be a whole number, not many"]),
        (["--model", "lenet"], ["model", "resnet18", "vgg16", "lenet"]),
        (["--model", "resnet9"], ["not resnet9: did you mean resnet18 or resnet34 or resnet50?"]),
        (["--model", "vit_small"], ["tiny' or timm/NAME (with the extra timm), not vit_small"]),
        (["--recipe", "best"], ["recipe", "'demo'", "best"]),
        (["--model", "torchvision/resnet81"], ["did you mean", "or torchvision/resnet18 or"]),
        (
            ["--model", "timm/resnet_18", "--data-dir", "nowhere"],
            ["timm has no resnet_18: did you mean timm/"],
        ),
        (["--weights", "imagenet"], ["torchvision/resnet18", "--recipe finetune", "resnet18 has none"]),
        (
            ["--weights", "imagnet"],
            ["--weights: there is no such file: did you mean imagenet? (got 'imagnet')"],
        ),
        (["--weights", "pretraind", "--recipe", "cnn"], ["did you mean pretrained?"]),
        (
            ["--weights", "resnet18"],
            ["--model torchvision/resnet18 --weights imagenet", "--model timm/NAME", "the extra timm"],
        ),
        (["--freeze"], ["freeze", "needs weights"]),
        (["--recipe", "finetune", "--optimizer", "muon", "--freeze"], ["muon", "optimizer=sgd"]),
        (["--width", "2"], ["width", "resnet18 has none"]),
        (["--deterministic", "perhaps"], ["deterministic", "perhaps"]),
        (["--patience", "3", "--val-size", "0"], ["patience", "val_size"]),
        (["--cutout", "33"], ["cutout=33", "image_size=32"]),
        (["--cutout", "28", "--small-images", "0.2"], ["cutout=28", "small_images=0.2", "24 pixels"]),
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["--learning-rate", "0.1"], ["Did you mean --lr?"]),
        (["--bogus", "3"], ["Error: ", "--bogus", "train --help` lists the options"]),
        (["--crop-padding", "16", "--image-size", "64", *SAMPLE], ["--image-size"]),
        (["--device", "cuda", *SAMPLE], ["device", "cuda", "cpu"]),
        (["--weights", "nothing.h5", *SAMPLE], ["nothing.h5", "no such file"]),
        (["--weights", "f" * 32, *SAMPLE], ["f" * 32, "no weights"]),
        (["--data-dir", "nowhere"], ["nowhere"]),
        (["--dataset", "folder"], ["--data-dir"]),
        (["--resume", "f" * 32], ["f" * 32, "no checkpoint"]),
        (["--test", "false", "--tta", "flip", *SAMPLE], ["tta=flip", "test=false"]),
        (["--resume", "f" * 32, "--lr", "0.1"], ["leave out --lr"]),
        (["--settings-of", "f" * 32], ["f" * 32, "there is no such run"]),
        (["--settings-of", "f" * 32, "--resume", "f" * 32], ["leave out --settings-of"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and str(value[0]).startswith("-") else "",
)
def test_an_invalid_option_is_refused_with_exit_code_2(options: list[str], words: list[str]) -> None:
    assert_refused(invoke("train", *options), 2, *words)
    assert not Path("mlruns").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command trian: did you mean train?"),
        (["zzz"], "there is no command zzz: there are demo, data, review, train, runs"),
        (["register"], "Missing argument 'RUN_ID'"),
    ],
)
def test_a_wrong_command_is_refused_like_a_wrong_value(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert_refused(result, 2, f"Error: {message}")
    assert "Usage:" not in result.stderr


@pytest.mark.usefixtures("mlflow_store")
def test_the_settings_of_a_run_that_is_no_training_are_refused() -> None:
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    assert_refused(invoke("train", "--settings-of", run_id), 2, run_id, "is not a training")


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize(
    "given",
    [{"recipe": "finetune", "weights": "none"}, {"recipe": "finetune"}, {"recipe": "fast", "val_size": 0}],
    ids=lambda given: " ".join(map(str, given.values())),
)
def test_the_settings_of_a_run_give_the_same_training(given: dict[str, Any]) -> None:
    settings = effective_settings(resolve_train_config({"dataset": "folder", "data_dir": "/photos", **given}))
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    TrackedRun(run_id, "a").log_params(settings)
    printed = yaml.safe_load(invoke("train", "--settings-of", run_id, "--print-config").stdout)
    again = {name: value for name, value in printed.items() if name in TrainConfig.model_fields}
    assert effective_settings(validate(TrainConfig, again)) == settings


def test_two_invalid_options_are_both_named() -> None:
    assert_refused(invoke("train", "--epochs", "0", "--lr", "-1"), 2, "epochs", "lr")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epocs: 3", ["epocs", "did you mean epochs"]),
        ("epochs: 0", ["--epochs must be at least 1"]),
        ("- 1\n- 2", ["must hold lines"]),
        ("epochs: [", ["is not YAML"]),
        ("model: {a: b}", ["model"]),
        ("epochs: null", ["epochs"]),
        ("recipe: [1]", ["recipe"]),
        ("seed: 1\nepochs: 2\nseed: 2", ["line 3", "seed is set twice"]),
        ("batch-size: 64\nlr: 0.1\nbatch_size: 32", ["line 3", "batch_size is set twice"]),
        ("epochs: 1:30", ["epochs", "1:30"]),
        ("seed: 0x10", ["seed", "0x10"]),
        ("mixup: off", ["mixup", "a number, not off"]),
        ("seed: !!python/object/apply:os.getcwd []", ["line 1"]),
    ],
)
def test_an_invalid_config_file_is_refused_with_exit_code_2(
    text: str, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert_refused(invoke("train", "--config", str(file)), 2, *words)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("seed: 010", "seed: 10"),
        ("epochs: 1_000", "epochs: 1000"),
        ("deterministic: on", "deterministic: true"),
        ("test: no", "test: false"),
        ("lr: 1e-3", "lr: 0.001"),
        ("run_name: 1:30", "run_name: '1:30'"),
        ("run_name: 2026-11-29", "run_name: '2026-11-29'"),
        ("run_name: off", "run_name: 'off'"),
        ("run_name: 007", "run_name: '007'"),
        ("run_name: null", "run_name: null"),
        ("run_name: ~", "run_name: null"),
        ("run_name: 'null'", "run_name: 'null'"),
        ("mirrors: [http://a, http://b]", "mirrors:\n- http://a\n- http://b"),
        ("<<: {seed: 3}", "seed: 3"),
    ],
)
def test_a_config_file_is_read_like_the_command_line(text: str, setting: str, tmp_path: Path) -> None:
    """YAML 1.1 would read 010 as 8, 1:30 as 90 and `off` as false."""
    (tmp_path / "config.yaml").write_text(text)
    printed = invoke("train", "--config", "config.yaml", "--print-config")
    assert f"\n{setting}\n" in f"\n{printed.output}", printed.output


def test_the_printed_settings_are_read_back(tmp_path: Path) -> None:
    printed = invoke("train", "--model", "fast", "--seed", "010", "--print-config").output
    (tmp_path / "config.yaml").write_text(printed)
    assert invoke("train", "--config", "config.yaml", "--print-config").output == printed


@pytest.mark.parametrize("recipe", ["cnn", "fast"])
def test_a_training_without_a_test_has_no_test_time_augmentation(recipe: str, tmp_path: Path) -> None:
    """The recipes set one, which must not stop a training with `--test false`."""
    printed = invoke("train", "--recipe", recipe, "--test", "false", "--print-config").output
    assert "tta: none" in printed
    (tmp_path / "config.yaml").write_text(printed)
    assert invoke("train", "--config", "config.yaml", "--print-config").output == printed


def test_a_password_in_a_setting_is_not_printed() -> None:
    printed = invoke("train", "--mirrors", "http://alice:secret@host/x", "--print-config").output
    assert "http://alice:***@host/x" in printed
    assert "secret" not in printed


def test_a_password_in_the_address_of_the_store_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:secret@127.0.0.1:9")
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0")
    for command in (["train", *SAMPLE, "--model", "cnn"], ["promote"], ["export", "f" * 32], ["rollback"]):
        result = invoke(*command)
        assert_refused(result, 1, "alice:***@127.0.0.1:9")
        assert "secret" not in result.output


WITHOUT_ACCOUNT = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
from cifar_mlflow.cli import main
main()
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_a_user_without_account_and_home_can_train(tmp_path: Path) -> None:
    """Containers often run as a user id without an account."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HOME", "XDG_CACHE_HOME", "CIFAR_MLFLOW_CACHE", "USER", "LOGNAME")
    } | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    images = make_images(tmp_path / "images", "cat", "dog")
    options = f"--dataset folder --data-dir {images} --model cnn --width 0.25 --epochs 1".split()

    def train(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_ACCOUNT, "train", *options, *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    printed = train("--print-config")
    assert printed.returncode == 0, printed.stderr
    assert f"cache_dir: {tempfile.gettempdir()}" in printed.stdout
    done = train("--cache-dir", str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


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
    assert "crop_padding: 4\n" in printed


def test_vgg_takes_the_smaller_images_of_the_first_epochs() -> None:
    printed = invoke("train", "--model", "vgg11", "--small-images", "0.5", "--print-config")
    assert printed.exit_code == 0, printed.output
    assert "small_images: 0.5\n" in printed.output


@pytest.mark.parametrize("value", ["abc", "-1", "nan", "inf", "", "1e9"])
def test_an_invalid_patience_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", value)
    assert_refused(invoke("promote"), 2, "CIFAR_MLFLOW_PATIENCE", repr(value), "0 to 604800")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", *SAMPLE],
        ["tune", *SAMPLE],
        ["demo"],
        ["evaluate", "--model", "f" * 32],
        ["export", "f" * 32],
        ["register", "f" * 32],
        ["promote"],
        ["rollback"],
        ["runs"],
        ["models"],
        ["classify", "."],
        ["serve"],
        ["monitor"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_each_verb_refuses_an_invalid_patience_before_it_begins(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "abc")
    result = invoke(*arguments)
    assert_refused(result, 2, "CIFAR_MLFLOW_PATIENCE", "'abc'")
    assert result.stderr.count("\n") == 1, result.stderr
    assert not list(tmp_path.iterdir())


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


def test_an_unusable_store_is_named_and_no_run_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    assert_refused(invoke("train", *SAMPLE, "--model", "cnn"), 1, "/proc/nowhere", "MLFLOW_TRACKING_URI")


def test_a_read_only_cache_is_named() -> None:
    result = invoke("train", *SAMPLE, "--model", "cnn", "--cache-dir", "/proc/nowhere")
    assert_refused(result, 1, "/proc/nowhere", "--cache-dir")


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nothing.h5", ["nothing.h5", "no such file"]),
        (
            "nosuch",
            [
                "nosuch",
                "no such file",
                "neither pretrained nor a run id (32 digits 0-9a-f)",
                "runs:/ or models:/",
            ],
        ),
        ("746a" + 27 * "0", ["746a", "no such file", "32 digits"]),
        (300 * "a", ["no such file"]),
        ("f" * 32, ["f" * 32, "no weights"]),
        ("models:/nobody@champion", ["models:/nobody@champion"]),
        ("runs:/nothing/model", ["runs:/nothing/model"]),
    ],
)
def test_a_missing_model_is_named(reference: str, words: list[str]) -> None:
    assert_refused(invoke("evaluate", "--model", reference, *SAMPLE), 2, *words)
    assert_refused(invoke("export", reference), 2, words[0])


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    card = ModelCard(model="cnn", classes=("cat", "dog"), image_size=32, mean=mean, std=std, width=0.25)
    classifier = ImageClassifier(build_network("cnn", 2, width=0.25), mean, std)
    save_weights(tmp_path / "given.safetensors", classifier, card)
    return "given.safetensors"


@pytest.mark.usefixtures("mlflow_store")
def test_a_model_whose_training_data_are_unknown_needs_images_to_be_evaluated(model_file: str) -> None:
    refused = invoke("evaluate", "--model-uri", model_file)
    assert_refused(refused, 2, model_file, "unknown images", "--dataset", "--data-dir")


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
def test_the_suffix_of_an_exported_file_matches_its_format(
    model_file: str, options: list[str], file: str
) -> None:
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
def test_a_suffix_of_another_format_is_refused(model_file: str, options: list[str], right: str) -> None:
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


def test_the_picture_of_the_data_counts_the_training_images_as_its_summary_does(tmp_path: Path) -> None:
    summary = invoke("data", *SAMPLE, "--picture", "samples.svg").output
    train = int(re.findall(r"airplane +(\d+)", summary)[0])
    texts = re.findall("<!-- (.*) -->", (tmp_path / "samples.svg").read_text())
    assert f"airplane ({train:,})" in texts
    assert "training images, without those for validation" in texts[-2]
    assert "10 of each class (number of images), 32x32 pixels" in texts[-1]
    assert "Pixels of the training and validation images" in summary


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_every_option_of_a_verb(verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0, result.output
    for param in command_of(verb).params:
        if isinstance(param, click.Option) and not param.hidden:
            assert len(re.findall(rf"^  {param.opts[0]}(?: |$)", result.output, re.MULTILINE)) == 1
    shown = " ".join(result.output.split())
    assert "Undefined" not in shown
    assert "[default ]" not in shown


def test_help_shows_the_defaults_of_the_verb() -> None:
    for verb, defaults in (
        (
            "train",
            [
                "cifar10 (demo sample; finetune folder)",
                "resnet18, or that of --recipe",
                "16 (fast 9; demo 18; finetune 4), >= 1",
                "0.14 (cnn 0.1; fast 0.17; demo 0.24; finetune 0.001), > 0",
            ],
        ),
        ("tune", ["chosen by the search, > 0, <= 10", "9, >= 1"]),
        ("demo", ["sample", "fast", "18, >= 1", "0.1, >= 0, <= 0.5", "demo"]),
    ):
        shown = " ".join(invoke(verb, "--help").output.split())
        for default in defaults:
            assert f"[default {default}" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_a_verb_have_valid_options(verb: str) -> None:
    help_text = invoke(verb, "--help").output
    examples = [line.split() for line in help_text.splitlines() if line.startswith("    cifar-mlflow ")]
    assert examples
    known = {name for param in command_of(verb).params for name in param.opts}
    for words in examples:
        assert words[1] == verb
        assert {word for word in words if word.startswith("--")} <= known


def test_help_lists_the_verbs_in_groups_and_whole_sentences() -> None:
    shown = invoke("--help").output
    assert set(VERBS) == main.commands.keys() | VERBS_ELSEWHERE.keys()
    places = [shown.index(f"  {verb} ") for verb in VERBS]
    assert places == sorted(places)
    for title in ("Train:", "Search:", "Ship:", "Serve:"):
        assert title in shown
    assert "..." not in shown.partition("Train:")[2]
    assert "accuracy by feedback) as an MLflow run." in " ".join(shown.split())


def test_help_begins_with_the_options_most_used_and_leaves_out_those_without_effect() -> None:
    shown = invoke("tune", "--help").output
    assert shown.index("Most used:") < shown.index("\n  --trials ") < shown.index("\n  --sampler ")
    idle = {"tune": "test", "evaluate": "image-size", "export": "system-metrics", "monitor": "system-metrics"}
    for verb, option in idle.items():
        assert f"--{option} " not in invoke(verb, "--help").output
    assert "--model " not in invoke("serve", "--help").output


def test_the_help_of_a_search_names_the_settings_that_it_searches() -> None:
    assert set(SEARCHED) == Space.default().settings


def test_values_are_completed_in_a_shell() -> None:
    completed = ShellComplete(main, {}, "cifar-mlflow", "_CIFAR_MLFLOW_COMPLETE")
    found = completed.get_completions(["train", "--model"], "resnet")
    assert [item.value for item in found] == ["resnet18", "resnet34", "resnet50"]
    assert [item.value for item in completed.get_completions([], "pro")] == ["promote"]


INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "pydantic":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["cifar-mlflow", "--help"]
runpy.run_module("cifar_mlflow", run_name="__main__")
"""


def test_ctrl_c_during_the_first_imports_leaves_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


INTERRUPTED_AT_THE_END = """
import atexit, os, runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["cifar-mlflow", "--help"]
runpy.run_module("cifar_mlflow", run_name="__main__")
"""


def test_ctrl_c_while_the_interpreter_ends_leaves_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_AT_THE_END], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_help_does_not_import_torch() -> None:
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


@pytest.mark.usefixtures("mlflow_store")
def test_a_deleted_experiment_is_named_with_a_remedy() -> None:
    client = mlflow.MlflowClient()
    client.delete_experiment(client.create_experiment("gone"))
    result = invoke("train", *SAMPLE, "--model", "cnn", "--experiment", "gone")
    assert_refused(result, 1, "'gone'", "deleted", "--experiment")


def test_a_damaged_owner_file_does_not_affect_other_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        directory = RunDirectory.of(tmp_path, name)
        directory.acquire()
        directory.write_owner("sqlite://")
        directory.release()
    (tmp_path / "runs" / "a" / "owner.json").write_text("")
    assert [directory.path.name for directory in RunDirectory.all(tmp_path)] == ["b"]


def test_a_run_that_cannot_be_resumed_is_answered_with_those_of_this_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_CACHE", str(tmp_path / "cache"))
    owners = {"here": (store_uri(), None), "elsewhere": ("http://other", None), "trial": (store_uri(), "s")}
    for name, (store, study) in owners.items():
        directory = RunDirectory.of(tmp_path / "cache", name)
        directory.acquire()
        directory.write_owner(store, study)
        directory.checkpoint.save({})
        directory.release()
    refused = invoke("train", "--resume", "nosuchrun")
    assert_refused(refused, 2, "nosuchrun", "here")
    assert "elsewhere" not in refused.stderr
    assert "trial" not in refused.stderr


def test_only_one_process_can_hold_the_lock_of_a_run(tmp_path: Path) -> None:
    first, second = (RunDirectory.of(tmp_path, "a") for _ in range(2))
    first.acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()


def test_a_full_disk_is_one_line() -> None:
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


def test_a_place_without_permission_is_one_line() -> None:
    """`Path.is_dir` raises this for a folder inside of one that is closed to the user."""

    @click.group(cls=Group)
    def verbs() -> None:
        pass

    @verbs.command()
    def read() -> None:  # root, who may run the tests, may enter every folder
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/closed/photos")

    refused = CliRunner().invoke(verbs, ["read"])
    assert_refused(refused, 1, f"Error: /closed/photos: {os.strerror(errno.EACCES)}")


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

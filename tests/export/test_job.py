"""The export command: verification, the output folder, and errors for bad input."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar, NoReturn, get_args

import mlflow
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock

from cifar_mlflow.cli import EXPORT_FORMATS, main
from cifar_mlflow.data import load_dataset
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.export.format import ModelToExport
from cifar_mlflow.export.job import OLD_NAMES, choose_formats, export
from cifar_mlflow.export.onnx import ONNX
from cifar_mlflow.export.weights import save_weights
from cifar_mlflow.extras import install_command
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.verb_config import ExportConfig, ExportFormatName, ServedPrecision
from tests.export.models import untrained


class AnotherNetwork(type(ONNX)):  # type: ignore[misc]
    """Write a network with other weights."""

    name = "another"

    def write(self, model: ModelToExport, folder: Path) -> Path:
        classifier = ImageClassifier(model.classifier.network, model.card.std, model.card.mean)
        changed = ModelToExport(
            classifier, model.card, model.reference, model.training_images, model.eval_set, model.precision,
            model.config,
        )  # fmt: skip
        path: Path = super().write(changed, folder)
        return path


class RaisesAfterWriting(type(ONNX)):  # type: ignore[misc]
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def write(self, model: ModelToExport, folder: Path) -> Path:
        (folder / "half.onnx").write_bytes(b"half")
        raise self.error


class WrittenMeanwhile(type(ONNX)):  # type: ignore[misc]
    """Write while another program puts a file of the same name into the output folder."""

    name = "late"

    def write(self, model: ModelToExport, folder: Path) -> Path:
        Path("out").mkdir()
        Path("out/cnn.onnx").write_text("theirs")
        path: Path = super().write(model, folder)
        return path


class Killed(type(ONNX)):  # type: ignore[misc]
    """Leave a copy of the temporary folder, as `kill -9` would."""

    name = "killed"

    def load(self, path: Path) -> NoReturn:
        scratch = path.parent
        shutil.copytree(scratch, scratch.with_name(f"{scratch.name}-killed"))
        raise CifarError("killed")


class NeedsAPackage(type(ONNX)):  # type: ignore[misc]
    name = "needy"
    extra = "needy"
    modules = ("no_such_module",)


class OnlyFp32(type(ONNX)):  # type: ignore[misc]
    name = "plain"
    precisions: ClassVar[tuple[ServedPrecision, ...]] = ("fp32",)
    preprocessing = False


NEEDY, PLAIN = NeedsAPackage(), OnlyFp32()
TABLE = {"onnx": EXPORT_FORMATS["onnx"], "litert": f"{__name__}:NEEDY", "executorch": f"{__name__}:PLAIN"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> str:
    """Return a file of weights whose card names the embedded sample; the head tells its images apart."""
    os.environ["CIFAR_MLFLOW_CACHE"] = str(shared_cache)
    from cifar_mlflow.config import DataConfig

    dataset = load_dataset(DataConfig(dataset="sample", cache_dir=shared_cache))
    classifier, card = untrained("cnn")
    card = card.model_copy(
        update={
            "classes": dataset.classes, "data": dataset.name, "data_digest": dataset.digest, "val_size": 0.02
        }
    )  # fmt: skip
    torch.manual_seed(0)
    classifier.network.head = torch.nn.Linear(32, 10)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_weights(path, classifier, card)
    return str(path)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


def error_of(result: Result) -> str:
    return result.stderr.partition("Error: ")[2]


def config(**options: object) -> ExportConfig:
    return ExportConfig.model_validate({"output": "out", **options})


def content(folder: str = ".") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def last_run() -> mlflow.entities.Run:
    return mlflow.MlflowClient().search_runs(["0", "1"], max_results=1)[0]


@pytest.mark.slow
def test_a_file_that_another_program_wrote_meanwhile_is_kept(model: str) -> None:
    with pytest.raises(CifarError, match=r"another program wrote out/cnn\.onnx meanwhile"):
        export(model, [WrittenMeanwhile()], config())
    assert Path("out/cnn.onnx").read_text() == "theirs"


@pytest.mark.slow
def test_the_table_is_printed_and_logged(model: str) -> None:
    result = invoke(model, "--format", "onnx,safetensors", "--output", "new/out", "--license", "CC0-1.0")
    assert result.exit_code == 0, result.output
    assert content("new/out") == {"cnn.onnx", "cnn.safetensors"}
    header, *rows = result.stdout.strip().splitlines()
    names = ["format", "precision", "file", "megabytes", "agreement", "accuracy", "ms_per_image", "runtime"]
    assert header.split() == names
    assert [row.split()[:3] for row in rows] == [
        ["onnx", "fp32", "cnn.onnx"],
        ["safetensors", "fp32", "cnn.safetensors"],
    ]
    run = last_run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["kind"] == "export"
    assert run.data.tags["verified_on"] == "100 validation images"
    assert run.data.params["format"] == "onnx, safetensors"
    logged = pd.read_csv(mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/exports.csv"))
    assert list(logged.columns) == names
    assert logged["agreement"].tolist() == [1.0, 1.0]
    assert run.data.metrics["export/onnx-fp32/accuracy"] == logged["accuracy"][0]
    assert logged["megabytes"][0] == Path("new/out/cnn.onnx").stat().st_size / 1e6
    assert ONNX.metadata(Path("new/out/cnn.onnx"))["license"] == "CC0-1.0"


@pytest.mark.slow
def test_a_file_that_answers_differently_is_not_handed_over(model: str) -> None:
    with pytest.raises(
        CifarError, match=r"different labels for .* of 100 validation images; at most 0\.10% are"
    ):
        export(model, [AnotherNetwork()], config())
    assert content() == set()
    assert last_run().info.status == "FAILED"
    assert "different labels" in last_run().data.tags["error"]


@pytest.mark.slow
def test_the_other_formats_are_still_handed_over(model: str) -> None:
    exported = export(model, [AnotherNetwork(), ONNX], config())
    assert content("out") == {"cnn.onnx"}
    assert [row.format for row in exported.rows] == ["onnx"]
    assert exported.failures[0].startswith("another as fp32 was not written: the exported network and")
    assert last_run().data.tags["error"] == exported.failures[0]


FULL = "No space left on device"
OF_A_FOLDER = [(f"from/{name}", f"to/{name}", f"[Errno 28] {FULL}: 'to/{name}'") for name in "ab"]


@pytest.mark.parametrize("error", [OSError(28, FULL), shutil.Error(OF_A_FOLDER), KeyboardInterrupt()])
def test_nothing_half_written_is_left(model: str, error: BaseException) -> None:
    with pytest.raises(CifarError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        export(model, [RaisesAfterWriting(error)], config())
    assert content() == set()
    if isinstance(error, OSError):
        found = re.search(r"out: cannot be written \((.*)\)$", str(caught.value))
        assert found
        assert found[1] in (FULL, "[Errno 28] No space left on device: 'to/a'")
    assert last_run().info.status == ("FAILED" if isinstance(error, OSError) else "KILLED")


def test_what_a_killed_export_left_neither_hinders_the_next_one_nor_stays(model: str) -> None:
    Path("out").mkdir()
    with pytest.raises(CifarError, match="killed"):
        export(model, [Killed()], config())
    assert len(content("out")) == 1

    export(model, [ONNX], config())
    assert content("out") == {"cnn.onnx"}


def test_the_temporary_folder_of_a_running_export_is_kept(model: str) -> None:
    Path("out").mkdir()
    with pytest.raises(CifarError, match="killed"):
        export(model, [Killed()], config())
    (lock,) = Path("out").rglob("lock")
    with FileLock(lock):  # as the other export holds it
        export(model, [ONNX], config())
        assert lock.exists()


def test_a_stop_shows_and_logs_the_files_that_were_written_before(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    with pytest.raises(KeyboardInterrupt):
        export(model, [ONNX, RaisesAfterWriting(KeyboardInterrupt())], config())
    assert content("out") == {"cnn.onnx"}
    assert re.search(r"Written before the stop:\nformat .*\n +onnx +fp32 cnn\.onnx ", caplog.text)
    assert last_run().info.status == "KILLED"
    assert last_run().data.metrics["export/onnx-fp32/agreement"] == 1


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 64 kB, which is less than any file of a model."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.thorough
def test_a_full_disk_is_a_line_for_each_format_and_leaves_nothing(
    model: str, full_disk: Path, tmp_path: Path
) -> None:
    """A process of its own: the libraries of some formats crash it when they cannot write."""
    table = {name: resolve_name(place) for name, place in EXPORT_FORMATS.items() if name != "web"}
    formats = [name for name, form in table.items() if not form.missing(ExportConfig())]
    command = [sys.executable, "-m", "cifar_mlflow", "export", model, f"--format={','.join(formats)}"]
    done = subprocess.run(
        [*command, f"--output={full_disk / 'out'}"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1, done.stderr
    _, _, errors = done.stderr.partition("Error: ")
    expected = [
        f"{name} as fp32 was not written: {full_disk}/out: cannot be written ({FULL})" for name in formats
    ]
    found = [re.sub(r"\(\[Errno 28\] (.*): '.*'\)$", r"(\1)", line) for line in errors.splitlines()]
    assert found == expected
    assert [path for path in full_disk.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_only_overwrite_replaces(model: str) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    Path("out/cnn.onnx").write_text("old")
    result = invoke(model, "--format", "onnx", "--output", "out")
    assert result.exit_code == 2
    assert error_of(result).startswith("--output out is not empty: choose another folder, or add --overwrite")
    assert Path("out/cnn.onnx").read_text() == "old"
    assert invoke(model, "--format", "onnx", "--output", "out", "--overwrite").exit_code == 0
    assert content("out") == {"cnn.onnx", "mine.txt"}
    assert ONNX.metadata(Path("out/cnn.onnx"))


@pytest.mark.slow
def test_a_folder_of_the_same_name_is_replaced(model: str) -> None:
    class Folder(type(ONNX)):  # type: ignore[misc]
        def write(self, model: ModelToExport, folder: Path) -> Path:
            path = folder / "cnn"
            path.mkdir()
            super().write(model, path)
            return path

        def load(self, path: Path):  # type: ignore[no-untyped-def]
            return super().load(path / "cnn.onnx")

    Path("out/cnn").mkdir(parents=True)
    Path("out/cnn/stale").write_text("old")
    export(model, [Folder()], config(overwrite=True))
    assert content("out") == {"cnn"}
    assert content("out/cnn") == {"cnn.onnx"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--format tfjs --output out", "--format must be 'all', 'onnx'"),
        ("--format onnx", "--output: name the folder to write to"),
        ("--format onnx --output my.onnx", "--output my.onnx: name a folder"),
        ("--format onnx --output file", "--output file: name a folder"),
        ("--format safetensors --output out --precision int8", "safetensors: has no int8, only fp32"),
        ("--format pt2 --output out --with-preprocessing", "pt2: cannot contain the preprocessing"),
        (
            "--output weights.h5 --with-preprocessing",
            "--with-preprocessing: not for a single file of weights",
        ),
        ("--format onnx --output out --precision int4", "--precision must be 'fp32' or 'int8'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(model: str, options: str, words: str) -> None:
    Path("file").write_text("")
    result = invoke(model, *options.split())
    assert result.exit_code == 2, result.output
    assert error_of(result).startswith(words)
    assert content() == {"file"}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("file/sub", "Not a directory"),
        ("x" * 300, "File name too long"),
        pytest.param(
            "/proc/out",
            "No such file or directory",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder without files"),
        ),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    output: str, reason: str
) -> None:
    Path("file").write_text("")
    result = invoke("no-such-model", "--format", "onnx", "--output", output)
    assert result.exit_code == 1, result.output
    assert error_of(result) == f"{output}: cannot be written ({reason})\n"
    assert content() == {"file"}


def test_a_store_that_is_read_only_is_named_in_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///file:{tmp_path / 'mlflow.db'}?mode=ro&uri=true"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0")
    result = invoke(model, "--format", "onnx", "--output", "out", "--experiment", "Default")
    assert result.exit_code == 1, result.output
    assert result.stderr.endswith(
        "\nError: MLflow cannot start the run: attempt to write a readonly database\n"
    )
    assert not Path("out").exists()


def test_truncated_weights_of_a_run_are_named_by_their_address(model: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("half", str(tmp_path / "artifacts"))).info
    whole = Path(model).read_bytes()
    Path("model.safetensors").write_bytes(whole[: len(whole) // 2])
    client.log_artifact(run.run_id, "model.safetensors", "weights")
    result = invoke(run.run_id, "--format", "onnx", "--output", "out")
    assert result.exit_code == 1, result.output
    address = f"{run.artifact_uri}/weights/model.safetensors"
    assert result.stderr.splitlines()[-1].startswith(f"Error: {address}: the file is damaged")
    assert not Path("out").exists()


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UsageError, match=f"litert: needs .* {re.escape(install_command('needy'))}$"):
        choose_formats(TABLE, config(format="onnx,litert"))


def test_all_leaves_out_formats_that_cannot_be_written_and_says_why() -> None:
    formats, left_out = choose_formats(TABLE, config(format="all", precision="int8"))
    assert formats == [ONNX]
    assert [line.partition(":")[0] for line in left_out] == ["litert", "executorch"]
    assert left_out[0].endswith(install_command("needy"))
    assert left_out[1] == "executorch: has no int8, only fp32"


def test_the_config_knows_the_names_of_the_formats() -> None:
    assert {*get_args(ExportFormatName)} == {*EXPORT_FORMATS, "all", *OLD_NAMES}
    for name, place in EXPORT_FORMATS.items():
        assert resolve_name(place).name == name


def test_the_old_name_of_a_format_is_known() -> None:
    formats, _ = choose_formats(EXPORT_FORMATS, config(format="hdf5,onnx"))
    assert [form.name for form in formats] == ["hdf5-weights", "onnx"]


def test_images_that_are_not_those_of_the_training_are_refused(model: str, tmp_path: Path) -> None:
    from cifar_mlflow.export import load_model_file

    classifier, card = load_model_file(Path(model))
    other = tmp_path / "other.safetensors"
    save_weights(other, classifier, card.model_copy(update={"data_digest": "0" * 64}))
    result = invoke(str(other), "--format", "onnx", "--output", "out")
    assert result.exit_code == 2
    assert "was trained on other images" in result.stderr
    assert content() == set()

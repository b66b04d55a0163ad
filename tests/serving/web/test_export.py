"""The export: what it prints and verifies, and how it fails."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cifar_mlflow.errors import CifarError
from serving.registry.loader import load_scorer
from serving.web.bundle import sizes
from serving.web.format import WEB
from serving.web.runtime import FILES, HERE, VERSION, Runtime, open_runtime
from tests.export.contract import FormatContract, Written, write
from tests.export.models import block_images
from tests.serving.registry.conftest import working_in
from tests.serving.web import conftest
from tests.serving.web.conftest import Exported, Trained, export
from tests.test_cli import assert_refused


def test_the_lock_file_pins_version_and_integrity_and_names_no_registry() -> None:
    lock = json.loads((HERE / "package-lock.json").read_text())
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    assert wanted == {"onnxruntime-web": VERSION}
    for name, package in lock["packages"].items():
        if name:
            assert package["integrity"].startswith("sha512-"), name
            assert "resolved" not in package


@pytest.mark.slow
def test_it_prints_the_size_of_each_folder_and_the_verified_row(exported: Exported, folder: Path) -> None:
    files = sizes(folder)
    model = sum(size for name, size in files.items() if name.startswith("model/"))
    assert f"{model:,}  model/\n" in exported.stderr
    assert f"{sum(files.values()):,}  bytes in {len(files)} files\n" in exported.stderr
    assert "index.html" not in exported.stderr
    row = exported.stdout.splitlines()[-1].split()
    assert row[:3] == ["web", "int8", "cnn-int8-web"]
    assert row[-2:] == ["onnxruntime-web", VERSION]


@pytest.mark.slow
def test_the_network_runs_in_nodejs_as_in_python(
    folder: Path, trained: Trained, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (130, 32, 32, 3), dtype=np.uint8)
    with working_in(trained.folder, shared_cache):
        scorer = load_scorer(conftest.VERSION)
    found = WEB.load(folder)(images)
    np.testing.assert_allclose(found, scorer.score(images).probabilities, atol=1e-3)
    scorer.close()
    assert WEB.load(folder)(images[:0]).shape == (0, 10)
    assert WEB.metadata(folder)["precision"] == "int8"
    with pytest.raises(ValueError, match="uint8"):
        WEB.load(folder)(images.astype(np.float32))

    monkeypatch.setenv("PATH", "")
    np.testing.assert_allclose(WEB.load(folder)(images), found, atol=1e-3)
    assert "for want of Node.js" in WEB.runtime()


@pytest.mark.slow
def test_a_network_that_does_not_run_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "web")
    (tmp_path / "web/model/model.onnx").write_bytes(b"not a network")
    with pytest.raises(CifarError, match=r"does not run in Node\.js"):
        WEB.load(tmp_path / "web")(np.zeros((1, 32, 32, 3), np.uint8))


def test_without_npm_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    result = export("x", "--format=web", f"--output={tmp_path / 'out'}")
    assert_refused(result, 2, "install npm", "--runtime DIR", VERSION)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_runtime_is_refused(tmp_path: Path) -> None:
    result = export("x", "--format=web", f"--output={tmp_path / 'out'}", f"--runtime={tmp_path}")
    assert_refused(result, 2, str(tmp_path), "ort-wasm-simd-threaded.wasm", "onnxruntime-web")


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_without_a_connection_one_line_says_what_to_do(
    trained: Trained, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    with working_in(trained.folder, shared_cache):
        result = export(trained.run_id, "--format=web", f"--output={tmp_path / 'out'}")
    assert result.exit_code == 1, result.output
    message = result.stderr.strip().splitlines()[-1]
    for words in ("npm cannot install onnxruntime-web", "are you online", "--runtime DIR"):
        assert words in message
    assert not (tmp_path / "out").exists()
    assert not list((shared_cache / "onnxruntime-web").iterdir())


@pytest.mark.slow
def test_the_unpacked_package_is_a_runtime(runtime: Runtime, tmp_path: Path) -> None:
    without = shutil.ignore_patterns("package.json")
    shutil.copytree(runtime.folder, tmp_path / "package" / "dist", ignore=without)
    (tmp_path / "package" / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    assert open_runtime(tmp_path / "package").version == "1.2.3"
    assert open_runtime(tmp_path / "package" / "dist").version == "1.2.3"


@pytest.mark.parametrize(
    "description", ["[]", "{}", "no JSON", '{"name": "onnxruntime-web"}', '{"name": "x", "version": "1"}']
)
def test_a_runtime_without_a_usable_description_is_of_unknown_version(
    tmp_path: Path, description: str
) -> None:
    for name in FILES:
        (tmp_path / name).touch()
    (tmp_path / "package.json").write_text(description)
    assert open_runtime(tmp_path).version == "of unknown version"


@pytest.mark.slow
class TestContract(FormatContract):
    name = "web"

    @pytest.fixture(scope="class")
    def written(self, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Written:
        folder = tmp_path_factory.mktemp("web")
        return write("web", "cnn", "fp32", folder, reference="cnn.safetensors", runtime=runtime.folder)


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", ["fast", "resnet18", "vgg16"])
def test_every_architecture_gets_the_probabilities_of_the_trained_network(
    architecture: str, runtime: Runtime, tmp_path: Path
) -> None:
    written = write("web", architecture, "fp32", tmp_path, reference="x.safetensors", runtime=runtime.folder)
    images = block_images(8, seed=3)
    np.testing.assert_allclose(written.predict(images), written.expected(images), atol=1e-4)

"""Every runtime gives the label of the Python scorer for the same 200 images.

The photos below PHOTOS_DIR come first, if it is set; then the page's examples and test images of the sample.
CHAMPION_DIR, if it is set, has an mlflow.db with a champion served as fp32, to compare instead of a new one.
"""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from benchmarks.web import answers_of_page, photo_files
from cifar_mlflow.cli import EXPORT_FORMATS
from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from cifar_mlflow.export.keras import prepare_tensorflow
from cifar_mlflow.verb_config import ExportConfig
from serving.registry.loader import load_scorer
from tests.serving.app.conftest import Server
from tests.serving.browser import browser, open_page
from tests.serving.web.conftest import USER_CACHE, runtime

__all__ = ["browser", "open_page", "runtime"]

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "serving/examples").glob("*.[jp][pn]g"))
CHAMPION = "models:/cifar10@champion"
COUNT = 200
SETTINGS = ("--epochs=4", "--width=0.25")  # not those of the demo: labels must be equal, right or wrong
FILES = {
    "onnx": "fast.onnx",
    "savedmodel": "fast-savedmodel",
    "keras": "fast.keras",
    "h5": "fast.h5",
    "litert": "fast.tflite",
    "executorch": "fast.pte",
}
PHOTOS = os.environ.get("PHOTOS_DIR")
TRAINED = os.environ.get("CHAMPION_DIR")
MIN_JPEG_AGREEMENT = 0.99


class Champion:
    """A store whose champion was trained with the demo's recipe, images, and the scorer's labels for them."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        store = Path(TRAINED).resolve() if TRAINED else folder
        self.environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}",
            "CIFAR_MLFLOW_CACHE": str(cache),
        }
        if not TRAINED:
            train = ("train", "--recipe=demo", *SETTINGS, "--test=false")
            self.run(*train, "--register", "--serve-precision=fp32")
            self.run("promote")
        formats = [name for name in FILES if not resolve_name(EXPORT_FORMATS[name]).missing(ExportConfig())]
        self.run("export", CHAMPION, f"--format={','.join(formats)}", "--output=exported")
        self.files = self._files(cache)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("MLFLOW_TRACKING_URI", "CIFAR_MLFLOW_CACHE"):
                patch.setenv(name, self.environment[name])
            scorer = load_scorer(CHAMPION)
        self.classes = scorer.classes
        self.squares = np.stack([scorer.decode(content) for content in self.files.values()])
        best = scorer.score(self.squares).probabilities.argmax(axis=1)
        scorer.close()
        self.labels = [self.classes[index] for index in best]
        assert len(self.labels) == COUNT
        assert len(set(self.labels)) > 5

    def run(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "cifar_mlflow", *arguments],
            cwd=self.folder,
            env=self.environment,
            check=True,
            timeout=1200,
        )

    def file(self, name: str) -> Path:
        """Return the file of a format; skip the test if packages for it are missing."""
        if command := resolve_name(EXPORT_FORMATS[name]).missing(ExportConfig()):
            pytest.skip(command)
        return self.folder / "exported" / FILES[name]

    def compare(self, probabilities: Iterable[np.ndarray]) -> None:
        labels = [self.classes[int(each.argmax())] for each in probabilities]
        assert labels == self.labels

    @staticmethod
    def _files(cache: Path) -> dict[str, bytes]:
        files = photo_files(Path(PHOTOS)) if PHOTOS else {}
        files |= {path.name: path.read_bytes() for path in EXAMPLES}
        assert len(files) < COUNT
        test = load_dataset(DataConfig(dataset="sample", cache_dir=cache)).split("test").images
        for index in range(COUNT - len(files)):
            file = io.BytesIO()
            Image.fromarray(test[index]).save(file, "png")
            files[f"test-{index:03}.png"] = file.getvalue()
        return files


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Champion:
    return Champion(tmp_path_factory.mktemp("champion"), shared_cache)


@pytest.fixture(scope="module")
def server(champion: Champion) -> Iterator[Server]:
    server = Server(champion.folder / "server", champion.environment["MLFLOW_TRACKING_URI"])
    try:
        yield server.wait()
    finally:
        server.stop()


def test_onnx_runtime(champion: Champion) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(champion.file("onnx"))
    champion.compare(session.run(["probabilities"], {"images": champion.squares})[0])


def test_tensorflow(champion: Champion) -> None:
    path = champion.file("savedmodel")
    prepare_tensorflow()
    import tensorflow as tf

    run = tf.saved_model.load(str(path)).signatures["serving_default"]
    champion.compare(run(images=tf.constant(champion.squares))["probabilities"].numpy())


@pytest.mark.parametrize("name", ["keras", "h5"])
def test_keras(champion: Champion, name: str) -> None:
    path = champion.file(name)
    prepare_tensorflow()
    import keras

    model = keras.models.load_model(path)
    champion.compare(model.predict(champion.squares, verbose=0)["probabilities"])


def test_litert(champion: Champion) -> None:
    path = champion.file("litert")
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner("serving_default")
    champion.compare([run(images=image[None])["probabilities"][0] for image in champion.squares])


def test_executorch(champion: Champion) -> None:
    path = champion.file("executorch")
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    images = torch.from_numpy(champion.squares)
    champion.compare([method.execute([image[None]])[0][0].numpy() for image in images])


def test_tritonclient(champion: Champion, server: Server) -> None:
    http = pytest.importorskip("tritonclient.http")
    with closing(http.InferenceServerClient(server.url.removeprefix("http://"))) as client:
        files = http.InferInput("image", [COUNT], "BYTES")
        files.set_data_from_numpy(np.array([*champion.files.values()], object))
        labels = client.infer("cifar10", [files]).as_numpy("label")
    assert [label.decode() for label in labels] == champion.labels


@pytest.mark.usefixtures("runtime")
def test_the_page_without_a_connection(champion: Champion, open_page: Callable[..., Page]) -> None:
    """`make web` answers like the scorer; browsers decode JPEGs a little differently."""
    environment = {**champion.environment, "CIFAR_MLFLOW_CACHE": str(USER_CACHE), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "serving.web", "--port=0"],
        cwd=champion.folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout
            line = next(line for line in process.stdout if line.startswith("http://"))
            page = open_page(line.split()[0])
            expect(page.locator("#offline")).to_be_visible()
        finally:
            process.terminate()
    page.context.set_offline(True)
    page.reload()
    rows = answers_of_page(page, champion.files)
    expected = dict(zip(champion.files, champion.labels, strict=True))
    different = {name for name, label in expected.items() if rows[name]["label"] != label}
    jpegs = {name for name in expected if name.endswith((".jpg", ".jpeg"))}
    assert not different - jpegs
    assert not different & {path.name for path in EXAMPLES}
    assert len(different) <= (1 - MIN_JPEG_AGREEMENT) * len(jpegs)

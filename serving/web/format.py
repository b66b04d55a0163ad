"""The export format `web`: a folder of static files that classifies in the browser."""

import json
import logging
import shutil
import subprocess
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cifar_mlflow.errors import CifarError
from cifar_mlflow.export.format import ExportFormat, Images, ModelToExport, Predict, check_images
from cifar_mlflow.export.onnx import ONNX, complete_onnx
from cifar_mlflow.models.card import ServedCard
from cifar_mlflow.tracking.locations import find_model_version
from cifar_mlflow.tracking.retry import call_mlflow
from cifar_mlflow.verb_config import ExportConfig
from serving.registry.loader import load_scorer
from serving.web.bundle import CARD_FILE, MODEL_FILE, sizes, write_bundle
from serving.web.runtime import HOW_TO_GET, PACKAGE, Runtime, install_runtime, installed_runtime, open_runtime

logger = logging.getLogger("cifar_mlflow.export")

RUN_SCRIPT = Path(__file__).parent / "run.mjs"
BATCH = 64  # a pipe holds the answers of one batch


class _Web(ExportFormat):
    name = "web"
    precisions = ("fp32", "int8")
    preprocessing = True

    def __init__(self) -> None:
        self._runtime = PACKAGE

    def missing(self, config: ExportConfig) -> str | None:
        if config.runtime:
            open_runtime(config.runtime)  # refuses a wrong folder before anything is loaded
            return None
        return None if installed_runtime(config.cache_dir) or shutil.which("npm") else HOW_TO_GET

    def write(self, model: ModelToExport, folder: Path) -> Path:
        config = model.config
        if config.runtime:
            runtime = open_runtime(config.runtime)
        else:
            runtime = installed_runtime(config.cache_dir) or install_runtime(config.cache_dir)
        path = folder / f"{model.stem}-web"
        card = _card(model, runtime)
        with_distance = "distance" in card.get("ood", {}).get("score", "")
        write_bundle(path, _network(model, with_distance), card, runtime)
        logger.info("Files of %s:\n%s", path.name, _listing(path))
        return path

    def load(self, path: Path) -> Predict:
        """Run the network in Node.js with the runtime of the folder; without Node.js, in Python."""
        card = json.loads((path / CARD_FILE).read_bytes())
        node = shutil.which("node")
        if node is None:
            logger.warning(
                "There is no Node.js: the web folder is verified with Python's ONNX Runtime instead"
            )
            self._runtime = f"{ONNX.runtime()}, for want of Node.js"
            return ONNX.load(path / MODEL_FILE)
        self._runtime = card["runtime"]
        return _NodeNetwork(node, path, card["image_size"], len(card["classes"])).predict

    def metadata(self, path: Path) -> dict[str, str]:
        return ONNX.metadata(path / MODEL_FILE)

    def runtime(self) -> str:
        return self._runtime


WEB = _Web()


def _network(model: ModelToExport, with_distance: bool) -> bytes:
    """Return the ONNX file with preprocessing; the square that the network receives is a further output."""
    network = complete_onnx(model, with_preprocessing=True, with_distance=with_distance)
    size = model.card.image_size
    network.graph.node.append(onnx.helper.make_node("Identity", ["preprocessing/images"], ["input"]))
    network.graph.output.append(
        onnx.helper.make_tensor_value_info("input", onnx.TensorProto.UINT8, [1, size, size, 3])
    )
    onnx.checker.check_model(network, full_check=True)
    return network.SerializeToString()


def _card(model: ModelToExport, runtime: Runtime) -> dict[str, Any]:
    """Return the content of model.json; that of a registered version has the uncertainty thresholds, too."""
    card: dict[str, Any] = {
        "name": model.card.model,
        "version": model.card.run_id,
        **model.card.model_dump(include={"classes", "image_size", "temperature", "metrics"}),
        "fit": "crop",
        "precision": model.precision,
        "license": model.config.license,
        "runtime": str(runtime),
    }
    if not model.reference.startswith("models:/"):
        return card
    version = call_mlflow(lambda: find_model_version(model.reference))
    scorer = load_scorer(model.reference)
    scorer.close()
    served = ServedCard.model_validate(scorer.card)
    if version is None or served.run_id != model.card.run_id:
        raise CifarError(f"{model.reference} has become another version meanwhile; export it again")
    thresholds = served.model_dump(include={"uncertain", "ood"})
    return (
        card | {"name": version.name, "version": str(version.version), "metrics": served.metrics} | thresholds
    )


def _listing(path: Path) -> str:
    """Return the bytes in each folder, and in all."""
    found = sizes(path)
    folders: Counter[str] = Counter()
    for name, size in found.items():
        folder, slash, _ = name.partition("/")
        folders[folder + slash if slash else "other files"] += size
    lines = [f"{size:>12,}  {name}" for name, size in folders.most_common()]
    return "\n".join([*lines, f"{folders.total():>12,}  bytes in {len(found)} files"])


class _NodeNetwork:
    """A process of Node.js that runs the network of a folder, until the object is deleted."""

    def __init__(self, node: str, folder: Path, size: int, classes: int) -> None:
        self._size = size
        self._classes = classes
        self._process = subprocess.Popen(
            [node, str(RUN_SCRIPT), str(folder.absolute()), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        weakref.finalize(self, self._process.communicate)  # closes its input, which ends it

    def predict(self, images: Images) -> np.ndarray:
        check_images(images, self._size)
        batches = [self._run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return np.concatenate([np.empty((0, self._classes), np.float32), *batches])

    def _run(self, images: Images) -> np.ndarray:
        assert self._process.stdin
        assert self._process.stdout
        expected = len(images) * self._classes * np.dtype(np.float32).itemsize
        try:
            self._process.stdin.write(images.tobytes())
            self._process.stdin.flush()
            answer = self._process.stdout.read(expected)
        except BrokenPipeError:
            answer = b""
        if len(answer) < expected:
            _, errors = self._process.communicate()
            raise CifarError(
                f"the network does not run in Node.js: {errors.decode(errors='replace').strip()[-300:]}"
            )
        return np.frombuffer(answer, np.float32).reshape(len(images), self._classes)

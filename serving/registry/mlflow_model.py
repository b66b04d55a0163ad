"""Package a scorer folder as an MLflow model: plain files and code, no pickle."""

import base64
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property
from PIL import Image

from cifar_mlflow import scorer
from cifar_mlflow.scorer.predictor import CARD_FILE
from cifar_mlflow.tracking.retry import call_mlflow
from cifar_mlflow.tracking.run import MODEL_STEP

# A test compares the ranges with those in pyproject.toml.
REQUIREMENTS = [
    "mlflow>=3.17,<4",
    "numpy>=2.0,<3",
    "onnxruntime>=1.20,<2",
    "pandas>=2.2,<4",
    "pillow>=11,<14",
]
CODE = Path(scorer.__file__).parent
MODEL_CARD_FILE = "MODEL_CARD.md"
# Path of the scorer folder within an MLflow model.
SCORER_PATH = "artifacts/scorer"
# MLflow writes this file into a model that it downloads from the registry.
REGISTERED_MODEL_META = "registered_model_meta"


def save_model(scorer_folder: Path, path: Path) -> None:
    """Write the folder as an MLflow model to `path`, which must be missing or empty."""
    with _arguments(scorer_folder) as arguments:
        mlflow.pyfunc.save_model(path, **arguments)


def log_model(scorer_folder: Path, run_id: str, name: str = "scorer", model_card: str = "") -> ModelInfo:
    """Log the folder as an MLflow model of a run, finished or not; the run's status does not change.

    Args:
        model_card: description for people in Markdown, which also becomes a file of the model.
    """
    with _arguments(scorer_folder) as arguments:
        if model_card:
            file = Path(arguments["artifacts"]["code"]).with_name(MODEL_CARD_FILE)
            file.write_text(model_card)
            arguments["artifacts"]["model_card"] = str(file)
            arguments["tags"] = {"mlflow.note.content": model_card}
        return Model.log(
            None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            name=name,
            model_type="scorer of image files",
            step=MODEL_STEP,
            **arguments,
        )


def download(model_uri: str, folder: Path) -> Path:
    """Download a logged or registered model into `folder`, which is created, and return its path.

    Raises:
        CifarError: MLflow does not answer, or has no such model, or its files are missing.
    """
    return Path(call_mlflow(lambda: mlflow.artifacts.download_artifacts(model_uri, dst_path=str(folder))))


def code_digest(model: Path) -> str:
    """Return the sha256 of everything in an MLflow model outside of the scorer folder.

    That is the code, and the files by which MLflow loads it and creates its environment. Files that are added
    when the model is used in place do not count: MLflow's note of the version, and Python's bytecode.
    """
    files = {path.relative_to(model).as_posix(): path for path in model.rglob("*") if path.is_file()}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        added = name == REGISTERED_MODEL_META or path.parent.name == "__pycache__"
        if not added and not name.startswith(f"{SCORER_PATH}/"):
            digest.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


@contextmanager
def _arguments(scorer_folder: Path) -> Iterator[dict[str, Any]]:
    card = json.loads((scorer_folder / CARD_FILE).read_bytes())
    with tempfile.TemporaryDirectory() as staged:
        # MLflow names an artifact by the last part of its path.
        code, folder = Path(staged, "code"), Path(staged, "scorer")
        shutil.copytree(CODE, code, ignore=shutil.ignore_patterns("__pycache__", "pyfunc.py"))
        shutil.copytree(scorer_folder, folder)
        yield {
            "python_model": str(CODE / "pyfunc.py"),
            "artifacts": {"code": str(code), "scorer": str(folder)},
            "signature": signature(len(card["classes"])),
            "input_example": pd.DataFrame({"image": [_example(card["image_size"])]}),
            "pip_requirements": REQUIREMENTS,
        }


def signature(classes: int) -> ModelSignature:
    """Return the signature of a model with that many classes; the outputs are those without `on_error=null`.

    The column `image` takes base64 text, a data URL or bytes. Its type is string, as in CSV and JSON: MLflow
    passes bytes in such a column unchanged, but would decode the text in a binary column itself, which breaks
    data URLs. The column is optional because MLflow's error for a missing column repeats the whole table; the
    model reports it without.
    """
    ranked = Object([Property("label", DataType.string), Property("confidence", DataType.double)])
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image", required=False)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.long, "class_index"),
                ColSpec(DataType.double, "confidence"),
                ColSpec(Array(ranked), "top_k"),
                ColSpec(DataType.boolean, "uncertain"),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("top_k", DataType.long, min(3, classes)),
                ParamSpec("on_error", DataType.string, "raise"),
            ]
        ),
    )


def _example(size: int) -> str:
    png = io.BytesIO()
    Image.new("RGB", (size, size), "steelblue").save(png, "png")
    return base64.b64encode(png.getvalue()).decode()

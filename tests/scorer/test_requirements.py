"""A registered model runs with its declared requirements alone: no torch, and none of our packages."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serving.registry.mlflow_model import REQUIREMENTS, save_model

OURS = {"cifar_mlflow", "serving", "tuning", "tests", "benchmarks"}
PREDICT = """
import sys

refused = set(sys.argv[2:])


class OnlyRequirements:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in refused:
            raise ModuleNotFoundError(f"{top} is not required by the model", name=top)


sys.meta_path.insert(0, OnlyRequirements())
import io

import mlflow
import pandas as pd
from PIL import Image

file = io.BytesIO()
Image.new("RGB", (50, 40), "lime").save(file, "png")
model = mlflow.pyfunc.load_model(sys.argv[1])
print("label", model.predict(pd.DataFrame({"image": [file.getvalue()]}))[0]["label"])
try:
    import torch
except ModuleNotFoundError as error:
    print(error)
"""


def import_names(requirements: list[str]) -> set[str]:
    """Return the top-level modules of the requirements and of everything that they require."""
    distributions: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name)
        if key in distributions:
            continue
        distributions.add(key)
        for line in metadata.requires(key) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(needed)
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if distributions & {canonicalize_name(owner) for owner in owners}
    }


@pytest.fixture(scope="module")
def allowed() -> set[str]:
    return import_names(REQUIREMENTS)


def test_the_requirements_have_neither_torch_nor_our_packages(allowed: set[str]) -> None:
    assert {"mlflow", "numpy", "onnxruntime", "pandas", "PIL"} <= allowed
    assert not {"torch", "torchvision", *OURS} & allowed


@pytest.mark.slow
def test_a_saved_model_predicts_with_its_requirements_alone(
    scorer_folder: Path, tmp_path: Path, allowed: set[str]
) -> None:
    save_model(scorer_folder, tmp_path / "model")
    refused = (set(metadata.packages_distributions()) | OURS) - allowed
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(tmp_path / "model"), *sorted(refused)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["label green", "torch is not required by the model"], done.stderr

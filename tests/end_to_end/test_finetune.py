"""A pretrained network for own photos: trained, registered, and served without torch."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner

from cifar_mlflow.api import load
from cifar_mlflow.cli import main
from cifar_mlflow.export.weights import load_tensors
from tests.models.test_backbones import LITE0
from tests.serving.registry.conftest import paint

pytestmark = pytest.mark.thorough

# At 64 pixels, to be quick.
COMMAND = ("train", "--model", "timm/tf_efficientnet_lite0", "--weights", LITE0, "--epochs", "1")
SMALL = ("--image-size", "64", "--threads", "1", "--precision", "fp32")

SERVE = """
import pathlib, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
files = [pathlib.Path(path).read_bytes() for path in sys.argv[2:]]
print(*(answer["label"] for answer in model.predict(pd.DataFrame({"image": files}))))
print(*({"torch", "torchvision", "timm"} & sys.modules.keys()))
"""


@pytest.mark.usefixtures("mlflow_store")
def test_a_frozen_backbone_is_trained_served_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = paint(tmp_path / "photos", (100, 150))
    command = [*COMMAND, *SMALL, "--data-dir", str(photos)]
    done = CliRunner().invoke(main, [*command, "--freeze", "--register"])
    assert done.exit_code == 0, done.output
    assert "new for 3 classes: classifier.weight, classifier.bias" in done.output
    (run,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.kind = 'train'", output_format="list"
    )
    assert run.data.params["recipe"] == "finetune"
    assert run.data.metrics["test/accuracy"] > 0.9  # colours: the fitted head is enough

    trained = load(run.info.run_id)
    kept = [
        tensor for name, tensor in trained.network.network.state_dict().items() if "classifier" not in name
    ]
    initial = list(load_tensors(Path(LITE0)).values())[:-2]
    assert all(torch.equal(*pair) for pair in zip(kept, initial, strict=True))
    assert trained.card.mean == (0.5, 0.5, 0.5)  # timm's for these weights, not that of the photos

    files = [str(photos / colour / "00.png") for colour in ("blue", "red")]
    answered = subprocess.run(
        [sys.executable, "-c", SERVE, "models:/photos/1", *files],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert answered.stdout.splitlines() == ["blue red", ""], answered.stderr

    # The weights of the run, whose model need not be named, for other classes and all layers.
    (photos / "red").rename(photos / "crimson")
    again = ["train", "--recipe", "finetune", "--model", trained.card.model, "--weights", run.info.run_id]
    done = CliRunner().invoke(main, [*again, *SMALL, "--data-dir", str(photos), "--epochs", "1"])
    assert done.exit_code == 0, done.output


@pytest.mark.usefixtures("mlflow_store")
def test_a_file_of_another_library_needs_the_name_of_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["train", "--weights", LITE0, "--data-dir", str(tmp_path)])
    assert done.exit_code == 2
    assert "if it holds the weights of a network of torchvision or timm, name it" in done.output

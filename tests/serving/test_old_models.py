"""Models that an earlier release registered are served, loaded and promoted, and answer as they did then.

The code of that commit wrote `tests/fixtures/registered_at_00676c6`: the registered model (`scorer`), the
model of its run (`model`), its weights, and in version.json the tags and the expected answers.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests

from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export import load_model_file
from cifar_mlflow.export.reference import load_model
from cifar_mlflow.models.card import ServedCard
from cifar_mlflow.scorer.preprocess import decode_image
from serving.registry.loader import load_scorer
from serving.registry.mlflow_model import save_model
from serving.registry.mlflow_server import free_port, mlflow_server
from serving.registry.promotion import promote
from tests.scorer_folders import write_scorer_folder

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests/fixtures/registered_at_00676c6"
VERSION = json.loads((FIXTURE / "version.json").read_text())
NAME = "cifar10"
# PNG files. The fixture also has the answer for a JPEG, which the present code decodes to other pixels.
IMAGES = [base64.b64decode(image) for image in VERSION["images"]]
ANSWERS = VERSION["answers"][: len(IMAGES)]
FIELDS = ("label", "class_index", "confidence", "top_k", "uncertain")


def expected_answers() -> list[dict[str, Any]]:
    """Return the answers of the earlier release; confidences may differ in the last digits."""
    return [
        {
            **answer,
            "confidence": pytest.approx(answer["confidence"], abs=1e-4),
            "top_k": [
                {"label": ranked["label"], "confidence": pytest.approx(ranked["confidence"], abs=1e-4)}
                for ranked in answer["top_k"]
            ],
        }
        for answer in ANSWERS
    ]


def answers_of(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{field: prediction[field] for field in FIELDS} for prediction in predictions]


def table() -> pd.DataFrame:
    return pd.DataFrame({"image": IMAGES})


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a store with the old version, its tags, and the alias `champion`."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow.MlflowClient(uri, uri)
    client.create_registered_model(NAME)
    source = shutil.copytree(FIXTURE / "scorer", tmp_path / "scorer")
    version = client.create_model_version(
        NAME, str(source), tags=VERSION["tags"], description=VERSION["description"]
    )
    client.set_registered_model_alias(NAME, "champion", version.version)
    return uri


@pytest.fixture
def service(store: str, tmp_path: Path) -> Iterator[str]:
    """Yield the address of a process of `cifar-mlflow serve`."""
    port = free_port()
    log = tmp_path / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cifar_mlflow", "serve", "--port", str(port)],
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while True:
            try:
                if requests.get(f"{address}/ping", timeout=60).ok:
                    break
            except requests.ConnectionError:
                pass
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def invocations(address: str) -> list[dict[str, Any]]:
    """Return the answers to one table with all images, by MLflow's protocol."""
    rows = [[base64.b64encode(image).decode()] for image in IMAGES]
    body: Any = {"dataframe_split": {"columns": ["image"], "data": rows}}
    response = requests.post(f"{address}/invocations", json=body, timeout=120)
    assert response.status_code == 200, response.text
    predictions: list[dict[str, Any]] = response.json()["predictions"]
    return answers_of(predictions)


@pytest.mark.slow
def test_the_service_answers_as_before(service: str) -> None:
    predictions = []
    for image in IMAGES:
        kind = "image/jpeg" if image.startswith(b"\xff\xd8") else "image/png"
        response = requests.post(
            f"{service}/predict", data=image, headers={"Content-Type": kind}, timeout=120
        )
        assert response.status_code == 200, response.text
        predictions += response.json()["predictions"]
    assert answers_of(predictions) == expected_answers()
    assert invocations(service) == expected_answers()


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_mlflow_models_serve_answers_as_before() -> None:
    with mlflow_server(f"models:/{NAME}@champion") as server:
        assert invocations(server.address) == expected_answers()


def test_the_loader_gives_the_same_answers() -> None:
    scorer = load_scorer(str(FIXTURE / "scorer"))
    scores = scorer.score(np.stack([scorer.decode(image) for image in IMAGES]))
    assert answers_of(scorer.answers(scores, 3)) == expected_answers()
    assert ServedCard.model_validate(scorer.card).precision == "fp32"


def test_a_version_with_the_tags_of_an_older_release_can_be_promoted(store: str) -> None:
    client = mlflow.MlflowClient(store, store)
    client.delete_registered_model_alias(NAME, "champion")
    message = promote("1", NAME, force=False).message
    assert message.startswith("version 1 (fp32, validation accuracy 0.4930) is now the champion")
    assert load_scorer(f"models:/{NAME}@champion").card["run_id"] == VERSION["run_id"]


def test_an_old_and_a_new_model_answer_in_one_process(tmp_path: Path) -> None:
    save_model(write_scorer_folder(tmp_path / "colours"), tmp_path / "new")
    save_model(FIXTURE / "scorer/artifacts/scorer", tmp_path / "saved again")
    old = mlflow.pyfunc.load_model(str(FIXTURE / "scorer"))
    new = mlflow.pyfunc.load_model(str(tmp_path / "new"))
    again = mlflow.pyfunc.load_model(str(tmp_path / "saved again"))
    for _ in range(2):
        assert answers_of(old.predict(table())) == expected_answers()
        assert {answer["label"] for answer in new.predict(table())} <= {"red", "green", "blue"}
        assert answers_of(again.predict(table())) == expected_answers()


@pytest.mark.parametrize("file", ["model.h5", "model.safetensors"])
def test_old_weights_give_the_same_answers(file: str) -> None:
    classifier, card = load_model_file(FIXTURE / "weights" / file)
    assert card.run_id == VERSION["run_id"]
    assert_same_answers(classifier, card.temperature, card.classes)


def test_the_old_program_gives_the_same_answers(store: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(store, store)
    client.create_registered_model("program")
    source = shutil.copytree(FIXTURE / "model", tmp_path / "model")
    version = client.create_model_version("program", str(source)).version
    program, card = load_model(f"models:/program/{version}")
    assert card.run_id == VERSION["run_id"]
    assert_same_answers(program, card.temperature, card.classes)


def assert_same_answers(model: Any, temperature: float, classes: tuple[str, ...]) -> None:
    images = np.stack([decode_image(image, 32) for image in IMAGES])
    probabilities = softmax(predict_logits(model, images), temperature)
    for row, answer in zip(probabilities, ANSWERS, strict=True):
        assert classes[row.argmax()] == answer["label"]
        assert row.max() == pytest.approx(answer["confidence"], abs=1e-4)

"""Models that an older release registered still load, answer, and can be promoted."""

import base64
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from cifar_mlflow.models.card import ServedCard
from serving.registry.loader import load_scorer
from serving.registry.mlflow_model import save_model
from tests.serving.registry.conftest import promote

FIXTURE = Path(__file__).parents[2] / "fixtures" / "registered_at_00676c6"
VERSION = json.loads((FIXTURE / "version.json").read_bytes())
PHOTO = base64.b64encode((FIXTURE.parents[2] / "serving/examples/cat.jpg").read_bytes()).decode()
# The recorded answers are for these, in this order.
IMAGES = [*VERSION["images"], PHOTO]


def assert_recorded_answers(answers: list[dict[str, Any]]) -> None:
    """Compare with the answers that the older release gave."""
    assert len(answers) == len(VERSION["answers"])
    for answer, recorded in zip(answers, VERSION["answers"], strict=True):
        assert answer["label"] == recorded["label"]
        assert answer["uncertain"] == recorded["uncertain"]
        assert answer["confidence"] == pytest.approx(recorded["confidence"], abs=1e-4)


def test_the_loader_gives_the_recorded_answers() -> None:
    scorer = load_scorer(str(FIXTURE / "scorer"))
    images = [scorer.decode(base64.b64decode(image)) for image in IMAGES]
    scores = scorer.score(np.stack(images))
    assert_recorded_answers(scorer.answers(scores, 3))
    assert ServedCard.model_validate(scorer.card).precision == "fp32"


def test_an_old_and_a_new_model_run_in_one_process(scorer_folder: Path, tmp_path: Path) -> None:
    save_model(scorer_folder, tmp_path / "new")
    old = mlflow.pyfunc.load_model(str(FIXTURE / "scorer"))
    new = mlflow.pyfunc.load_model(str(tmp_path / "new"))
    table = pd.DataFrame({"image": IMAGES})
    for _ in range(2):
        assert_recorded_answers(old.predict(table))
        assert {answer["label"] for answer in new.predict(table)} <= {"red", "green", "blue"}


def test_a_version_with_the_tags_of_an_older_release_can_be_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient()
    client.create_registered_model("cifar10")
    client.create_model_version("cifar10", (FIXTURE / "scorer").as_uri(), tags=VERSION["tags"])
    assert promote("1").message.startswith("version 1 (fp32, validation accuracy 0.4930) is now")
    assert load_scorer("models:/cifar10@champion").card["run_id"] == VERSION["run_id"]

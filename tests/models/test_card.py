"""The card of a model, in each of the files that carry it."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from cifar_mlflow.export import load_model_file
from cifar_mlflow.models.card import ModelCard, ServedCard

FIXTURE = Path(__file__).parents[1] / "fixtures" / "registered_at_00676c6"
SCORER_JSON = FIXTURE / "scorer/artifacts/scorer/scorer.json"


@pytest.mark.parametrize("name", ["model.safetensors", "model.h5"])
def test_cards_written_by_an_older_release_are_read(name: str) -> None:
    card = load_model_file(FIXTURE / "weights" / name)[1]
    assert (card.model, card.image_size, len(card.classes)) == ("cnn", 32, 10)
    assert card.metrics["test/accuracy"] == 0.472


def test_scorer_json_of_an_older_release_is_read_and_written_without_loss() -> None:
    written = json.loads(SCORER_JSON.read_bytes())
    card = ServedCard.model_validate(written)
    assert card.uncertain.target_accuracy == 0.95
    assert card.uncertain.reason is None
    assert card.class_map is None
    assert card.model_dump(mode="json", exclude={"uncertain": {"reason"}, "class_map": True}) == written


def test_a_card_with_a_wrong_type_is_refused_and_an_unknown_key_is_not() -> None:
    written = json.loads(SCORER_JSON.read_bytes())
    assert ServedCard.model_validate({**written, "from_a_later_release": 1}).precision == "fp32"
    with pytest.raises(ValidationError, match="image_size"):
        ServedCard.model_validate({**written, "image_size": "large"})
    with pytest.raises(ValidationError, match="mean"):
        ModelCard.model_validate(written)

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, log_loss

from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.evaluation.metrics import evaluate_logits

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.fixture
def predictions() -> Arrays:
    """Return logits (5000, 10), about 70 % of them right, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 5000)
    logits = rng.normal(size=(5000, 10)).astype(np.float32)
    logits[np.arange(5000), labels] += 2
    return logits, labels


def test_agrees_with_scikit_learn(predictions: Arrays) -> None:
    logits, labels = predictions
    result = evaluate_logits(logits, labels, list("abcdefghij"), temperature=1.3)
    predicted = logits.argmax(1)
    assert result.loss == pytest.approx(log_loss(labels, softmax(logits, 1.3)))
    assert result.accuracy == (predicted == labels).mean()
    assert result.f1_macro == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert result.f1_weighted == pytest.approx(f1_score(labels, predicted, average="weighted"))


def test_by_hand() -> None:
    # true: a, a, b, b; predicted: a, b, b, b
    logits = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    result = evaluate_logits(logits, np.array([0, 0, 1, 1]), ["a", "b"])
    assert result.confusion.tolist() == [[1, 1], [0, 2]]
    assert result.accuracy == 0.75
    a, b = result.per_class.to_dict("records")
    assert a == {"class": "a", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert b == {"class": "b", "precision": pytest.approx(2 / 3), "recall": 1.0, "f1": 0.8, "support": 2}
    assert result.f1_macro == pytest.approx((2 / 3 + 0.8) / 2)
    right, wrong = -np.log(np.e / (np.e + 1)), -np.log(1 / (np.e + 1))
    assert result.loss == pytest.approx((3 * right + wrong) / 4)
    assert result.ece == pytest.approx(0.75 - np.e / (np.e + 1))


@pytest.mark.filterwarnings("error")
def test_a_class_without_images_has_its_row() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 1, 1]]
    result = evaluate_logits(logits, np.array([0, 1, 1]), ["a", "b", "absent", "too"])
    assert result.confusion.shape == (4, 4)
    assert result.per_class["class"].tolist() == ["a", "b", "absent", "too"]
    assert result.per_class["support"].tolist() == [1, 2, 0, 0]
    assert result.per_class["f1"].tolist() == [1, 1, 0, 0]
    assert (result.f1_macro, result.f1_weighted) == (0.5, 1)


def test_temperature_changes_only_loss_and_calibration(predictions: Arrays) -> None:
    cold, hot = (evaluate_logits(*predictions, list("abcdefghij"), temperature=t) for t in (1, 4))
    assert cold.accuracy == hot.accuracy
    assert cold.f1_macro == hot.f1_macro
    assert cold.loss != hot.loss
    assert cold.ece != hot.ece


def test_scalars_are_named_by_split_and_json_serializable(predictions: Arrays) -> None:
    result = evaluate_logits(*predictions, list("abcdefghij"))
    scalars = result.scalars("test")
    assert set(scalars) == {"test/loss", "test/accuracy", "test/f1_macro", "test/f1_weighted", "test/ece"}
    assert all(type(value) is float for value in scalars.values())
    back = json.loads(json.dumps(result.to_dict("val"), allow_nan=False))
    assert back["val/accuracy"] == result.accuracy
    assert back["confusion"] == result.confusion.tolist()
    assert back["per_class"][3]["class"] == "d"
    assert back["per_class"][3]["support"] == int((predictions[1] == 3).sum())


def test_diverged_logits_give_a_non_finite_loss(predictions: Arrays) -> None:
    logits, labels = predictions
    logits[7] = np.nan
    assert np.isnan(evaluate_logits(logits, labels, list("abcdefghij")).loss)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [(np.zeros((0, 2)), np.zeros(0, int)), (np.zeros((3, 2)), np.zeros(2, int)), (np.zeros((2, 3)), [0, 1])],
)
def test_shapes_that_do_not_match_are_refused(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        evaluate_logits(logits, labels, ["a", "b"])

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cifar_mlflow.evaluation.calibration import (
    calibrate,
    calibration_error_of,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_table,
    softmax,
)


def drawn_from(logits: NDArray[np.float64], seed: int = 1) -> NDArray[np.int64]:
    """Return labels drawn with exactly the probabilities of the logits."""
    uniform = np.random.default_rng(seed).random((len(logits), 1))
    drawn: NDArray[np.int64] = (softmax(logits).cumsum(axis=1) < uniform).sum(axis=1)
    return drawn.clip(max=logits.shape[1] - 1)


@pytest.fixture(scope="module")
def honest() -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(scale=2, size=(20_000, 10))


def test_softmax_by_hand_and_with_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[0.0, np.log(3)]])), [[0.25, 0.75]])
    np.testing.assert_allclose(softmax(np.array([[0.0, 2 * np.log(3)]]), temperature=2), [[0.25, 0.75]])
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0, -1e4]])), [[1, 0, 0]])


def test_error_of_a_calibrated_model_is_near_zero(honest: NDArray[np.float64]) -> None:
    assert expected_calibration_error(softmax(honest), drawn_from(honest)) < 0.01


def test_error_of_an_over_confident_model_is_its_excess() -> None:
    # 90 % confident each time, right 60 % of the time.
    probabilities = np.tile([0.9, 0.1], (1000, 1))
    labels = np.repeat([0, 1], [600, 400])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.3)


def test_error_weights_bins_by_their_predictions() -> None:
    # Three have confidence 0.95 and are right (gap 0.05); one has 0.55 and is wrong (gap 0.55).
    probabilities = np.array([[0.95, 0.05]] * 3 + [[0.55, 0.45]])
    error = expected_calibration_error(probabilities, np.array([0, 0, 0, 1]))
    assert error == pytest.approx((3 * 0.05 + 0.55) / 4)


def test_table_assigns_every_prediction_to_its_bin() -> None:
    # 0.5 is the upper bound of the second of four bins and belongs to it; 1 belongs to the last one.
    probabilities = np.array([[0.5, 0.5], [0.7, 0.3], [0.7, 0.3], [1.0, 0.0]])
    table = reliability_table(probabilities, np.array([0, 0, 1, 0]), bins=4)
    assert table["count"].tolist() == [0, 1, 2, 1]
    assert table["lower"].tolist() == [0, 0.25, 0.5, 0.75]
    assert table["upper"].tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(table["confidence"], [np.nan, 0.5, 0.7, 1])
    np.testing.assert_allclose(table["accuracy"], [np.nan, 1, 0.5, 1])


@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_table_sums_to_all_predictions(n: int, classes: int, bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(scale=5, size=(n, classes)))
    labels = rng.integers(0, classes, n)
    table = reliability_table(probabilities, labels, bins)
    assert table["count"].sum() == n
    accuracy = (table["accuracy"] * table["count"]).sum() / n
    assert accuracy == pytest.approx((probabilities.argmax(1) == labels).mean())
    filled = table[table["count"] > 0]
    assert (filled["confidence"] > filled["lower"] - 1e-9).all()
    assert (filled["confidence"] < filled["upper"] + 1e-9).all()
    assert 0 <= calibration_error_of(table) <= 1


@given(st.floats(0.3, 5))
@settings(max_examples=20, deadline=None)
def test_the_temperature_that_scaled_the_logits_is_found(temperature: float) -> None:
    honest = np.random.default_rng(0).normal(scale=2, size=(5000, 10))
    labels = drawn_from(honest)
    assert fit_temperature(honest * temperature, labels) == pytest.approx(temperature, rel=0.06)


def test_the_fitted_temperature_improves_calibration_on_other_images(honest: NDArray[np.float64]) -> None:
    labels = drawn_from(honest)
    logits = (honest * 3).astype(np.float32)
    temperature = fit_temperature(logits[:5000], labels[:5000])
    seen, unseen, truth = logits[:5000], logits[5000:], labels[5000:]
    assert expected_calibration_error(softmax(unseen), truth) > 0.1
    assert expected_calibration_error(softmax(unseen, temperature), truth) < 0.02
    accuracy = (seen.argmax(1) == labels[:5000]).mean()
    assert softmax(seen, temperature).max(1).mean() == pytest.approx(accuracy, abs=1e-3)


@pytest.fixture(scope="module")
def timid() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return logits and labels as of a network that is too timid in general, but sure of some mistakes.

    90 % of the images have a confidence of a half and an accuracy of 70 %. The other answers are wrong, with
    a confidence of 99 %.
    """
    rng = np.random.default_rng(3)
    count, classes = 20_000, 10
    answer = rng.integers(0, classes, count)
    blunder = rng.random(count) < 0.1
    confidence = np.where(blunder, 0.99, 0.5)
    probabilities = np.repeat((1 - confidence)[:, None] / (classes - 1), classes, axis=1)
    probabilities[np.arange(count), answer] = confidence
    wrong = blunder | (rng.random(count) > 0.7)
    labels = np.where(wrong, (answer + rng.integers(1, classes, count)) % classes, answer)
    return np.log(probabilities), labels


def test_some_confident_mistakes_do_not_make_the_temperature_worse_than_none(
    timid: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    """The temperature with the lowest negative log likelihood would make all answers even more timid."""
    logits, labels = timid
    assert negative_log_likelihood(logits, labels, 1.2) < negative_log_likelihood(logits, labels)
    for count in (500, 5000):
        calibration = calibrate(logits[:count], labels[:count])
        assert calibration.temperature < 1
        unseen, truth = logits[5000:], labels[5000:]
        before = expected_calibration_error(softmax(unseen), truth)
        assert expected_calibration_error(softmax(unseen, calibration.temperature), truth) < before - 0.05


def test_each_image_is_scaled_without_its_own_label(honest: NDArray[np.float64]) -> None:
    logits, labels = honest[:200] * 3, drawn_from(honest[:200])
    scaled = calibrate(logits, labels).scaled
    image = np.flatnonzero(logits.argmax(1) == labels)[0]
    changed = labels.copy()
    changed[image] = (changed[image] + 1) % 10
    again = calibrate(logits, changed).scaled
    assert (again[image] == scaled[image]).all()
    assert not (again[image + 1] == scaled[image + 1]).all()


@given(st.integers(1, 80), st.integers(2, 10), st.floats(0.05, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_no_calibration_is_worse_than_none(count: int, classes: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(count, classes))
    labels = rng.integers(0, classes, count)
    calibration = calibrate(logits, labels)
    before = expected_calibration_error(softmax(logits), labels)
    if calibration.temperature == 1:
        np.testing.assert_array_equal(calibration.scaled, logits)
    else:
        assert expected_calibration_error(softmax(calibration.scaled), labels) < before


def test_few_images_without_a_mistake_do_not_make_all_answers_certain() -> None:
    """The probability of the label is exp(1 / T) / (exp(1 / T) + 2), and 2.5 of 3 answers count as right."""
    assert fit_temperature(np.eye(3), np.arange(3)) == pytest.approx(1 / np.log(10), rel=1e-4)
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    logits = np.eye(2)[labels] * rng.uniform(0.5, 2, (20, 1))  # right, with confidences of 62 to 88 %
    temperature = calibrate(logits, labels).temperature
    assert softmax(logits, temperature).max(axis=1).mean() == pytest.approx(1 - 0.5 / 20, abs=1e-3)
    assert softmax(np.array([[0.1, 0.0]]), temperature).max() < 0.7  # hardly one class more than the other


def test_fitting_without_predictions_is_refused() -> None:
    with pytest.raises(ValueError, match="without predictions"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, int))

"""The thresholds for uncertain answers, and how they are fitted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_mlflow.evaluation.calibration import softmax
from serving.registry.abstention import energy, fit_thresholds, ood_auroc, ood_images


def predictions(seed: int, count: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels; the sharper the logits, the more accurate they are."""
    rng = np.random.default_rng(seed)
    logits = (sharpness * rng.standard_normal((count, 4))).astype(np.float32)
    return logits, (logits + 2 * rng.standard_normal((count, 4))).argmax(axis=1)


def is_certain(logits: np.ndarray, below: float, above: float, temperature: float) -> np.ndarray:
    """Return whether the scorer, which computes in float32, is certain of each image."""
    scaled = (logits / np.float32(temperature)).astype(np.float32)
    return (softmax(scaled).astype(np.float32).max(axis=1) >= below) & (
        energy(logits, temperature).astype(np.float32) <= above
    )


def test_energy_is_low_if_a_logit_is_high() -> None:
    logits = np.array([[0.0, 0.0], [10.0, 0.0]], np.float32)
    np.testing.assert_allclose(energy(logits, 1.0), [-np.log(2), -10.0000454], rtol=1e-6)
    np.testing.assert_allclose(energy(logits, 2.0), [-2 * np.log(2), -10.0134307], rtol=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(20, 400), st.floats(0.3, 8), st.floats(0.5, 3))
def test_coverage_and_accuracy_are_those_of_the_certain_answers(
    seed: int, count: int, sharpness: float, temperature: float
) -> None:
    logits, labels = predictions(seed, count, sharpness)
    thresholds = fit_thresholds(logits, labels, temperature, target_accuracy=0.8)
    certain = is_certain(logits, thresholds.confidence_below, thresholds.ood_above, temperature)
    assert thresholds.coverage == certain.mean()
    if thresholds.accuracy is None:
        assert thresholds.reason
        assert not certain.any()
    else:
        assert thresholds.accuracy == pytest.approx((logits.argmax(axis=1) == labels)[certain].mean())
        assert thresholds.accuracy >= 0.8
    assert (energy(logits, temperature) > thresholds.ood_above).sum() <= 0.2 * count + 1


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.3, 8))
def test_no_other_threshold_has_more_coverage_on_target(seed: int, sharpness: float) -> None:
    logits, labels = predictions(seed, 200, sharpness)
    thresholds = fit_thresholds(logits, labels, 1.0, target_accuracy=0.8)
    right = logits.argmax(axis=1) == labels
    assert thresholds.coverage is not None
    for below in np.unique(softmax(logits).max(axis=1)):
        certain = is_certain(logits, below - 1e-6, thresholds.ood_above, 1.0)
        if certain.sum() >= 5:  # enough to verify 80 %
            assert right[certain].mean() < 0.8 or certain.mean() <= thresholds.coverage


def test_a_network_that_reaches_the_target_is_always_certain() -> None:
    logits = 20 * np.eye(4, dtype=np.float32)[np.arange(100) % 4]
    thresholds = fit_thresholds(logits, np.arange(100) % 4, 1.0, target_accuracy=0.95)
    assert (thresholds.confidence_below, thresholds.coverage, thresholds.accuracy) == (0.0, 1.0, 1.0)


def test_an_unreachable_target_makes_every_answer_uncertain() -> None:
    # Higher confidence, lower accuracy: half of the confident answers are right, but 75 % of all answers.
    logits = np.zeros((200, 2), np.float32)
    logits[:100, 0], logits[100:, 0] = 4, 1
    labels = np.zeros(200, int)
    labels[:50] = 1
    thresholds = fit_thresholds(logits, labels, 1.0, target_accuracy=0.95)
    assert thresholds.confidence_below > 1
    assert (thresholds.coverage, thresholds.accuracy) == (0.0, None)
    assert thresholds.reason
    assert "on the 200 validation images, no confidence threshold leaves 95 % right answers (at best 7" in (
        thresholds.reason
    )
    reachable = fit_thresholds(logits, labels, 1.0, target_accuracy=0.7)
    assert reachable.accuracy == pytest.approx(0.75, abs=0.01)
    assert reachable.reason is None


def test_too_few_images_make_every_answer_uncertain() -> None:
    logits = 20 * np.eye(2, dtype=np.float32)[np.arange(14) % 2]  # all are right
    thresholds = fit_thresholds(logits, np.arange(14) % 2, 1.0, target_accuracy=0.95)
    assert (thresholds.coverage, thresholds.accuracy) == (0.0, None)
    assert thresholds.reason == (
        "14 validation images are too few to verify that 95 % of the certain answers are right: "
        "it takes 20 of them"
    )
    certain = is_certain(logits, thresholds.confidence_below, thresholds.ood_above, 1.0)
    assert not certain.any()  # although the confidence is 1
    assert fit_thresholds(logits, np.arange(14) % 2, 1.0, target_accuracy=0.9).coverage == 1


def test_images_unlike_the_training_images_do_not_count() -> None:
    logits = 20 * np.eye(2, dtype=np.float32)[np.arange(23) % 2]
    distance = np.where(np.arange(23) < 1, 1000.0, 0.0)  # 95 % of the images are the most that counts
    reason = fit_thresholds(logits, np.arange(23) % 2, 1.0, 0.97, distance).reason
    assert reason is not None
    assert reason.startswith("22 validation images of 23, those like the training images, are too few to ")
    assert reason.endswith("it takes 34 of them")


def test_a_threshold_is_not_based_on_a_few_answers() -> None:
    # The 10 most confident of 100 answers are right, which is likely even at an accuracy of 95 %.
    logits = np.zeros((100, 2), np.float32)
    logits[:, 0] = np.linspace(5, 1, 100)
    labels = np.arange(100) // 10 % 2
    thresholds = fit_thresholds(logits, labels, 1.0, target_accuracy=0.95)
    assert thresholds.coverage == 0
    assert fit_thresholds(logits, labels, 1.0, target_accuracy=0.9).coverage == 0.11


def test_images_of_equal_confidence_are_treated_alike() -> None:
    logits = np.zeros((100, 2), np.float32)
    logits[:40, 0], logits[40:, 0] = 3, 2
    labels = np.zeros(100, int)
    labels[:4] = 1  # 90 % of the confident answers are right, 96 % of all
    assert fit_thresholds(logits, labels, 1.0, target_accuracy=0.95).coverage == 1
    labels[40:50] = 1  # 83 % of the others
    thresholds = fit_thresholds(logits, labels, 1.0, target_accuracy=0.89)
    assert thresholds.coverage == 0.4
    assert thresholds.accuracy == pytest.approx(0.9)


def test_without_labels_the_target_is_the_threshold() -> None:
    logits, _ = predictions(0, 200, 4.0)
    thresholds = fit_thresholds(logits, None, 1.0, target_accuracy=0.95)
    assert (thresholds.confidence_below, thresholds.coverage, thresholds.accuracy) == (0.95, None, None)
    assert (energy(logits, 1.0) > thresholds.ood_above).mean() == pytest.approx(0.2)


def test_auroc_tells_how_well_ood_images_stand_out() -> None:
    in_distribution = np.array([-5.0, -4.0, -3.0])
    assert ood_auroc(in_distribution, np.array([-1.0, -2.0])) == 1
    assert ood_auroc(in_distribution, np.array([-9.0])) == 0
    assert ood_auroc(in_distribution, np.array([-4.0])) == 0.5


@pytest.mark.parametrize("size", [32, 48])
def test_ood_images_match_their_names(size: int) -> None:
    images_by_kind, again = ood_images(size), ood_images(size)
    assert images_by_kind.keys() == {
        "digits", "photographs", "noise", "gray_noise", "flat", "gradient", "text",
    }  # fmt: skip
    for kind, images in images_by_kind.items():
        assert (images.shape, images.dtype) == ((200, size, size, 3), np.uint8), kind
        assert len({image.tobytes() for image in images}) > 190, kind
        np.testing.assert_array_equal(images, again[kind])
    assert (images_by_kind["flat"] == images_by_kind["flat"][:, :1, :1]).all()
    assert (images_by_kind["gray_noise"] == images_by_kind["gray_noise"][..., :1]).all()
    steps = np.abs(np.diff(images_by_kind["gradient"].astype(int), axis=1)).max(axis=(1, 2, 3))
    assert steps.max() <= 256 / (size - 1) + 1
    assert (images_by_kind["text"].std(axis=(1, 2, 3)) > 10).all()
    digits = images_by_kind["digits"]
    assert (digits == digits[..., :1]).all()  # grey
    assert digits.max() > 200
    assert digits[:, : size // 8, : size // 16].mean() < 30  # on black
    assert 25 < images_by_kind["photographs"].std() < 100

"""The thresholds of a served model, and how they are found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_mlflow.evaluation.calibration import softmax
from serving.registry.abstention import auroc, energy, find_doubts, strange_images


def predictions(seed: int, count: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that they hit the more often the sharper they are."""
    rng = np.random.default_rng(seed)
    logits = (sharpness * rng.standard_normal((count, 4))).astype(np.float32)
    return logits, (logits + 2 * rng.standard_normal((count, 4))).argmax(axis=1)


def certain(logits: np.ndarray, below: float, above: float, temperature: float) -> np.ndarray:
    """Which images the served code, in float32, is certain of."""
    scaled = (logits / np.float32(temperature)).astype(np.float32)
    return (softmax(scaled).astype(np.float32).max(axis=1) >= below) & (
        energy(logits, temperature).astype(np.float32) <= above
    )


def test_energy_is_low_where_a_logit_is_high() -> None:
    logits = np.array([[0.0, 0.0], [10.0, 0.0]], np.float32)
    np.testing.assert_allclose(energy(logits, 1.0), [-np.log(2), -10.0000454], rtol=1e-6)
    np.testing.assert_allclose(energy(logits, 2.0), [-2 * np.log(2), -10.0134307], rtol=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(20, 400), st.floats(0.3, 8), st.floats(0.5, 3))
def test_what_is_said_of_the_certain_answers_is_so(
    seed: int, count: int, sharpness: float, temperature: float
) -> None:
    logits, labels = predictions(seed, count, sharpness)
    doubts = find_doubts(logits, labels, temperature, target=0.8)
    sure = certain(logits, doubts.confidence_below, doubts.energy_above, temperature)
    assert doubts.coverage == sure.mean()
    assert doubts.accuracy == pytest.approx((logits.argmax(axis=1) == labels)[sure].mean())
    assert (energy(logits, temperature) > doubts.energy_above).sum() <= 0.025 * count + 1


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.3, 8))
def test_no_other_threshold_lets_more_answers_reach_the_target(seed: int, sharpness: float) -> None:
    logits, labels = predictions(seed, 200, sharpness)
    doubts = find_doubts(logits, labels, 1.0, target=0.8)
    right = logits.argmax(axis=1) == labels
    assert doubts.coverage is not None
    assert doubts.accuracy is not None
    for below in np.unique(softmax(logits).max(axis=1)):
        sure = certain(logits, below - 1e-6, doubts.energy_above, 1.0)
        if sure.sum() >= 5:  # as many as it takes to tell 0.8 from 1
            if doubts.accuracy >= 0.8:
                assert right[sure].mean() < 0.8 or sure.mean() <= doubts.coverage
            else:
                assert right[sure].mean() <= doubts.accuracy + 1e-9


def test_a_network_that_is_good_enough_is_certain_of_all_that_it_knows() -> None:
    logits = 20 * np.eye(4, dtype=np.float32)[np.arange(100) % 4]
    doubts = find_doubts(logits, np.arange(100) % 4, 1.0, target=0.95)
    assert (doubts.confidence_below, doubts.coverage, doubts.accuracy) == (0.0, 1.0, 1.0)


def test_a_target_out_of_reach_takes_the_best_there_is() -> None:
    # The more confident, the worse: half of the confident answers are right, and all are three quarters.
    logits = np.zeros((200, 2), np.float32)
    logits[:100, 0], logits[100:, 0] = 4, 1
    labels = np.zeros(200, int)
    labels[:50] = 1
    doubts = find_doubts(logits, labels, 1.0, target=0.95)
    assert (doubts.confidence_below, doubts.coverage) == (0.0, pytest.approx(0.99, abs=0.02))
    assert doubts.accuracy == pytest.approx(0.75, abs=0.01)


def test_a_lucky_few_are_no_proof() -> None:
    # The 10 most confident of 100 answers are right: as good as chance, of answers right in 95 %.
    logits = np.zeros((100, 2), np.float32)
    logits[:, 0] = np.linspace(5, 1, 100)
    labels = np.arange(100) // 10 % 2
    doubts = find_doubts(logits, labels, 1.0, target=0.95)
    assert doubts.coverage is not None
    assert doubts.coverage >= 0.2


def test_equal_confidences_are_on_one_side() -> None:
    logits = np.zeros((100, 2), np.float32)
    logits[:40, 0], logits[40:, 0] = 3, 2
    labels = np.zeros(100, int)
    labels[:4] = 1  # 90 % of the confident answers are right, 96 % of all
    assert find_doubts(logits, labels, 1.0, target=0.95).coverage == 1
    labels[40:50] = 1  # 83 % of the others
    doubts = find_doubts(logits, labels, 1.0, target=0.89)
    assert doubts.coverage == 0.4
    assert doubts.accuracy == pytest.approx(0.9)


def test_training_images_say_nothing_of_confidence() -> None:
    logits, _ = predictions(0, 200, 4.0)
    doubts = find_doubts(logits, None, 1.0, target=0.95)
    assert (doubts.confidence_below, doubts.coverage, doubts.accuracy) == (0.95, None, None)
    assert (energy(logits, 1.0) > doubts.energy_above).mean() == pytest.approx(0.025)


def test_auroc_tells_how_well_strange_images_stand_out() -> None:
    known = np.array([-5.0, -4.0, -3.0])
    assert auroc(known, np.array([-1.0, -2.0])) == 1
    assert auroc(known, np.array([-9.0])) == 0
    assert auroc(known, np.array([-4.0])) == 0.5


@pytest.mark.parametrize("size", [32, 48])
def test_strange_images_are_what_they_are_called(size: int) -> None:
    strange = strange_images(size)
    assert strange.keys() == {"digits", "photographs", "noise", "flat"}
    for kind, images in strange.items():
        assert (images.shape, images.dtype) == ((200, size, size, 3), np.uint8), kind
        assert len({image.tobytes() for image in images}) > 190, kind
        np.testing.assert_array_equal(images, strange_images(size)[kind])
    assert (strange["flat"] == strange["flat"][:, :1, :1]).all()
    digits = strange["digits"]
    assert (digits == digits[..., :1]).all()  # grey
    assert digits.max() > 200
    assert digits[:, : size // 8, : size // 16].mean() < 30  # on black
    assert 25 < strange["photographs"].std() < 100

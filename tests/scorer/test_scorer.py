"""Scorer folders: only the registered files are loaded; scores and answers follow from the logits."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import logsumexp, softmax

from cifar_mlflow.scorer.engine import Engine
from cifar_mlflow.scorer.predictor import Scorer
from tests.scorer_folders import CLASS_MAP, SIZE, colour_network, write_scorer_folder

RED, GREEN, BLACK, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 0), (200, 200, 200)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scorer_folder(tmp_path / "scorer")


def plain(*colours: tuple[int, int, int]) -> np.ndarray:
    images = np.empty((len(colours), SIZE, SIZE, 3), np.uint8)
    images[:] = np.array(colours, np.uint8).reshape(-1, 1, 1, 3)
    return images


def scorer_with(folder: Path, **card: Any) -> Scorer:
    return Scorer.load(write_scorer_folder(folder, **card))


def test_a_changed_file_is_refused(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(
        ValueError, match=r"model\.onnx was changed: its sha256 is [0-9a-f]{64}, not [0-9a-f]{64}"
    ):
        Scorer.load(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(ValueError, match=r"lacks model\.onnx"):
        Scorer.load(folder)


def test_a_model_whose_digest_is_not_in_the_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has model\.onnx, unknown to its scorer\.json"):
        scorer_with(tmp_path / "scorer", files={})


def test_a_file_beside_the_registered_ones_is_refused(folder: Path) -> None:
    (folder / "model.onnx.data").write_bytes(b"weights from elsewhere")
    with pytest.raises(ValueError, match=r"has model\.onnx\.data, unknown to its scorer\.json"):
        Scorer.load(folder)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a scorer folder: it has no scorer\.json"):
        Scorer.load(tmp_path)


def test_a_path_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    scorer = scorer_with(tmp_path / os.fsdecode(b"K\xe4tzchen"))
    assert scorer.score(plain(RED)).probabilities.argmax() == 0


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has format 2; this code reads 1"):
        scorer_with(tmp_path / "scorer", format=2)


def test_probabilities_and_energy_follow_from_the_logits_and_the_temperature(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    images *= np.array([1, 2, 3], np.uint8)
    scorer = scorer_with(tmp_path / "scorer", temperature=2.5)
    scores = scorer.score(images)
    logits = images.mean(axis=(1, 2)) * 10 / 255
    np.testing.assert_allclose(scores.probabilities, softmax(logits / 2.5, axis=1), rtol=1e-4)
    np.testing.assert_allclose(scores.ood, -2.5 * logsumexp(logits / 2.5, axis=1), rtol=1e-4)
    assert scores.probabilities.dtype == scores.ood.dtype == np.float32


def test_a_further_output_of_the_network_is_added_to_the_energy(tmp_path: Path) -> None:
    scorer = scorer_with(tmp_path / "scorer", ood={"above": 0.0}, uncertain={"confidence_below": 0.0})
    plain_scores = scorer.score(plain(RED, BLACK))
    scorer.engine = Engine(colour_network(tmp_path / "model.onnx", distance=True))
    scores = scorer.score(plain(RED, BLACK))
    np.testing.assert_array_equal(scores.probabilities, plain_scores.probabilities)
    means = plain(RED, BLACK).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scores.ood, plain_scores.ood + means, rtol=1e-5)
    assert plain_scores.uncertain.tolist() == [False, False]
    assert scores.uncertain.tolist() == [True, False]


def test_the_map_of_the_likeliest_class_sums_to_its_logit(tmp_path: Path) -> None:
    scorer = scorer_with(tmp_path / "scorer", class_map=CLASS_MAP, temperature=0.5)
    images = plain(RED, GRAY)
    images[0, :8, :8] = (0, 0, 255)
    scores = scorer.score(images, explain=True)
    assert scores.class_maps.shape == (2, 4, 4)
    likeliest = scores.probabilities.argmax(1)
    expected = images.mean(axis=(1, 2))[[0, 1], likeliest] * 10 / 255
    np.testing.assert_allclose(scores.class_maps.sum((1, 2)), expected, rtol=1e-5)
    assert scores.class_maps[0, 0, 0] == 0  # the blue corner adds nothing to red
    assert scorer.score(images).class_maps.shape == (2, 0, 0)


def test_large_logits_do_not_overflow(tmp_path: Path) -> None:
    scores = scorer_with(tmp_path / "scorer", temperature=0.01).score(plain(RED))
    np.testing.assert_allclose(scores.probabilities, [[1, 0, 0]])
    np.testing.assert_allclose(scores.ood, [-10], rtol=1e-5)


def test_an_answer_below_the_confidence_threshold_is_uncertain(tmp_path: Path) -> None:
    scorer = scorer_with(tmp_path / "scorer", ood={"above": 1e9}, uncertain={"confidence_below": 0.5})
    assert scorer.score(plain(RED, GRAY)).uncertain.tolist() == [False, True]


def test_an_image_unlike_the_training_images_is_uncertain_whatever_the_confidence(tmp_path: Path) -> None:
    scorer = scorer_with(tmp_path / "scorer", ood={"above": -2.0}, uncertain={"confidence_below": 0.0})
    assert scorer.score(plain(RED, BLACK)).uncertain.tolist() == [False, True]


def test_an_answer_ranks_the_best_classes_and_is_json(folder: Path) -> None:
    scorer = Scorer.load(folder)
    answers = scorer.answers(scorer.score(plain((0, 100, 200), GREEN, GRAY)), top_k=2)
    first, second = softmax([0, 1000 / 255, 2000 / 255])[[2, 1]]
    assert answers[0] == {
        "label": "blue",
        "class_index": 2,
        "confidence": pytest.approx(first, abs=1e-5),
        "top_k": [
            {"label": "blue", "confidence": pytest.approx(first, abs=1e-5)},
            {"label": "green", "confidence": pytest.approx(second, abs=1e-5)},
        ],
        "uncertain": False,
    }
    assert [answer["label"] for answer in answers] == ["blue", "green", "red"]
    assert [answer["uncertain"] for answer in answers] == [False, False, True]
    assert all(answer["confidence"] == round(answer["confidence"], 6) for answer in answers)
    assert json.loads(json.dumps(answers)) == answers


def test_of_equally_likely_classes_the_first_is_the_answer(folder: Path) -> None:
    scorer = Scorer.load(folder)
    (answer,) = scorer.answers(scorer.score(plain(GRAY)), top_k=3)
    assert [best["label"] for best in answer["top_k"]] == scorer.classes


def test_no_images_give_no_answers(folder: Path) -> None:
    scorer = Scorer.load(folder)
    assert scorer.answers(scorer.score(plain()), top_k=1) == []


@pytest.mark.parametrize(("fit", "label"), [("crop", "green"), ("squash", "red")])
def test_an_image_is_cropped_or_squashed_as_the_card_says(tmp_path: Path, fit: str, label: str) -> None:
    picture = Image.new("RGB", (120, 40), RED)
    picture.paste(GREEN, (40, 0, 80, 40))
    png = io.BytesIO()
    picture.save(png, "png")
    scorer = scorer_with(tmp_path / "scorer", fit=fit)
    image = scorer.decode(png.getvalue())
    assert image.shape == (SIZE, SIZE, 3)
    assert scorer.answers(scorer.score(image[None]), top_k=1)[0]["label"] == label

"""The choice between fp32 and int8, and the checks of an exported network."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifar_mlflow.data import Split
from cifar_mlflow.errors import CifarError
from cifar_mlflow.evaluation.paired_test import PairedTest
from cifar_mlflow.export.images import EvalSet
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.verb_config import Precision
from serving.registry.candidates import Candidate, Decision, build_candidates, choose

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CARD = ModelCard(model="cnn", classes=("a", "b", "c"), image_size=32, mean=MEAN, std=STD, width=0.25)


def random_images(count: int) -> Split:
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 3, count))


def candidate(precision: Literal["fp32", "int8"], correct: np.ndarray, milliseconds: float) -> Candidate:
    return Candidate(
        precision=precision,
        model=Path("model.onnx"),
        logits=np.zeros((len(correct), 3), np.float32),
        distance=np.zeros(len(correct), np.float32),
        correct=correct,
        agreement=1.0,
        milliseconds={1: milliseconds / 8, 16: milliseconds},
        class_map=None,
    )


def chosen(
    precision: Precision, images: int, only_fp32: int, only_int8: int = 0, int8_ms: float = 3.5
) -> tuple[str, str]:
    """Return the chosen precision and the reason, given the numbers of images that only one gets right.

    fp32 takes 8 ms for 16 images.
    """
    fp32, int8 = np.ones(images, bool), np.ones(images, bool)
    int8[:only_fp32] = False
    fp32[only_fp32 : only_fp32 + only_int8] = False
    candidates = [candidate("fp32", fp32, 8.0), candidate("int8", int8, int8_ms)]
    choice, reason = choose(candidates, precision)
    return choice.precision, str(reason)


@pytest.mark.parametrize(
    ("images", "only_fp32", "only_int8"),
    [
        (5000, 0, 0),
        (5000, 3, 40),
        (5000, 15, 0),  # exactly 0.3 points: p is tiny, but the loss is allowed
        (5000, 80, 60),  # 0.4 points, but with so much disagreement it may be chance (p = 0.054)
        (250, 1, 0),  # 0.4 points: one image proves nothing
        (250, 2, 0),
        (250, 7, 5),
        (250, 12, 8),
        (108, 1, 0),
    ],
)
def test_auto_takes_int8_if_the_loss_is_small_or_may_be_chance(
    images: int, only_fp32: int, only_int8: int
) -> None:
    precision, reason = chosen("auto", images, only_fp32, only_int8)
    assert precision == "int8"
    assert f"on {images:,} images" in reason
    assert "3.5 ms for 16 images as int8, 8.0 ms as fp32" in reason


@pytest.mark.parametrize(
    ("images", "only_fp32", "only_int8"),
    [(5000, 16, 0), (5000, 60, 40), (50_000, 200, 30), (250, 5, 0), (1000, 9, 1)],
)
def test_auto_rejects_int8_if_the_loss_is_significant(images: int, only_fp32: int, only_int8: int) -> None:
    precision, reason = chosen("auto", images, only_fp32, only_int8)
    assert precision == "fp32"
    assert reason.startswith("fp32: int8 loses more than 0.3 points (accuracy ")
    assert f"only fp32 right: {only_fp32}, only int8 right: {only_int8}, p = " in reason


@pytest.mark.parametrize(
    ("images", "only_fp32", "only_int8"), [(20, 1, 0), (20, 4, 0), (108, 3, 0), (250, 14, 8)]
)
def test_auto_rejects_int8_if_the_images_are_too_few_to_excuse_a_large_loss(
    images: int, only_fp32: int, only_int8: int
) -> None:
    precision, reason = chosen("auto", images, only_fp32, only_int8)
    assert precision == "fp32"
    assert "int8 loses more than 2 points, and there are too few images to tell that from chance" in reason


def test_auto_rejects_int8_if_it_is_slower() -> None:
    precision, reason = chosen("auto", 250, 0, int8_ms=8.5)
    assert precision == "fp32"
    assert reason.startswith(
        "fp32: int8 is slower (8.5 ms for 16 images as int8, 8.0 ms as fp32; accuracy 1.0000 as int8"
    )


def test_int8_on_request_may_be_slower_but_not_less_accurate() -> None:
    assert chosen("int8", 250, 1, int8_ms=9.0)[0] == "int8"
    with pytest.raises(CifarError, match=r"0\.3 points: accuracy 0\.9000 as int8, 1\.0000 as fp32"):
        chosen("int8", 250, 25)


def test_the_figures_of_a_comparison_are_those_of_the_literature() -> None:
    # McNemar's exact test: P(X >= 9) for X ~ Binomial(10, 1/2) is 11 / 1024.
    comparison = PairedTest(images=1000, only_fp32=9, only_int8=1)
    assert comparison.loss == 0.008
    assert comparison.p_value == pytest.approx(11 / 1024)
    # Agresti and Min: (9.5 - 1.5) / 1002 +- 1.96 * sqrt(9.5 + 1.5 - 8**2 / 1002) / 1002.
    assert comparison.interval == pytest.approx((0.001515, 0.014453), abs=1e-6)
    assert PairedTest(images=250, only_fp32=0, only_int8=0).p_value == 1


def test_without_a_difference_the_comparison_has_no_statistics() -> None:
    comparison = PairedTest(images=28, only_fp32=0, only_int8=0)
    assert str(comparison) == "no difference on 28 images: both are right on the same ones"


class ExportsDifferently(nn.Module):
    """A network whose export computes something else, as a defective exporter would make it."""

    def __init__(self, network: nn.Module, defective: bool) -> None:
        super().__init__()
        self.network = network
        self.features = network.features
        self.defective = defective

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return -logits if self.defective and torch.compiler.is_exporting() else logits


def built(
    tmp_path: Path, precision: Precision, split: Literal["val", "train"] = "val", defective: bool = False
) -> list[Candidate]:
    torch.manual_seed(0)
    network = ExportsDifferently(build_network("cnn", 3, width=0.25), defective)
    classifier = ImageClassifier(network, MEAN, STD)
    eval_set = EvalSet(split, random_images(30))
    return build_candidates(classifier, CARD, random_images(20).images, eval_set, precision, tmp_path)


@pytest.mark.slow
def test_an_export_with_different_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CifarError, match=r"different labels for .*% of 30 validation images"):
        built(tmp_path, "fp32", defective=True)


@pytest.mark.slow
def test_both_candidates_are_evaluated_on_the_same_images(tmp_path: Path) -> None:
    fp32, int8 = built(tmp_path, "auto")
    assert (fp32.precision, int8.precision) == ("fp32", "int8")
    assert fp32.agreement == 1
    assert int8.model.stat().st_size < fp32.model.stat().st_size
    for each in (fp32, int8):
        assert each.logits.shape == (30, 3)
        truth = random_images(30).labels
        assert each.accuracy == pytest.approx((each.logits.argmax(axis=1) == truth).mean())
        assert each.milliseconds.keys() == {1, 16}
        assert f"serve/{each.precision}/val_accuracy" in each.metrics("val")


@pytest.mark.slow
def test_fp32_alone_is_built_if_it_was_requested(tmp_path: Path) -> None:
    (fp32,) = built(tmp_path, "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]
    assert choose([fp32], "fp32") == (fp32, Decision("fp32, as requested"))


@pytest.mark.slow
def test_auto_does_not_compare_candidates_on_training_images(tmp_path: Path) -> None:
    (fp32,) = built(tmp_path, "auto", split="train")
    assert choose([fp32], "auto") == (
        fp32,
        Decision("fp32: no images were held out to compare int8 with it"),
    )


@pytest.mark.slow
def test_int8_on_request_is_built_without_validation_images(tmp_path: Path) -> None:
    assert [each.precision for each in built(tmp_path, "int8", split="train")] == ["fp32", "int8"]

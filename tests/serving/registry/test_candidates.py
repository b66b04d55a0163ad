"""fp32 or int8: which form of a network is served, and why."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifar_mlflow.config import Precision
from cifar_mlflow.data import Split
from cifar_mlflow.errors import CifarError
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.networks import build_network
from serving.registry.candidates import Candidate, EvalSet, choose, make_forms

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CARD = ModelCard(model="cnn", classes=("a", "b", "c"), image_size=32, mean=MEAN, std=STD, width=0.25)


def some_images(count: int) -> Split:
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 3, count))


def form(precision: Literal["fp32", "int8"], accuracy: float, milliseconds: float) -> Candidate:
    return Candidate(
        precision=precision,
        model=Path("model.onnx"),
        logits=np.zeros((1, 3), np.float32),
        accuracy=accuracy,
        agreement=1.0,
        milliseconds={1: milliseconds / 8, 16: milliseconds},
    )


def choice(precision: Precision, int8_accuracy: float, int8_ms: float = 2.0) -> tuple[str, str]:
    """The form that is chosen beside an fp32 of 90 % that takes 8 ms, and why."""
    chosen, why = choose([form("fp32", 0.9, 8.0), form("int8", int8_accuracy, int8_ms)], precision)
    return chosen.precision, why


@pytest.mark.parametrize("accuracy", [0.897, 0.9, 0.91])
def test_auto_takes_int8_that_loses_at_most_0_3_points(accuracy: float) -> None:
    precision, why = choice("auto", accuracy)
    assert precision == "int8"
    assert f"accuracy {accuracy:.4f} as int8, 0.9000 as fp32" in why


def test_auto_leaves_int8_that_loses_more_and_gives_both_figures() -> None:
    precision, why = choice("auto", 0.8968)
    assert precision == "fp32"
    assert "int8 loses more than 0.3 points (accuracy 0.8968 as int8, 0.9000 as fp32)" in why


def test_auto_leaves_int8_that_is_slower() -> None:
    precision, why = choice("auto", 0.9, int8_ms=8.5)
    assert precision == "fp32"
    assert "int8 is slower (8.5 ms for 16 images as int8, 8.0 ms as fp32)" in why


def test_int8_is_taken_when_asked_for_even_if_slower() -> None:
    assert choice("int8", 0.897, int8_ms=9.0)[0] == "int8"


def test_int8_that_loses_too_much_is_refused_with_the_figures() -> None:
    with pytest.raises(CifarError, match=r"0\.3 points: accuracy 0\.8900 as int8, 0\.9000 as fp32"):
        choice("int8", 0.89)


class Judged(nn.Module):
    """Another network when it is exported than when it was trained: what a defect of an exporter makes."""

    def __init__(self, network: nn.Module, wrong: bool) -> None:
        super().__init__()
        self.network = network
        self.wrong = wrong

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return -logits if self.wrong and torch.compiler.is_exporting() else logits


def classifier(wrong: bool = False) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(Judged(build_network("cnn", 3, width=0.25), wrong), MEAN, STD)


def made(
    tmp_path: Path, precision: Precision, split: Literal["val", "train"] = "val", **options: Any
) -> list[Candidate]:
    training, judge = some_images(20).images, EvalSet(split, some_images(30))
    return make_forms(classifier(**options), CARD, training, judge, precision, tmp_path)


def test_an_export_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CifarError, match=r"another label than the trained one for .*% of 30 validation"):
        made(tmp_path, "fp32", wrong=True)


def test_both_forms_are_judged_by_the_same_images(tmp_path: Path) -> None:
    fp32, int8 = made(tmp_path, "auto")
    assert (fp32.precision, int8.precision) == ("fp32", "int8")
    assert fp32.agreement == 1
    assert int8.model.stat().st_size < fp32.model.stat().st_size
    for each in (fp32, int8):
        assert each.logits.shape == (30, 3)
        truth = some_images(30).labels
        assert each.accuracy == pytest.approx((each.logits.argmax(axis=1) == truth).mean())
        assert each.milliseconds.keys() == {1, 16}
        assert f"serve/{each.precision}/val_accuracy" in each.metrics("val")


def test_int8_is_not_made_for_nothing(tmp_path: Path) -> None:
    (fp32,) = made(tmp_path, "fp32")
    assert fp32.precision == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]
    assert choose([fp32], "fp32") == (fp32, "fp32, as asked for")


def test_auto_does_not_judge_int8_by_images_of_the_training(tmp_path: Path) -> None:
    (fp32,) = made(tmp_path, "auto", split="train")
    assert choose([fp32], "auto") == (
        fp32,
        "fp32: no images were held out by which int8 could be judged",
    )
    assert [form.precision for form in made(tmp_path, "int8", split="train")] == ["fp32", "int8"]

"""Report on a model and a split: metrics, tables and figures, before and after calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cifar_mlflow.config import SplitName, TtaName
from cifar_mlflow.data import Split
from cifar_mlflow.evaluation import figures
from cifar_mlflow.evaluation.calibration import Calibration, Labels, calibrate, reliability_table, softmax
from cifar_mlflow.evaluation.class_map import class_maps_of, ending
from cifar_mlflow.evaluation.metrics import Evaluation, evaluate_logits
from cifar_mlflow.evaluation.overlay import draw_overlay
from cifar_mlflow.evaluation.predict import ComputePrecision, Model, ignore, predict_logits
from cifar_mlflow.models.classifier import ImageClassifier


class ReportSink(Protocol):
    """Receives figures and tables: an MLflow run."""

    def log_figure(self, figure: Figure, path: str) -> None: ...
    def log_json(self, values: Any, path: str) -> None: ...
    def log_csv(self, table: pd.DataFrame, path: str, *, index: bool = False) -> None: ...


@dataclass(frozen=True, eq=False)
class Report:
    """The evaluation of a model on a split.

    Attributes:
        split: the split, for titles and metric names.
        logits: float32 (N, classes), without test-time augmentation.
        temperature: divides the logits for calibrated probabilities.
        scaled: float64 (N, classes), the divided logits. Where the temperature was fitted on this split, each
            image is divided by one that was fitted on other images.
        plain: the evaluation of the unscaled logits.
        calibrated: the evaluation of the scaled logits.
        augmented: the evaluation with test-time augmentation, if requested.
        overlays: the most confident mistakes, uint8 (H, W, 3) each, with the map of the predicted class over
            them; empty if the model gives no maps.
    """

    split: SplitName
    classes: tuple[str, ...]
    logits: NDArray[np.float32]
    temperature: float
    scaled: NDArray[np.float64]
    plain: Evaluation
    calibrated: Evaluation
    augmented: Evaluation | None
    overlays: Sequence[NDArray[np.uint8]] = ()

    @property
    def calibration(self) -> str:
        """Describe a calibration on this split."""
        images = f"{len(self.logits):,} images of the {SPLIT_NAMES[self.split]}"
        if self.temperature == 1:
            return f"none, because on {images} no temperature made the confidences better"
        return f"temperature {self.temperature:.3g}, fitted on {images}"

    def scalars(self) -> dict[str, float]:
        """Return the metrics of the run; `ece` alone is that of the scaled logits."""
        scalars = self.plain.scalars(self.split)
        scalars |= {
            f"{self.split}/ece": self.calibrated.ece,
            f"{self.split}/ece_uncalibrated": self.plain.ece,
        }
        if self.augmented:
            scalars |= {
                f"{self.split}/accuracy_tta": self.augmented.accuracy,
                f"{self.split}/f1_macro_tta": self.augmented.f1_macro,
            }
        return scalars


def report_on(
    model: Model,
    data: Split,
    classes: tuple[str, ...],
    split: SplitName,
    *,
    temperature: float | None = None,
    tta: TtaName = "none",
    tta_precision: ComputePrecision = "fp32",
    device: torch.device,
    advance: Callable[[int], None] = ignore,
) -> Report:
    """Evaluate a model on a split, in fp32 as it is saved and served.

    Args:
        temperature: None calibrates on this split; do so only for the validation split.
        tta: evaluate a second time with this test-time augmentation.
        tta_precision: precision of that evaluation; a training passes its own, since six views take long.
        advance: called with the number of images of each batch; with `tta`, each image comes twice.
    """
    augmented = None
    if tta != "none":
        augmented_logits = predict_logits(
            model, data.images, device=device, precision=tta_precision, tta=tta, advance=advance
        )
        augmented = evaluate_logits(augmented_logits, data.labels, classes)
    logits = predict_logits(model, data.images, device=device, advance=advance)
    report = report_of(logits, data.labels, classes, split, temperature, augmented)
    return replace(report, overlays=_mistakes_explained(model, report, data))


def _mistakes_explained(model: Model, report: Report, data: Split) -> Sequence[NDArray[np.uint8]]:
    """Return the overlays of the report; none for an exported program, which hides its layers."""
    last = ending(model.network) if isinstance(model, ImageClassifier) else None
    shown = figures.confident_mistakes(data.labels, softmax(report.scaled))
    if not isinstance(model, ImageClassifier) or last is None or not len(shown):
        return ()
    images = np.stack([data.images[index] for index in shown])
    maps = class_maps_of(model, images, report.scaled[shown].argmax(axis=1))
    return [draw_overlay(image, each, last.stride) for image, each in zip(images, maps, strict=True)]


def report_of(
    logits: NDArray[np.float32],
    labels: Labels,
    classes: tuple[str, ...],
    split: SplitName,
    temperature: float | None = None,
    augmented: Evaluation | None = None,
) -> Report:
    """Return the report for logits that were already predicted; arguments as for `report_on`."""
    if temperature is None:
        calibration = calibrate(logits, labels)
    else:
        calibration = Calibration(temperature, logits.astype(np.float64) / temperature)
    return Report(
        split=split,
        classes=classes,
        logits=logits,
        temperature=calibration.temperature,
        scaled=calibration.scaled,
        plain=evaluate_logits(logits, labels, classes),
        calibrated=evaluate_logits(calibration.scaled, labels, classes),
        augmented=augmented,
    )


def log_report(sink: ReportSink, report: Report, data: Split) -> None:
    """Log tables and figures of a report in a folder named after the split."""
    log_tables(sink, report)
    log_pictures(sink, report, data)


def log_tables(sink: ReportSink, report: Report) -> None:
    """Log metrics.json, per_class.csv and confusion_matrix.csv."""
    split, plain = report.split, report.plain
    sink.log_json({**plain.to_dict(split), **report.scalars()}, f"{split}/metrics.json")
    sink.log_csv(plain.per_class, f"{split}/per_class.csv")
    sink.log_csv(
        confusion_table(plain.confusion, report.classes), f"{split}/confusion_matrix.csv", index=True
    )


def log_predictions(sink: ReportSink, report: Report, labels: Labels, ids: pd.Series) -> None:
    """Log predictions.csv, one row per image: path or index, label, answer and confidence.

    Args:
        ids: see `image_ids`.
    """
    probabilities = softmax(report.scaled)
    table = pd.DataFrame(
        {
            str(ids.name): ids,
            "label": [report.classes[index] for index in labels],
            "answer": [report.classes[index] for index in probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1).round(4),
        }
    )
    sink.log_csv(table, f"{report.split}/predictions.csv")


def log_pictures(sink: ReportSink, report: Report, data: Split) -> None:
    """Log the four figures of a report."""
    split, classes, plain = report.split, report.classes, report.plain
    images, labels = data.images, data.labels
    before = softmax(report.logits)
    after = softmax(report.scaled)
    title = f"{len(labels):,} images of the {SPLIT_NAMES[split]}"
    for name, figure in {
        "confusion_matrix": figures.confusion_matrix(plain.confusion, classes, f"Confusion matrix: {title}"),
        "f1_by_class": figures.f1_by_class(plain.per_class, f"F1 by class: {title}"),
        "reliability": figures.reliability_diagram(
            reliability_table(before, labels),
            reliability_table(after, labels),
            f"Calibration: {title}",
            report.temperature,
        ),
        "confident_mistakes": figures.most_confident_mistakes(
            images, labels, after, classes, f"Most confident mistakes: {title}", overlays=report.overlays
        ),
    }.items():
        sink.log_figure(figure, f"{split}/{name}.png")


SPLIT_NAMES: dict[SplitName, str] = {
    "train": "training split",
    "val": "validation split",
    "test": "test split",
}


def confusion_table(confusion: NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    """Return the counts with the true class as row and the predicted class as column."""
    return pd.DataFrame(confusion, index=pd.Index(classes, name="true"), columns=list(classes))

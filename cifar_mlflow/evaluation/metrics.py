"""Compute all metrics that a run reports about one split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from cifar_mlflow.evaluation.calibration import (
    Floats,
    Labels,
    expected_calibration_error,
    negative_log_likelihood,
    softmax,
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of a model on one split; all shares are in 0..1.

    Attributes:
        loss: negative log likelihood, in nats.
        ece: expected calibration error, 15 bins.
        per_class: one row per class: `class`, `precision`, `recall`, `f1`, `support` (number of images). A
            share of 0/0 is 0, as is the F1 of a class without images.
        confusion: int64 (classes, classes), rows are the true class and columns the predicted one.
    """

    loss: float
    accuracy: float
    f1_macro: float
    f1_weighted: float
    ece: float
    per_class: pd.DataFrame
    confusion: NDArray[np.int64]

    def scalars(self, prefix: str) -> dict[str, float]:
        """Return the metrics by name, `<prefix>/accuracy` etc.; the prefix is the name of the split.

        MLflow's table of models shows them in this order and cuts off the last ones.
        """
        names = ("accuracy", "loss", "f1_macro", "f1_weighted", "ece")
        return {f"{prefix}/{name}": getattr(self, name) for name in names}

    def to_dict(self, prefix: str) -> dict[str, Any]:
        """Return scalars, `per_class` (a dict per class) and `confusion` (nested lists) for `json.dumps`."""
        return {
            **self.scalars(prefix),
            "per_class": self.per_class.to_dict("records"),
            "confusion": self.confusion.tolist(),
        }


def evaluate_logits(
    logits: Floats, labels: Labels, classes: Sequence[str], temperature: float = 1.0
) -> Evaluation:
    """Evaluate predictions against the labels.

    Args:
        logits: (N, classes), N > 0.
        labels: (N,), indices into `classes`; classes may be missing.
        temperature: divides the logits; changes loss and calibration, not the predicted class.

    Raises:
        ValueError: the shapes do not match, or there are no predictions.
    """
    if not len(labels) or logits.shape != (len(labels), len(classes)):
        raise ValueError(f"logits {logits.shape} do not fit {len(labels)} labels of {len(classes)} classes")
    predicted = logits.argmax(axis=1)
    indices = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=indices, zero_division=0
    )
    return Evaluation(
        loss=negative_log_likelihood(logits, labels, temperature),
        accuracy=float((predicted == labels).mean()),
        f1_macro=float(f1.mean()),
        f1_weighted=float(np.average(f1, weights=support)),
        ece=expected_calibration_error(softmax(logits, temperature), labels),
        per_class=pd.DataFrame(
            {
                "class": list(classes),
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "support": support,
            }
        ),
        confusion=confusion_matrix(labels, predicted, labels=indices),
    )

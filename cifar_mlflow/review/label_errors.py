"""Find labels that are probably wrong: confident learning (Northcutt et al. 2021, arXiv 1911.00068)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cifar_mlflow.review.out_of_fold import Predictions


@dataclass(frozen=True)
class LabelError:
    """An image whose label is probably wrong.

    Attributes:
        index: position of the image.
        suggestion: class index, the likeliest class.
        confidence: probability of the suggestion, 0..1.
        label_confidence: probability of the label, 0..1.
    """

    index: int
    suggestion: int
    confidence: float
    label_confidence: float


def find_label_errors(labels: NDArray[np.int64], predictions: Predictions) -> list[LabelError]:
    """Return the labels that are probably wrong, the most certain errors first.

    Confident learning estimates how many labels are wrong; those with the lowest probabilities are returned.

    Args:
        labels: int64 (N,), class indices of all images; those that were not judged cannot be errors.
    """
    from cleanlab.filter import find_label_issues

    judged, probabilities = predictions.judged, predictions.probabilities
    labels = labels[judged]
    found = find_label_issues(
        labels,
        probabilities,
        filter_by="low_self_confidence",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    likeliest = probabilities.argmax(1)
    return [
        LabelError(
            int(judged[index]),
            int(likeliest[index]),
            float(probabilities[index].max()),
            float(probabilities[index, labels[index]]),
        )
        for index in found.tolist()
        if likeliest[index] != labels[index]
    ]

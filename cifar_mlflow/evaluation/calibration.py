"""Measure calibration by bins of confidence, and improve it by one temperature.

Both methods are from Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), except
for the criterion of the temperature. Guo et al. minimize the negative log likelihood, in which a few
confident mistakes can outweigh all other predictions: it made a briefly trained, underconfident network even
less confident. Users see the confidence, so here the temperature makes its mean equal to the accuracy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

# Wider than any trained network needs.
TEMPERATURES = (0.05, 20.0)
FOLDS = 5


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return probabilities, float64 (N, classes), of logits (N, classes) divided by `temperature`."""
    return np.exp(log_softmax(logits.astype(np.float64) / temperature, axis=1))


def negative_log_likelihood(logits: Floats, labels: Labels, temperature: float = 1.0) -> float:
    """Return the mean over the images of -log(probability of the true class)."""
    log_probabilities = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def reliability_table(probabilities: Floats, labels: Labels, bins: int = 15) -> pd.DataFrame:
    """Return accuracy and confidence of predictions with similar confidence.

    Args:
        probabilities: (N, classes), rows that sum to 1.
        labels: (N,), class indices.
        bins: number of intervals (lower, upper] of equal width that divide 0..1.

    Returns:
        One row per bin: `lower`, `upper`, `count`, `confidence` (mean highest probability) and `accuracy`;
        the last two are NaN in a bin without predictions.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bin_of, weights=confidence, minlength=bins) / count
        accuracy = np.bincount(bin_of, weights=correct, minlength=bins) / count
    return pd.DataFrame(
        {
            "lower": edges[:-1],
            "upper": edges[1:],
            "count": count,
            "confidence": mean_confidence,
            "accuracy": accuracy,
        }
    )


def calibration_error_of(table: pd.DataFrame) -> float:
    """Return the expected calibration error: |accuracy - confidence| per bin, averaged over predictions."""
    filled = table[table["count"] > 0]
    gap = (filled["accuracy"] - filled["confidence"]).abs()
    return float((gap * filled["count"]).sum() / filled["count"].sum())


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Return the expected calibration error, 0 (perfect) to 1; arguments as for `reliability_table`."""
    return calibration_error_of(reliability_table(probabilities, labels))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Return the temperature, within 0.05 to 20, at which the mean confidence equals the accuracy.

    The method is that of Clarté et al. 2023, "Expectation consistency for calibration of neural networks"
    (arXiv 2303.02644). If every prediction is right, half a mistake is assumed: some images without a mistake
    do not show that there are none among others, and a temperature near 0 would make all answers certain.

    Args:
        logits: (N, classes), N > 0.
        labels: (N,), class indices.

    Raises:
        ValueError: there are no predictions.
    """
    if not len(labels):
        raise ValueError("a temperature cannot be fitted without predictions")
    right = float((logits.argmax(axis=1) == labels).sum())
    accuracy = min(right, len(labels) - 0.5) / len(labels)

    def excess(log_temperature: float) -> float:
        confidence = softmax(logits, float(np.exp(log_temperature))).max(axis=1)
        return float(confidence.mean() - accuracy)

    # The confidence in each image falls as the temperature rises.
    coldest, hottest = np.log(TEMPERATURES)
    if excess(coldest) <= 0:
        return TEMPERATURES[0]
    if excess(hottest) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(brentq(excess, coldest, hottest, xtol=1e-5)))


@dataclass(frozen=True, eq=False)
class Calibration:
    """A temperature, and logits that show its effect on images that it was not fitted on.

    Attributes:
        temperature: divides the logits for calibrated probabilities; 1 if none improves them.
        scaled: float64 (N, classes), the logits of the images of the fit, each divided by a temperature that
            was fitted without this image.
    """

    temperature: float
    scaled: NDArray[np.float64]


def calibrate(logits: Floats, labels: Labels) -> Calibration:
    """Fit a temperature to held-out images, unless cross-validation shows no improvement.

    Each fifth of the images is scaled by the temperature fitted on the other four. If that does not lower the
    expected calibration error, the temperature is 1.

    Args:
        logits: (N, classes), N > 0, of images that the network was not trained on.
        labels: (N,), class indices.
    """
    fold = np.arange(len(labels)) % FOLDS
    temperatures = np.ones((len(labels), 1))
    for number in range(FOLDS):
        others = fold != number
        if others.any():
            temperatures[~others] = fit_temperature(logits[others], labels[others])
    plain = logits.astype(np.float64)
    scaled = plain / temperatures
    before, after = (expected_calibration_error(softmax(values), labels) for values in (plain, scaled))
    if after >= before:
        return Calibration(1.0, plain)
    return Calibration(fit_temperature(logits, labels), scaled)

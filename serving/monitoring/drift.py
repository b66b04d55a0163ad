"""Drift: how far the images being classified are from those that the model was evaluated on."""

import math
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.monitoring.records import Record

FEATURES = ("label", "confidence", "brightness", "contrast")
DECILES = np.arange(1, 10) / 10
SMALL, LARGE = 0.1, 0.25
WINDOW = 1000
MINIMUM = 200

Reference = dict[str, Any]


def image_statistics(image: NDArray[np.uint8]) -> tuple[float, float]:
    """Return brightness and contrast, 0..1: mean and standard deviation of all values of an image.

    Args:
        image: uint8 (S, S, 3).
    """
    # Takes a fifth of the time of mean() and std(); sums of integers are exact in float64.
    values = image.ravel().astype(np.float64)
    mean = float(values.sum()) / values.size
    variance = max(0.0, float(values @ values) / values.size - mean * mean)
    return mean / 255, variance**0.5 / 255


def reference_of(
    images: NDArray[np.uint8], probabilities: NDArray[np.floating[Any]], classes: Sequence[str], split: str
) -> Reference:
    """Return the reference for drift that a model's `scorer.json` contains.

    Args:
        images: uint8 (N, S, S, 3), N > 0; those that the model is evaluated on.
        probabilities: (N, classes), as served.
        split: name of the split that the images are from.

    Returns:
        `label`: the share of each predicted class. `confidence`, `brightness` and `contrast`: `edges`, up to
        nine deciles, and the `shares` of the images below, between and above them. `images`: N. `split`.
    """
    predicted = np.bincount(probabilities.argmax(axis=1), minlength=len(classes)) / len(images)
    brightness, contrast = np.array([image_statistics(image) for image in images]).T
    return {
        "label": dict(zip(classes, predicted.tolist(), strict=True)),
        "confidence": _deciles(probabilities.max(axis=1).astype(np.float64)),
        "brightness": _deciles(brightness),
        "contrast": _deciles(contrast),
        "images": len(images),
        "split": split,
    }


def _deciles(values: NDArray[np.float64]) -> dict[str, list[float]]:
    # Rounded down to thousandths, at most 0.999: another CPU may round a confidence of almost 1 differently,
    # which is not drift, but would move many images over an edge that is closer to 1.
    edges = np.unique(np.floor(np.minimum(np.quantile(values, DECILES), 0.9999) * 1000) / 1000)
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}


def shares_of(reference: Reference, feature: str) -> NDArray[np.float64]:
    """Return the share of each bin in the reference."""
    shares = list(reference["label"].values()) if feature == "label" else reference[feature]["shares"]
    return np.array(shares, dtype=np.float64)


def count(reference: Reference, feature: str, values: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """Count the values in each bin of the reference; classes that it lacks are not counted."""
    if feature == "label":
        names = np.asarray(values, dtype=object)
        return np.array([(names == name).sum() for name in reference["label"]], dtype=np.int64)
    edges = reference[feature]["edges"]
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def psi(reference: Reference, feature: str, counts: NDArray[np.integer[Any]]) -> float:
    """Return the population stability index; above 0.1 is a change, above 0.25 a large one.

    It is 0 for equal distributions. The index is the sum over the bins of (a - e) * ln(a / e), where a and e
    are the shares of the served images and of the reference. The index and both thresholds follow Siddiqi
    2006, "Credit Risk Scorecards". Half an image is added to each bin of both, because an empty bin would
    make the index infinite.

    Args:
        counts: as `count` returns them.
    """
    expected = shares_of(reference, feature) * reference["images"] + 0.5
    actual = counts + 0.5
    e, a = expected / expected.sum(), actual / actual.sum()
    return float(((a - e) * np.log(a / e)).sum())


def chance(reference: Reference, feature: str, images: int) -> float:
    """Return the 95th percentile of the index of this many images from the distribution of the reference.

    Such an index is (1 / images + 1 / images of the reference) times a chi-squared variable, whose degrees of
    freedom are the bins less one (Yurdakul and Naranjo 2020, "Statistical properties of the population
    stability index"). Its percentile is approximated (Wilson and Hilferty 1931): a server imports no scipy.
    """
    degrees = max(len(shares_of(reference, feature)) - 1, 1)
    spread = 2 / (9 * degrees)
    percentile = degrees * (1 - spread + 1.645 * math.sqrt(spread)) ** 3
    return percentile * (1 / images + 1 / reference["images"])


class DriftWindow:
    """The most recent images of one model, compared with its reference; threads may share it.

    Args:
        reference: as `reference_of` returns it, of the model whose answers are observed.
        size: number of images in the window.
        minimum: with fewer images no index is computed. With 200 images, a reference of 5,000 and ten bins,
            an index of 0.09 is reached by chance in 1 of 20 cases.
    """

    def __init__(self, reference: Reference, size: int = WINDOW, minimum: int = MINIMUM) -> None:
        self._reference = reference
        self._size, self._minimum = size, minimum
        self._class_index = {name: index for index, name in enumerate(reference["label"])}
        self._edges = [reference[feature]["edges"] for feature in FEATURES[1:]]
        self._counts = [[0] * len(shares_of(reference, feature)) for feature in FEATURES]
        self._images: deque[tuple[int, ...]] = deque()
        self._lock = threading.Lock()

    def observe(self, record: Record) -> None:
        """Add an image; a full window drops its oldest one. Records without an answer are ignored."""
        if record.confidence is None or record.brightness is None or record.contrast is None:
            return
        index = self._class_index.get(record.label or "")
        if index is None:
            return
        values = (record.confidence, record.brightness, record.contrast)
        bins = (index, *map(bisect_right, self._edges, values))
        with self._lock:
            self._images.append(bins)
            for counts, bin_index in zip(self._counts, bins, strict=True):
                counts[bin_index] += 1
            if len(self._images) > self._size:
                for counts, bin_index in zip(self._counts, self._images.popleft(), strict=True):
                    counts[bin_index] -= 1

    def psi(self) -> dict[str, float]:
        """Return the index of each feature; empty while there are too few images.

        A feature is left out if chance alone would lift its index to that of a large change: the classes, if
        there are hundreds, and all features, if the reference has some dozens of images.
        """
        with self._lock:
            images = len(self._images)
            if images < self._minimum:
                return {}
            features = [np.array(counts) for counts in self._counts]
        return {
            feature: psi(self._reference, feature, counts)
            for feature, counts in zip(FEATURES, features, strict=True)
            if chance(self._reference, feature, images) < LARGE
        }

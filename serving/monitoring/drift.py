"""How far the pictures that come in are from those that the model was measured on."""

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
    """Brightness and contrast, in 0..1: mean and standard deviation over all values of what a network sees.

    Args:
        image: uint8 (S, S, 3).
    """
    # In whole numbers, which takes a third of the time of mean() and std().
    values = image.ravel().astype(np.int64)
    mean = float(values.sum()) / values.size
    variance = max(0.0, float(values @ values) / values.size - mean * mean)
    return mean / 255, variance**0.5 / 255


def reference_of(
    images: NDArray[np.uint8], probabilities: NDArray[np.floating[Any]], classes: Sequence[str], split: str
) -> Reference:
    """What a model makes of the images that it was judged by, for its `scorer.json`.

    Args:
        images: uint8 (N, S, S, 3), N > 0.
        probabilities: (N, classes), as served.
        split: that they are of.

    Returns:
        `label`: the share of each predicted class. `confidence`, `brightness` and `contrast`: `edges`, the up
        to nine deciles, and the `shares` below, between and above them. `images`: N. `split`.
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
    # To thousandths, and not above 0.999: what another rounding or another CPU changes in a confidence of
    # almost 1 is no drift, and would move many of them over an edge that is closer.
    edges = np.unique(np.floor(np.minimum(np.quantile(values, DECILES), 0.9999) * 1000) / 1000)
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}


def shares_of(reference: Reference, what: str) -> NDArray[np.float64]:
    """Of each bin, in the reference."""
    shares = list(reference["label"].values()) if what == "label" else reference[what]["shares"]
    return np.array(shares, dtype=np.float64)


def count(reference: Reference, what: str, values: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """How many of the values are in each bin of the reference; a class that it does not know is in none."""
    if what == "label":
        names = np.asarray(values, dtype=object)
        return np.array([(names == name).sum() for name in reference["label"]], dtype=np.int64)
    edges = reference[what]["edges"]
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def psi(reference: Reference, what: str, counts: NDArray[np.integer[Any]]) -> float:
    """Population stability index: 0 for the same distribution; above 0.1 a change, above 0.25 a large one.

    The sum over the bins of (a - e) * ln(a / e), a and e being the shares of the pictures and of the
    reference; after Siddiqi 2006, "Credit Risk Scorecards", which the two bounds are from as well. An empty
    bin would make it infinite: half a picture is added to each bin of both.

    Args:
        counts: as `count` gives it.
    """
    expected = shares_of(reference, what) * reference["images"] + 0.5
    actual = counts + 0.5
    e, a = expected / expected.sum(), actual / actual.sum()
    return float(((a - e) * np.log(a / e)).sum())


class DriftWindow:
    """The last pictures of one model, against its reference. Threads may share it.

    Args:
        reference: as `reference_of` makes it, of the model whose answers are observed.
        size: how many pictures count.
        minimum: as long as there are fewer, no figure is given. Of pictures like those of the reference the
            index is on average (bins - 1) * (1 / pictures + 1 / images of the reference), that is 0.05 with
            200 pictures, 5,000 images and ten bins (Yurdakul and Naranjo 2020, "Statistical properties of the
            population stability index").
    """

    def __init__(self, reference: Reference, size: int = WINDOW, minimum: int = MINIMUM) -> None:
        self._reference = reference
        self._size, self._minimum = size, minimum
        self._places = {name: place for place, name in enumerate(reference["label"])}
        self._edges = [reference[what]["edges"] for what in FEATURES[1:]]
        self._counts = [[0] * len(shares_of(reference, what)) for what in FEATURES]
        self._pictures: deque[tuple[int, ...]] = deque()
        self._lock = threading.Lock()

    def observe(self, record: Record) -> None:
        """Take a picture in, and the oldest out. Of what was not classified there is nothing to compare."""
        if record.confidence is None or record.brightness is None or record.contrast is None:
            return
        place = self._places.get(record.label or "")
        if place is None:
            return
        values = (record.confidence, record.brightness, record.contrast)
        bins = (place, *map(bisect_right, self._edges, values))
        with self._lock:
            self._pictures.append(bins)
            for counts, each in zip(self._counts, bins, strict=True):
                counts[each] += 1
            if len(self._pictures) > self._size:
                for counts, each in zip(self._counts, self._pictures.popleft(), strict=True):
                    counts[each] -= 1

    def psi(self) -> dict[str, float]:
        """The index by what is compared; nothing as long as there are too few pictures."""
        with self._lock:
            if len(self._pictures) < self._minimum:
                return {}
            counts = [np.array(each) for each in self._counts]
        return {what: psi(self._reference, what, each) for what, each in zip(FEATURES, counts, strict=True)}

"""When a served model says that it is not sure: too little confidence, or an image unlike those it knows."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import logsumexp
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score

from cifar_mlflow.evaluation.calibration import softmax

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Images = NDArray[np.uint8]

# Of the images that it knows; the others are taken for strange ones.
KNOWN_SHARE = 0.975
# The served code reckons in float32: an image whose energy is the threshold must not be moved by that.
ROUNDING = 1e-4
STRANGE_IMAGES = 200
PATCH = 128


@dataclass(frozen=True)
class Doubts:
    """When to be unsure: of answers with less confidence, and of images with a higher energy.

    `coverage` is the share of images that are answered with certainty, `accuracy` that of right answers among
    them. Both are None where there were no images to measure them on.
    """

    confidence_below: float
    energy_above: float
    coverage: float | None
    accuracy: float | None


def energy(logits: Floats, temperature: float) -> NDArray[np.float64]:
    """Float64 (N,): the higher, the less like the training images. -T * log(sum(exp(logits / T))).

    After Liu et al. 2020, "Energy-based Out-of-distribution Detection" (arXiv 2010.03759).
    """
    return -temperature * np.asarray(logsumexp(logits.astype(np.float64) / temperature, axis=1))


def find_doubts(logits: Floats, labels: Labels | None, temperature: float, target: float) -> Doubts:
    """Thresholds with which the certain answers are right in a share of `target`, and as many as possible.

    Where that cannot be reached, those with the highest accuracy. What counts is a threshold that leaves
    enough answers to tell: 20 for a target of 0.95, as one error in fewer is more than 5 %.

    Args:
        logits: (N, classes), N > 0, of images like those that the network knows.
        labels: (N,); None if the network was trained on these very images, so that its confidence says
            nothing. Then an answer is certain if its probability is `target` itself.
        target: 0 up to, not including, 1.
    """
    energies = energy(logits, temperature)
    above = float(np.quantile(energies, KNOWN_SHARE)) + ROUNDING
    if labels is None:
        return Doubts(target, above, None, None)
    known = energies <= above
    probabilities = softmax(logits[known], temperature)
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    confidence = confidence[order]
    answers = np.arange(1, len(order) + 1)
    accuracy = np.cumsum((probabilities.argmax(axis=1) == labels[known])[order]) / answers
    # Images of the same confidence are on the same side of any threshold.
    last_of_its_kind = np.append(confidence[1:] < confidence[:-1], True)
    enough = answers >= min(math.ceil(1 / (1 - target) - 1e-9), len(order))
    choices = np.flatnonzero(last_of_its_kind & enough)
    reached = choices[accuracy[choices] >= target]
    cut = int(reached[-1] if len(reached) else choices[np.argmax(accuracy[choices])])
    # Between two confidences, so that rounding moves no image to the other side.
    below = 0.0 if cut == len(order) - 1 else float(confidence[cut] + confidence[cut + 1]) / 2
    return Doubts(below, above, float(answers[cut] / len(logits)), float(accuracy[cut]))


def auroc(known: Floats, strange: Floats) -> float:
    """How well energies tell strange images from known ones: 1 always, 0.5 not at all."""
    is_strange = np.repeat([0, 1], [len(known), len(strange)])
    return float(roc_auc_score(is_strange, np.concatenate([known, strange])))


def strange_images(size: int) -> dict[str, Images]:
    """Images that no model of ours was trained on, 200 of a kind, uint8 (200, size, size, 3).

    Handwritten digits; patches of two photographs, of a temple and of a flower; noise; and flat colours.
    """
    rng = np.random.default_rng(0)
    digits = (load_digits().images[:STRANGE_IMAGES] * (255 / 16)).astype(np.uint8)
    photographs = load_sample_images().images
    noise = rng.integers(0, 256, (STRANGE_IMAGES, size, size, 3), dtype=np.uint8)
    colours = rng.integers(0, 256, (STRANGE_IMAGES, 1, 1, 3), dtype=np.uint8)
    return {
        "digits": np.stack([_resize(np.repeat(digit[..., None], 3, axis=2), size) for digit in digits]),
        "photographs": np.stack(
            [_resize(_patch(photographs[i % 2], rng), size) for i in range(STRANGE_IMAGES)]
        ),
        "noise": noise,
        "flat": np.broadcast_to(colours, noise.shape).copy(),
    }


def _patch(photograph: Images, rng: np.random.Generator) -> Images:
    top, left = (int(rng.integers(0, side - PATCH + 1)) for side in photograph.shape[:2])
    return photograph[top : top + PATCH, left : left + PATCH]


def _resize(image: Images, size: int) -> Images:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))

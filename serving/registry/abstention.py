"""The thresholds by which a served answer is marked uncertain, and how they are fitted.

An answer is uncertain if the model has too little confidence in it, or if the image is unlike the training
images.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.special import logsumexp
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score

from cifar_mlflow.evaluation.calibration import softmax

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Images = NDArray[np.uint8]

# Share of the validation images whose score is below the threshold: more would make the model sure of more
# photos that show none of the classes (docs/experiments.md).
IN_DISTRIBUTION_SHARE = 0.8
# The scorer computes in float32; the margin keeps rounding from moving an image across the threshold.
OOD_MARGIN = 1e-4
# Above every confidence, so that every answer is uncertain.
NEVER_CERTAIN = 2.0
OOD_IMAGES_PER_KIND = 200
PATCH_SIZE = 128


@dataclass(frozen=True)
class Thresholds:
    """An answer is uncertain if its confidence is below, or the score of the image above, the threshold.

    Attributes:
        coverage: share of the validation images that get a certain answer; None without validation images.
        accuracy: share of right answers among those; None if there are none.
        reason: why the target accuracy is not kept, or not verified; None if certain answers reach it.
    """

    confidence_below: float
    ood_above: float
    coverage: float | None
    accuracy: float | None
    reason: str | None = None


def energy(logits: Floats, temperature: float) -> NDArray[np.float64]:
    """Return the energy score -T * log(sum(exp(logits / T))): the higher, the less like the training images.

    Liu et al. 2020, "Energy-based Out-of-distribution Detection" (arXiv 2010.03759).

    Args:
        logits: (N, classes).

    Returns:
        float64 (N,).
    """
    return -temperature * np.asarray(logsumexp(logits.astype(np.float64) / temperature, axis=1))


def fit_thresholds(
    logits: Floats,
    labels: Labels | None,
    temperature: float,
    target_accuracy: float,
    distance: Floats | float = 0.0,
) -> Thresholds:
    """Return the thresholds with the highest coverage at which certain answers reach the target accuracy.

    If no threshold reaches the target, every answer is uncertain. Only thresholds that leave enough certain
    answers to verify the target are considered: 20 for a target of 0.95, since one error among fewer answers
    is more than 5 %.

    Args:
        logits: (N, classes), N > 0, of images like the training images.
        labels: (N,). None if the model was trained on these very images: its confidence in them is too high
            to fit a threshold, so the confidence threshold is the target accuracy itself.
        target_accuracy: in [0, 1).
        distance: (N,), of the features; added to the energy.
    """
    scores = energy(logits, temperature) + distance
    ood_above = float(np.quantile(scores, IN_DISTRIBUTION_SHARE)) + OOD_MARGIN
    target = f"that {100 * target_accuracy:.4g} % of the certain answers are right"
    if labels is None:
        reason = f"no images were held out, so nothing verifies {target}"
        return Thresholds(target_accuracy, ood_above, None, None, reason)
    in_distribution = scores <= ood_above
    probabilities = softmax(logits[in_distribution], temperature)
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    confidence = confidence[order]
    answers = np.arange(1, len(order) + 1)
    accuracy = np.cumsum((probabilities.argmax(axis=1) == labels[in_distribution])[order]) / answers
    # No threshold separates images of equal confidence.
    last_of_equals = np.append(confidence[1:] < confidence[:-1], True)
    needed = math.ceil(1 / (1 - target_accuracy) - 1e-9)
    cuts = np.flatnonzero(last_of_equals & (answers >= needed))
    on_target = cuts[accuracy[cuts] >= target_accuracy]
    if not len(on_target):
        known = "" if len(order) == len(labels) else f" of {len(labels):,}, those like the training images,"
        reason = (
            f"{len(order):,} validation images{known} are too few to verify {target}: it takes {needed} of "
            "them"
        )
        if len(cuts):
            reason = (
                f"on the {len(labels):,} validation images, no confidence threshold leaves "
                f"{100 * target_accuracy:.4g} % right answers (at best {accuracy[cuts].max():.1%})"
            )
        return Thresholds(NEVER_CERTAIN, ood_above, 0.0, None, reason)
    cut = int(on_target[-1])
    # Halfway between two confidences, so that rounding moves no image across the threshold.
    confidence_below = 0.0 if cut == len(order) - 1 else float(confidence[cut] + confidence[cut + 1]) / 2
    return Thresholds(confidence_below, ood_above, float(answers[cut] / len(logits)), float(accuracy[cut]))


def ood_auroc(in_distribution: Floats, out_of_distribution: Floats) -> float:
    """Return the AUROC: 1 if the scores separate the two kinds of image perfectly, 0.5 if not at all."""
    is_ood = np.repeat([0, 1], [len(in_distribution), len(out_of_distribution)])
    return float(roc_auc_score(is_ood, np.concatenate([in_distribution, out_of_distribution])))


def ood_images(size: int) -> dict[str, Images]:
    """Return images unlike any training images, by kind; 200 per kind, uint8 (200, size, size, 3).

    The kinds: handwritten digits, patches of two photographs (a temple and a flower), noise of each
    channel on its own and of all at once, flat colours, gradients, lines of text.
    """
    rng = np.random.default_rng(0)
    digits = (load_digits().images[:OOD_IMAGES_PER_KIND] * (255 / 16)).astype(np.uint8)
    photographs = load_sample_images().images
    noise = rng.integers(0, 256, (OOD_IMAGES_PER_KIND, size, size, 3), dtype=np.uint8)
    colours = rng.integers(0, 256, (OOD_IMAGES_PER_KIND, 1, 1, 3), dtype=np.uint8)
    gray = rng.normal(128, 50, (OOD_IMAGES_PER_KIND, size, size, 1)).clip(0, 255).astype(np.uint8)
    return {
        "digits": np.stack([_resize(np.repeat(digit[..., None], 3, axis=2), size) for digit in digits]),
        "photographs": np.stack(
            [_resize(_random_patch(photographs[i % 2], rng), size) for i in range(OOD_IMAGES_PER_KIND)]
        ),
        "noise": noise,
        "gray_noise": np.repeat(gray, 3, axis=3),
        "flat": np.broadcast_to(colours, noise.shape).copy(),
        "gradient": np.stack([_gradient(size, rng) for _ in range(OOD_IMAGES_PER_KIND)]),
        "text": np.stack([_resize(_text(rng), size) for _ in range(OOD_IMAGES_PER_KIND)]),
    }


def _gradient(size: int, rng: np.random.Generator) -> Images:
    first, last = rng.integers(0, 256, (2, 3))
    ramp = np.rot90(np.linspace(0, np.ones(size), size), int(rng.integers(4)))
    return np.asarray(first + (last - first) * ramp[..., None]).astype(np.uint8)


def _text(rng: np.random.Generator) -> Images:
    page = Image.new("RGB", (PATCH_SIZE, PATCH_SIZE), tuple(rng.integers(150, 256, 3).tolist()))
    ink, font = tuple(rng.integers(0, 100, 3).tolist()), ImageFont.load_default(size=28)
    for top in range(0, PATCH_SIZE, 32):
        line = "".join(rng.choice(list("abcdefghij KLMNOPQ012345"), 8))
        ImageDraw.Draw(page).text((2, top), line, fill=ink, font=font)
    return np.asarray(page)


def _random_patch(photograph: Images, rng: np.random.Generator) -> Images:
    top, left = (int(rng.integers(0, side - PATCH_SIZE + 1)) for side in photograph.shape[:2])
    return photograph[top : top + PATCH_SIZE, left : left + PATCH_SIZE]


def _resize(image: Images, size: int) -> Images:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))

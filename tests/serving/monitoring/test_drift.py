"""Drift (PSI) of real images against a reference: the embedded sample, and photographs from scikit-learn."""

import threading
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import load_dataset
from serving.monitoring import analysis
from serving.monitoring.drift import DriftWindow, Reference, image_statistics, reference_of
from serving.monitoring.records import Record

Images = NDArray[np.uint8]
CLASSES = ("dark", "bright")


def answers(images: Images) -> NDArray[np.float64]:
    """Replace a network: the brighter an image, the higher the probability of "bright"."""
    bright = 1 / (1 + np.exp(-8 * (images.mean(axis=(1, 2, 3)) / 255 - 0.45)))
    return np.stack([1 - bright, bright], axis=1)


def records(images: Images) -> list[Record]:
    found = []
    for item, (image, probabilities) in enumerate(zip(images, answers(images), strict=True)):
        brightness, contrast = image_statistics(image)
        found.append(
            Record(
                request_id="r", item=item, time=1.0, route="/predict", status=200, total_ms=1.0,
                label=CLASSES[probabilities.argmax()], confidence=float(probabilities.max().round(6)),
                brightness=brightness, contrast=contrast,
            )
        )  # fmt: skip
    return found


def psi_of(reference: Reference, images: Images, **window: int) -> dict[str, float]:
    drift = DriftWindow(reference, **window)
    for record in records(images):
        drift.observe(record)
    return drift.psi()


@pytest.fixture(scope="module")
def images() -> Images:
    return np.asarray(load_dataset(DataConfig(dataset="sample")).split("train").images)


@pytest.fixture(scope="module")
def shuffled(images: Images) -> Images:
    return images[np.random.default_rng(0).permutation(len(images))]


@pytest.fixture(scope="module")
def reference(shuffled: Images) -> Reference:
    some = shuffled[:1500]
    return reference_of(some, answers(some), CLASSES, "val")


def photographs() -> Images:
    rng = np.random.default_rng(0)
    patches = []
    for i in range(300):
        photograph = load_sample_images().images[i % 2]
        top, left = (int(rng.integers(0, side - 128)) for side in photograph.shape[:2])
        patch = Image.fromarray(photograph[top : top + 128, left : left + 128])
        patches.append(np.asarray(patch.resize((32, 32), Image.Resampling.BICUBIC)))
    return np.stack(patches)


def test_brightness_and_contrast_are_mean_and_deviation_of_all_values(images: Images) -> None:
    for image in images[:20]:
        expected = image.mean() / 255, image.std() / 255
        assert image_statistics(image) == pytest.approx(expected, abs=1e-9)
    assert image_statistics(np.full((32, 32, 3), 255, np.uint8)) == (1.0, 0.0)


def test_the_shares_of_a_reference_add_up_to_one(reference: Reference) -> None:
    assert (reference["images"], reference["split"]) == (1500, "val")
    assert list(reference["label"]) == list(CLASSES)
    assert sum(reference["label"].values()) == pytest.approx(1)
    for feature in ("confidence", "brightness", "contrast"):
        assert len(reference[feature]["shares"]) == len(reference[feature]["edges"]) + 1 == 10
        assert reference[feature]["shares"] == pytest.approx([0.1] * 10, abs=0.02)


def test_new_images_of_the_same_kind_are_no_change(reference: Reference, shuffled: Images) -> None:
    fresh = psi_of(reference, shuffled[1500:2500])
    assert set(fresh) == {"label", "confidence", "brightness", "contrast"}
    assert max(fresh.values()) < 0.1


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("darkened", {"label", "brightness", "contrast"}),
        ("noise", {"brightness", "contrast"}),
        pytest.param("photographs", {"brightness", "contrast"}, marks=pytest.mark.slow),
        ("one class", {"label", "confidence", "brightness"}),
    ],
)
def test_images_of_another_kind_are_a_large_change(
    reference: Reference, shuffled: Images, kind: str, moved: set[str]
) -> None:
    fresh = shuffled[1500:2500]
    others = {
        "darkened": lambda: (fresh * 0.5).astype(np.uint8),
        "noise": lambda: np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8),
        "photographs": photographs,
        "one class": lambda: fresh[answers(fresh)[:, 1] > 0.6],
    }[kind]()
    found = psi_of(reference, others)
    assert {feature for feature in moved if found[feature] > 0.25} == moved


def test_there_is_no_index_of_too_few_images(reference: Reference, shuffled: Images) -> None:
    assert psi_of(reference, shuffled[:199]) == {}
    assert psi_of(reference, shuffled[:200]) != {}
    assert psi_of(reference, shuffled[:50], minimum=50) != {}


def test_hundreds_of_classes_do_not_raise_the_alarm_by_chance() -> None:
    """1,000 images of the same kind have an index of 0.4 then, above that of a large change."""
    rng = np.random.default_rng(0)
    classes = [f"class {number}" for number in range(300)]
    images = rng.integers(0, 256, (3000, 4, 4, 3), dtype=np.uint8)
    probabilities = rng.dirichlet(np.ones(len(classes)), len(images))
    reference = reference_of(images[:2000], probabilities[:2000], classes, "val")
    served = []
    window = DriftWindow(reference)
    for item in range(2000, 3000):
        (brightness, contrast), row = image_statistics(images[item]), probabilities[item]
        served.append(
            Record(
                request_id="r", item=item, time=1.0, route="/predict", status=200, total_ms=1.0,
                label=classes[row.argmax()], confidence=float(row.max()),
                brightness=brightness, contrast=contrast,
            )
        )  # fmt: skip
        window.observe(served[-1])
    assert set(window.psi()) == {"confidence", "brightness", "contrast"}
    table = analysis.drift(pd.DataFrame(map(asdict, served)), reference).set_index("feature")
    assert table["psi"]["label"] > 0.25
    assert table["verdict"].to_dict() == {
        "label": "may be chance", "confidence": "no change", "brightness": "no change",
        "contrast": "no change",
    }  # fmt: skip


def test_a_reference_of_equal_images_gives_a_finite_index(shuffled: Images) -> None:
    flat = np.full((300, 32, 32, 3), 255, np.uint8)
    reference = reference_of(flat, answers(flat), CLASSES, "val")
    same = psi_of(reference, flat)
    assert max(same.values()) < 0.01
    assert psi_of(reference, shuffled[:300])["brightness"] > 0.25
    assert all(np.isfinite(value) for value in psi_of(reference, shuffled[:300]).values())


def test_only_the_most_recent_images_count(reference: Reference, shuffled: Images) -> None:
    dark = (shuffled[:300] * 0.3).astype(np.uint8)
    window = DriftWindow(reference, size=400)
    for record in records(np.concatenate([dark, shuffled[:400]])):
        window.observe(record)
    assert window.psi() == pytest.approx(psi_of(reference, shuffled[:400], size=400))


def test_images_that_were_not_classified_are_ignored(reference: Reference) -> None:
    window = DriftWindow(reference, minimum=1)
    window.observe(
        Record(
            request_id="r", time=1.0, route="/predict", status=400, error_code="not_an_image", total_ms=1.0
        )
    )
    assert window.psi() == {}


def test_threads_may_share_a_window(reference: Reference, shuffled: Images) -> None:
    window = DriftWindow(reference)
    seen = records(shuffled[:1000])
    figures: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: list(map(window.observe, seen))) for _ in range(3)]
    threads.append(threading.Thread(target=lambda: figures.extend(window.psi() for _ in range(50))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.isfinite(value) for figure in figures for value in figure.values())
    for record in seen:
        window.observe(record)
    assert window.psi() == pytest.approx(psi_of(reference, shuffled[:1000]))

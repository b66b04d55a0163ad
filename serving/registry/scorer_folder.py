"""The scorer folder of a new version: the ONNX file, and `scorer.json` with everything measured about it."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from cifar_mlflow.evaluation.calibration import expected_calibration_error, softmax
from cifar_mlflow.export.images import EvalSet
from cifar_mlflow.models.card import AbstentionInfo, ModelCard, OodInfo, ServedCard
from cifar_mlflow.scorer.engine import Engine
from cifar_mlflow.scorer.predictor import CARD_FILE, FORMAT, MODEL_FILE
from serving.monitoring.drift import reference_of
from serving.registry.abstention import Thresholds, energy, fit_thresholds, ood_auroc, ood_images
from serving.registry.candidates import Candidate, split_outputs

logger = logging.getLogger("cifar_mlflow.register")

OOD_AUROC_METRIC = "serve/ood_auroc_"  # followed by the kind of image
# Below this, the model hardly separates this kind of image from those it knows; 0.5 is chance.
USEFUL_AUROC = 0.7


def describe(
    chosen: Candidate,
    candidates: list[Candidate],
    card: ModelCard,
    eval_set: EvalSet,
    target_accuracy: float,
) -> ServedCard:
    """Fit the thresholds of the chosen candidate, measure it, and return its card.

    The metrics of the card are those of the training run and new ones, which start with `serve/`. A warning
    is logged if the certain answers do not reach the target accuracy, and for each kind of foreign image that
    the model does not recognize as such.
    """
    labels = eval_set.images.labels
    probabilities = softmax(chosen.logits, card.temperature)
    thresholds = fit_thresholds(
        chosen.logits,
        labels if eval_set.held_out else None,
        card.temperature,
        target_accuracy,
        chosen.distance,
    )
    uncertain = AbstentionInfo(
        confidence_below=thresholds.confidence_below,
        target_accuracy=target_accuracy,
        coverage=thresholds.coverage,
        accuracy=thresholds.accuracy,
        reason=thresholds.reason,
    )
    if uncertain.reason:
        logger.warning("%s", promise(uncertain))
    auroc = _ood_auroc(chosen, card)
    if uncertain.confidence_below <= 1:
        _warn_of_missed(auroc)
    metrics = {
        "serve/agreement": chosen.agreement,
        f"serve/{eval_set.split}_ece": expected_calibration_error(probabilities, labels),
        **_threshold_metrics(thresholds),
        **{f"{OOD_AUROC_METRIC}{kind}": value for kind, value in auroc.items()},
    }
    for candidate in candidates:
        metrics |= candidate.metrics(eval_set.split)
    return ServedCard(
        **card.model_dump(include={*ServedCard.model_fields} - {"metrics"}),
        format=FORMAT,
        precision=chosen.precision,
        fit="crop",  # as for the images of a folder in training
        uncertain=uncertain,
        ood=OodInfo(score="energy+distance", above=thresholds.ood_above, auroc=auroc),
        metrics=card.metrics | metrics,
        reference=reference_of(eval_set.images.images, probabilities, card.classes, eval_set.split),
        class_map=chosen.class_map,
        files={MODEL_FILE: sha256(chosen.model)},
    )


def promise(uncertain: AbstentionInfo) -> str:
    """Return a sentence about the accuracy of answers that are not uncertain."""
    if uncertain.reason is None:
        return f"Of the answers that are not uncertain, {uncertain.accuracy:.1%} were right on validation."
    hold_out = "Hold out more images, or accept less with --target-accuracy."
    if uncertain.confidence_below > 1:
        return f"Every answer is marked as uncertain: {uncertain.reason}. {hold_out}"
    return (
        f"Answers below a confidence of {uncertain.confidence_below:g} are uncertain, but {uncertain.reason}."
    )


def write_scorer_folder(folder: Path, model: Path, card: ServedCard) -> None:
    """Create the folder with the network and its card."""
    folder.mkdir()
    shutil.copy(model, folder / MODEL_FILE)
    content = json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / CARD_FILE).write_text(content)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _ood_auroc(chosen: Candidate, card: ModelCard) -> dict[str, float]:
    """Return the AUROC of energy plus distance by kind of foreign image."""
    in_distribution = energy(chosen.logits, card.temperature) + chosen.distance
    engine = Engine(chosen.model)
    auroc = {}
    for kind, images in ood_images(card.image_size).items():
        logits, distance = split_outputs(engine.run(images))
        auroc[kind] = ood_auroc(in_distribution, energy(logits, card.temperature) + distance)
    engine.close()
    return auroc


def _warn_of_missed(auroc: Mapping[str, float]) -> None:
    """Name the kinds of foreign images that may get certain answers."""
    missed = [f"{kind} (AUROC {value:.2f})" for kind, value in auroc.items() if value < USEFUL_AUROC]
    if missed:
        logger.warning(
            "Pictures that show none of the classes may get confident answers. Not detected as such: %s; an "
            "AUROC of 0.5 is chance",
            ", ".join(missed),
        )


def _threshold_metrics(thresholds: Thresholds) -> dict[str, float]:
    figures = {
        "serve/val_coverage": thresholds.coverage,
        "serve/val_certain_accuracy": thresholds.accuracy,
    }
    return {name: value for name, value in figures.items() if value is not None}

"""Predict images with networks that were not trained on them, and embed all images."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cifar_mlflow.config import DataConfig, TrainConfig
from cifar_mlflow.data import ImageDataset, SelectedImages, Selection, Split
from cifar_mlflow.data.split import train_val_indices
from cifar_mlflow.errors import UsageError
from cifar_mlflow.evaluation.calibration import softmax
from cifar_mlflow.evaluation.predict import predict_features, predict_logits
from cifar_mlflow.export.reference import is_released
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.models.card import ModelCard
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.review.images import ReviewedImages
from cifar_mlflow.training.device import Hardware
from cifar_mlflow.training.initial import build_classifier
from cifar_mlflow.training.loop import Recorder, Training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of the judged images, and embeddings of all images.

    Attributes:
        judged: int64 (M,), positions of the judged images, in order.
        probabilities: float64 (M, classes), by networks that were not trained on the image: of several
            networks that were not, the mean.
        embeddings: float32 (N, D) of unit length: the input of the last layer of the first network.
    """

    judged: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    embeddings: NDArray[np.float32]


class FoldRecorder:
    """Records the metrics of each epoch under the number of the fold: `fold1/train/loss`."""

    def __init__(self, recorder: Recorder, fold: int) -> None:
        self.recorder = recorder
        self.fold = fold

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.recorder.log_metrics({f"fold{self.fold}/{name}": value for name, value in metrics.items()}, step)


def predict_out_of_fold(
    dataset: ImageDataset,
    reviewed: ReviewedImages,
    fold_of: NDArray[np.int64],
    config: TrainConfig,
    hardware: Hardware,
    recorder: Recorder,
    stop: StopRequest,
) -> Predictions:
    """Train a network per fold of the training images, each on the other folds.

    Args:
        fold_of: int64, the fold of each training image, from `assign_folds`.
        recorder: receives the metrics of each epoch, and `fold1/accuracy` after a training.
        stop: checked after each step.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
        Interrupted: `stop` was requested.
    """
    train = reviewed.parts["train"]
    others = list(reviewed.parts.values())[1:]
    folds = int(fold_of.max()) + 1
    nothing = Split(train.images[:0], train.labels[:0])
    probabilities = np.zeros((len(reviewed), len(dataset.classes)))
    for fold in range(folds):
        inside, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        selection = Selection(SelectedImages(train.images, inside), train.labels[inside])
        logger.info("Fold %d of %d: training on %s images", fold + 1, folds, f"{len(inside):,}")
        torch.manual_seed(config.seed)
        classifier = build_classifier(config, dataset, selection, hardware)
        training = Training(classifier, dataset.classes, selection, nothing, config, hardware)
        best = training.fit(FoldRecorder(recorder, fold + 1), stop=stop)
        with stop.at_once():
            if fold == 0:
                embeddings = [_embed(best, part.images, hardware) for part in reviewed.parts.values()]
            own = softmax(_logits(best, train.images[held_out], config, hardware))
            accuracy = float((own.argmax(1) == train.labels[held_out]).mean())
            recorder.log_metrics({f"fold{fold + 1}/accuracy": accuracy}, step=training.epoch)
            probabilities[held_out] = own
            start = len(train)
            for part in others:
                place = slice(start, start + len(part))
                probabilities[place] += softmax(_logits(best, part.images, config, hardware)) / folds
                start += len(part)
    return Predictions(np.arange(len(reviewed)), probabilities, np.concatenate(embeddings))


def predict_unseen(
    classifier: ImageClassifier,
    temperature: float,
    reviewed: ReviewedImages,
    judged: NDArray[np.int64],
    config: TrainConfig,
    hardware: Hardware,
) -> Predictions:
    """Predict the `judged` images with a network that was not trained on them.

    Args:
        temperature: divides the logits before the softmax.
    """
    logits = _logits(classifier, reviewed.images(judged), config, hardware)
    embeddings = [_embed(classifier, part.images, hardware) for part in reviewed.parts.values()]
    return Predictions(judged, softmax(logits / temperature), np.concatenate(embeddings))


def unseen_images(
    dataset: ImageDataset, reviewed: ReviewedImages, card: ModelCard, config: DataConfig
) -> NDArray[np.int64]:
    """Return the positions of the images that a model was not trained on: for validation and for the test.

    The released network was trained on a JPEG copy of CIFAR-10 with the same test split, but in another
    order. On other copies, and on the sample, only the test images are certainly new to it.

    Args:
        config: the settings of the data set.

    Raises:
        UsageError: it was trained on other images, so it is not known which of these it has seen.
    """
    others = np.arange(len(reviewed.parts["train"]), len(reviewed))
    if card.data_digest != dataset.digest:
        if config.dataset != "folder" and is_released(card):
            logger.info(
                "Only the %s test images are judged: the released network was trained on another copy of "
                "CIFAR-10, so it is not known which of these training images it has seen",
                f"{len(others):,}",
            )
            return others
        raise UsageError(
            f"--trained-model: it was trained on {card.data or 'unknown images'}, not on {dataset.name} as "
            "it is now, so it is not known which of the images it has seen: name a model that was trained on "
            "this data set, or leave it out, so that networks are trained for the review"
        )
    if dataset.own_val:
        return others
    split = DataConfig(val_size=card.val_size, split_seed=card.split_seed)
    return np.concatenate([train_val_indices(dataset, split)[1], others])


def assign_folds(
    labels: NDArray[np.int64], classes: tuple[str, ...], folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold of each image, int64 (N,), with each class spread evenly over the folds.

    Raises:
        UsageError: a class has only one image, so the network that predicts it would not know its class.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if single := [classes[label] for label in np.flatnonzero(counts < 2)]:
        raise UsageError(
            f"a review needs at least 2 training images of each class, but there is only one of "
            f"{', '.join(single)}: add images or remove the class"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold_of = np.empty(len(labels), np.int64)
    fold_of[order] = np.arange(len(labels)) % folds
    return fold_of


def _logits(
    classifier: ImageClassifier, images: NDArray[np.uint8], config: TrainConfig, hardware: Hardware
) -> NDArray[np.float32]:
    return predict_logits(
        classifier, images, device=hardware.device, precision=hardware.precision, tta=config.tta
    )


def _embed(classifier: ImageClassifier, images: NDArray[np.uint8], hardware: Hardware) -> NDArray[np.float32]:
    """Return the input of the last linear layer, scaled to unit length, float32 (N, D)."""
    features = predict_features(classifier, images, device=hardware.device, precision=hardware.precision)
    return nn.functional.normalize(features).numpy()

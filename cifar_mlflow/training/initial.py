"""The network that a training starts from: new, or with the weights of another one."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cifar_mlflow.config import IMAGENET, TrainConfig, is_backbone
from cifar_mlflow.data import ImageDataset, Selection, Split
from cifar_mlflow.data.summary import mean_std
from cifar_mlflow.errors import UsageError
from cifar_mlflow.evaluation.predict import predict_features
from cifar_mlflow.models.backbones import check_image_size, imagenet_weights, normalization
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.models.fast import Fast
from cifar_mlflow.models.networks import build_network
from cifar_mlflow.models.pretrained import head_of, load_weights, with_names_of
from cifar_mlflow.training.device import Hardware

logger = logging.getLogger(__name__)

IMAGES_FOR_INITIALIZATION = 5_000  # enough for the whitening layer's statistics of patches
IMAGES_FOR_HEAD = 2_000
# Inverse of the penalty on the weights of the head, for features of variance 1. With 126 photos of six
# classes and 1,280 features, 0.0003 was better than 0.001 to 1 (docs/experiments.md).
HEAD_C = 0.0003


def build_classifier(
    config: TrainConfig, dataset: ImageDataset, train_split: Split | Selection, hardware: Hardware
) -> ImageClassifier:
    """Return a network that starts from `config.weights` if given.

    Its input is normalized with the statistics of the training images; that of a backbone, as in the
    training of its ImageNet weights.

    Raises:
        UsageError: the weights do not exist or are of another network, or the images have the wrong size.
        CifarError: the weights cannot be loaded.
    """
    network = build_network(config.model, len(dataset.classes), width=config.width, dropout=config.dropout)
    if is_backbone(config.model):
        check_image_size(network, dataset.image_size)
        classifier = ImageClassifier(network, *normalization(network))
    else:
        mean, std = (values.tolist() for values in mean_std(train_split.images))
        classifier = ImageClassifier(network, mean, std)
    if isinstance(network, Fast):
        pixels = torch.from_numpy(train_split.images[:IMAGES_FOR_INITIALIZATION]).permute(0, 3, 1, 2)
        network.initialize_from((pixels / 255 - classifier.mean) / classifier.std)
    if config.weights:
        fresh = load_weights(network, _weights(config, network))
        note = f"; new for {len(dataset.classes)} classes: {', '.join(fresh)}" if fresh else ""
        logger.info("Starts from %s%s", config.weights, note)
        if config.head_first:
            fit_head(classifier.to(hardware.device), train_split, config, hardware)
    if config.freeze:
        classifier.freeze()
    return classifier


def _weights(config: TrainConfig, network: torch.nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors that `config.weights` stands for."""
    weights = str(config.weights)
    if weights == IMAGENET:
        return imagenet_weights(config.model)
    from cifar_mlflow.export.reference import load_classifier
    from cifar_mlflow.export.weights import is_model_file, load_tensors

    path = Path(weights).expanduser()
    if is_backbone(config.model) and path.is_file() and not is_model_file(path):
        return with_names_of(network, load_tensors(path))
    pretrained, card = load_classifier(weights)
    if (card.model, card.width) != (config.model, config.width):
        raise UsageError(
            f"{config.weights} holds the weights of a {card.model} of width {card.width:g}, which do not "
            f"fit a {config.model} of width {config.width:g}: "
            f"give --model {card.model} --width {card.width:g}"
        )
    return pretrained.network.state_dict()


def fit_head(
    classifier: ImageClassifier, train_split: Split | Selection, config: TrainConfig, hardware: Hardware
) -> None:
    """Fit the last layer to the features of up to 2,000 training images, by logistic regression.

    With a new last layer, the first steps of a training would distort the pretrained features: A. Kumar et
    al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (2022, arXiv
    2202.10054). If the training mirrors images, the layer is fitted to the mirror images, too.

    Args:
        classifier: on the device of `hardware`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    drawn = _draw_evenly(train_split.labels, config.seed)
    images, labels = train_split.images[drawn], train_split.labels[drawn]
    logger.info("Fitting the last layer to the features of %s images", f"{len(drawn):,}")
    if config.flip != "none":
        images, labels = np.concatenate([images, images[:, :, ::-1]]), np.tile(labels, 2)
    features = predict_features(
        classifier, images, device=hardware.device, precision=hardware.precision
    ).numpy()

    scaler = StandardScaler().fit(features)
    balanced = "balanced" in (config.class_weights, config.sampling)
    model = LogisticRegression(C=HEAD_C, class_weight="balanced" if balanced else None, max_iter=1_000)
    model.fit(scaler.transform(features), labels)
    rows, intercepts = model.coef_ / scaler.scale_, model.intercept_
    if len(rows) == 1:  # of two classes, only the second one has a row
        rows, intercepts = np.concatenate([-rows, rows]) / 2, np.concatenate([-intercepts, intercepts]) / 2
    _, head = head_of(classifier)
    with torch.no_grad():
        head.weight[model.classes_] = torch.from_numpy(rows).to(head.weight)
        if head.bias is not None:
            head.bias[model.classes_] = torch.from_numpy(intercepts - rows @ scaler.mean_).to(head.bias)


def _draw_evenly(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the sorted positions of up to 2,000 images, equally many per class, or all of a small class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rounds = pd.Series(labels[order]).groupby(labels[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(rounds, kind="stable")[:IMAGES_FOR_HEAD]])
